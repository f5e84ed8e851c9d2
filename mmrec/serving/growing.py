"""Rows that are appended to a tensor, and a sequence behind another, without copying either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

T_co = TypeVar("T_co", covariant=True)


class Chained(Sequence[T_co]):
    """One sequence behind another.

    Args:
        first: read when asked, as it may lie on disk.
        then: behind it.
    """

    def __init__(self, first: Sequence[T_co], then: Sequence[T_co]) -> None:
        self._first, self._then = first, then

    def __len__(self) -> int:
        return len(self._first) + len(self._then)

    def __getitem__(self, place: Any) -> Any:
        behind = int(place) - len(self._first)
        return self._first[int(place)] if behind < 0 else self._then[behind]


class GrowingRows:
    """A tensor (n, …) with room behind it; appending costs O(1) a row on the average.

    Args:
        rows: to start with.
    """

    def __init__(self, rows: Tensor) -> None:
        self._room, self._n = rows, len(rows)

    @property
    def rows(self) -> Tensor:
        """(n, …) a view; later appends leave it as it is."""
        return self._room[: self._n]

    def append(self, more: Tensor) -> None:
        """Puts (m, …) behind what is there; the room doubles where it is full."""
        end = self._n + len(more)
        if end > len(self._room):
            wider = self._room.new_empty(max(end, 2 * len(self._room)), *self._room.shape[1:])
            wider[: self._n] = self.rows
            self._room = wider
        self._room[self._n : end] = more
        self._n = end
