"""Reads prepared folders: items by offset, histories as a stream, cached encoder states."""
