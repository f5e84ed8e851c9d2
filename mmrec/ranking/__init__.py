"""The second stage in training: lists of the frozen retriever, the ranker's loop, its gain."""
