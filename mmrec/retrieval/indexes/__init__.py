"""Vectors that can be searched: exactly, through an index in memory, or in a vector database."""
