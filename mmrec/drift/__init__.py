"""Whether a new catalogue is like an earlier one: texts, states of the encoders, features."""
