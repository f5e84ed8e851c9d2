"""Users held out of training wholly: to a run it is as if they had not come yet.

    split ─► KnownUsersSplit: training histories, items' counts and targets of the other users

One half of them is for validation, the other for the test, and `mmrec.evaluation.new_users` asks
what a model knows of them after their first events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.shards import HistoryIndex, PreparedData, Split
from mmrec.data.ragged import IntArray

BoolArray = npt.NDArray[np.bool_]


class SomeHistories(HistoryIndex):
    """Some of the histories, as if there were no others.

    Args:
        folder: of the split.
        prefix: of its histories.
        rows: which, ascending.
    """

    def __init__(self, folder: Path, prefix: str, rows: IntArray) -> None:
        super().__init__(folder, prefix)
        self._rows = rows
        self.user_index = self.user_index[rows]
        self.lengths = self.lengths[rows]
        self.shard_of = self.shard_of[rows]
        self._offset = self._offset[rows]
        self._size = self._size[rows]
        self._sha256 = self._sha256.take(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return SomeHistories, (self._folder, self._prefix, self._rows)


class KnownUsersSplit(Split):
    """A split without a share of its users, drawn by a hash of their ids.

    Complete histories (`full`) still hold everybody's: they say what new users are asked.

    Args:
        data: the prepared folder.
        name: of the split.
        share: of the users who are new, above 0, below 1.
    """

    def __init__(self, data: PreparedData, name: str, share: float) -> None:
        super().__init__(data.split(name).path)
        self.share = share
        self._data = data
        place = places_of(data.user_ids)
        self.is_new: BoolArray = place < share
        self._for_validation: BoolArray = place < share / 2

    def __reduce__(self) -> tuple[Any, ...]:
        return KnownUsersSplit, (self._data, self.name, self.share)

    @cached_property
    def train(self) -> HistoryIndex:
        """Training histories of the known users."""
        whole = HistoryIndex(self.path, "histories-train")
        rows = np.flatnonzero(~self.is_new[whole.user_index])
        return SomeHistories(self.path, "histories-train", rows)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The split's table of items; `num_train_events` counts events of known users."""
        table = pl.read_parquet(self.path / "items.parquet")
        counts = np.zeros(len(self._data.items), np.int64)
        for row in range(len(self.train)):
            np.add.at(counts, self.train.read(row).item_index, 1)
        own = counts[table["item_index"].to_numpy()]
        kind = table.schema["num_train_events"]
        return table.with_columns(pl.Series("num_train_events", own, dtype=kind))

    def targets(self, which: str) -> pl.DataFrame:
        """Targets of `validation` or `test` of the known users."""
        table = super().targets(which)
        return table.filter(pl.Series(~self.is_new[table["user_index"].to_numpy()]))

    def new_users(self, which: str) -> IntArray:
        """user_index of the new users of `validation` or `test`, ascending."""
        half = self._for_validation if which == "validation" else ~self._for_validation
        return np.flatnonzero(self.is_new & half)


def places_of(user_ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """(U,) in [0, 1), by a hash of each id: the same in every run and on every machine."""
    digests = [hashlib.sha256(f"new_users:{user_id}".encode()).digest() for user_id in user_ids]
    return np.array([int.from_bytes(each[:6], "big") / 2**48 for each in digests])
