"""The texts that a vocabulary or a text model may learn from: those of no cold item of any split.

What an item that is kept back for testing says must be as new to the model as the item itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.shards import PreparedData


def never_cold(data: PreparedData) -> Iterator[int]:
    """Index of each item that is there and no cold item of any split, ascending."""
    hidden = set(np.flatnonzero(data.items.deleted).tolist())
    for name in data.splits:
        items = data.split(name).items
        roles = items["role"].to_list()
        hidden.update(
            index
            for index, role in zip(items["item_index"].to_list(), roles, strict=True)
            if role.startswith("cold")
        )
    for item_index in range(len(data.items)):
        if item_index not in hidden:
            yield item_index


def corpus(data: PreparedData) -> Iterator[str]:
    """Their texts, the fields of an item joined."""
    for item_index in never_cold(data):
        yield ". ".join(data.items.text(item_index).values())
