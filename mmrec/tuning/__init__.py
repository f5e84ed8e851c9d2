"""Searches settings of a run on validation: which are tried, how they are drawn, what came out."""
