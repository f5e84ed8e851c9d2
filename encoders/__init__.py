"""Turns media into tokens: one module a modality, each with its transform beside it."""
