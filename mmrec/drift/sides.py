"""One side of a comparison: a prepared folder and the items of it that are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.remote import is_mirrored
from data_prep.shards import PreparedData, Split

IntArray = npt.NDArray[np.int64]

MAX_ITEMS = 2000
"""Items looked at on each side: a figure of as many moves by a hundredth or two by chance."""


@dataclass(frozen=True)
class Side:
    """A catalogue, and at most so many items and users of it, drawn by a seed.

    Attributes:
        data: the prepared folder.
        max_items: most items, and most users, that are looked at.
        seed: of the draw.
    """

    data: PreparedData
    max_items: int = MAX_ITEMS
    seed: int = 0

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: True = the item was not withdrawn."""
        return ~self.data.items.deleted

    @property
    def is_at_hand(self) -> bool:
        """Whether an item is read without a shard being fetched first."""
        return not is_mirrored(self.data.path)

    @cached_property
    def split(self) -> Split | None:
        """The first one: histories and counts of all events are the same in each."""
        return self.data.split(self.data.splits[0]) if self.data.splits else None

    @cached_property
    def texts(self) -> list[dict[str, str]]:
        """Texts by field, of items that have any."""
        if "text" not in self.data.items.modalities:
            return []
        return [self.data.items.text(int(row)) for row in self.rows_with("text")]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Attributes of items."""
        rows = self._draw(np.flatnonzero(self.there))
        return [self.data.items.record(int(row)).get("attributes", {}) for row in rows]

    @cached_property
    def users(self) -> Sequence[dict[str, Any]]:
        """Attributes of users."""
        known = self.data.user_attributes
        return [known[int(row)] for row in self._draw(np.arange(len(known)))]

    def rows_with(self, modality: str) -> IntArray:
        """item_index of those drawn from the items that have a medium of this modality."""
        return self._draw(np.flatnonzero(self.data.items.has(modality) & self.there))

    def _draw(self, rows: IntArray) -> IntArray:
        if len(rows) <= self.max_items:
            return rows
        random = np.random.default_rng((self.seed, 2))
        return np.sort(random.choice(rows, self.max_items, replace=False))
