"""A thinned log: a run knows a share of a split's events, as if the others had not been written.

    split ─► ThinnedSplit: training histories, inputs and counts of the known events alone;
                           targets, candidates, cold items and seen items as they were

Two shares are then asked the same questions, and what differs is what is known. Whether a model
stands sparse data can be measured on one log in this way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.shards import History, HistoryIndex, PreparedData, Split
from mmrec.data.new_users import KnownUsersSplit
from mmrec.data.ragged import IntArray, Ragged

BoolArray = npt.NDArray[np.bool_]
Value = TypeVar("Value", bound=np.generic)

PLACES = 2**48
LEAST_EVENTS = 2  # a training history needs an input and a target


class ThinnedHistories(HistoryIndex):
    """Histories with some of their events.

    Args:
        folder: of the split.
        prefix: of its histories.
        kept: a row a history, the places of its events that are known, ascending.
    """

    def __init__(self, folder: Path, prefix: str, kept: Ragged) -> None:
        super().__init__(folder, prefix)
        self._kept = kept
        self.lengths = kept.lengths

    def __reduce__(self) -> tuple[Any, ...]:
        return ThinnedHistories, (self._folder, self._prefix, self._kept)

    def read(self, row: int) -> History:
        """The known events of the history in a row."""
        return _some_events(super().read(row), self._kept[row])


class ThinnedSplit(Split):
    """A split of whose events a share is known.

    An event's place in [0, 1) is a hash of its user, its item, and how often he had met the item
    before. A user's events below the share are known; where these are fewer than two of his
    training history, so are those up to its second lowest place. So a smaller share lies within a
    larger one, whatever the machine, the seed and the order of the log.

    Complete histories (`full`) stay whole: positions of targets count their events, and what a user
    has met is left out of his lists even where the model does not know of it. A list of things he
    likes and has met would otherwise count as wrong, the more so the better the model, and each
    share would rank another set of candidates.

    Args:
        data: the prepared folder.
        name: of the split.
        share: above 0, below 1.
    """

    def __init__(self, data: PreparedData, name: str, share: float) -> None:
        super().__init__(data.split(name).path)
        self.share = share
        self._data = data
        self._limit = np.full(len(data.user_ids), int(share * PLACES), np.int64)
        self._num_items = len(data.items)
        whole = HistoryIndex(self.path, "histories-train")
        kept, counts = [], np.zeros(self._num_items, np.int64)
        for row in range(len(whole)):
            history = whole.read(row)
            places = self._places(history)
            least = np.sort(places)[:LEAST_EVENTS].max(initial=-1) + 1
            limit = max(int(self._limit[history.user_index]), int(least))
            self._limit[history.user_index] = limit
            kept.append(np.flatnonzero(places < limit))
            np.add.at(counts, history.item_index[kept[-1]], 1)
        self._kept, self._counts = Ragged.from_rows(kept), counts

    def __reduce__(self) -> tuple[Any, ...]:
        return ThinnedSplit, (self._data, self.name, self.share)

    @cached_property
    def train(self) -> HistoryIndex:
        """Training histories of the known events."""
        return ThinnedHistories(self.path, "histories-train", self._kept)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The split's table of items; `num_train_events` counts known events."""
        table = pl.read_parquet(self.path / "items.parquet")
        counts = self._counts[table["item_index"].to_numpy()]
        kind = table.schema["num_train_events"]
        return table.with_columns(pl.Series("num_train_events", counts, dtype=kind))

    def knows(self, history: History) -> BoolArray:
        """(n,) bool: True = the event is known; those after training have places like the others.

        Args:
            history: complete, or the start of a complete one.
        """
        known: BoolArray = self._places(history) < self._limit[history.user_index]
        return known

    def _places(self, history: History) -> IntArray:
        """(n,) where the events lie, in units of 1 / PLACES."""
        user_id, item_ids = self._data.user_ids[history.user_index], self._data.items.item_ids
        met: Counter[int] = Counter()
        places = np.empty(len(history.item_index), np.int64)
        for row, item in enumerate(history.item_index.tolist()):
            event = f"event_share:{user_id}:{item_ids[item]}:{met[item]}"
            places[row] = int.from_bytes(hashlib.sha256(event.encode()).digest()[:6], "big")
            met[item] += 1
        return places


def open_split(
    data: PreparedData, name: str | None, event_share: float, new_users: float = 0.0
) -> Split:
    """A split of which a run knows a share of the events, or all but some users'; else the split.

    Args:
        data: the prepared folder.
        name: of the split; None where there is one only.
        event_share: `data.event_share`; below 1 only where nobody is held out.
        new_users: `data.new_users`.

    Raises:
        DataError: there is no such split, or several and no name.
    """
    split = data.split(name)
    if new_users:
        return KnownUsersSplit(data, split.name, new_users)
    return split if event_share == 1 else ThinnedSplit(data, split.name, event_share)


def _some_events(history: History, kept: IntArray) -> History:
    """The events in some places of a history."""

    def some(values: npt.NDArray[Value] | None) -> npt.NDArray[Value] | None:
        return None if values is None else values[kept]

    context = history.context
    return History(
        user_index=history.user_index,
        item_index=history.item_index[kept],
        time=some(history.time),
        event=some(history.event),
        value=some(history.value),
        context=context and {k: [own[row] for row in kept.tolist()] for k, own in context.items()},
        shown_items=history.shown_items,
        shown_before=np.searchsorted(kept, history.shown_before, side="left").astype(np.int64),
    )
