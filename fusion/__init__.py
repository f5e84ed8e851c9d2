"""Turns tokens into item embeddings and histories of items into user embeddings."""
