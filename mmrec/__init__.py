"""The multimodal recommender: data, training, evaluation, retrieval and command line."""
