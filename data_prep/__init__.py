"""Turns a raw catalogue (tables, media, a log) into sharded, checked, split data."""
