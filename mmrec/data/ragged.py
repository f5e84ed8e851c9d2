"""Rows of unequal length as one flat array and its offsets.

    values  [a b c | d | | e f]      offsets [0 3 4 4 6]      4 rows

Histories, seen items, targets and batches travel in this form; whoever needs a rectangle pads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of int64 values of unequal length.

    Attributes:
        values: (total,) int64, the rows one after another.
        offsets: (R + 1,) int64, from 0 to total; row r is `values[offsets[r]:offsets[r + 1]]`.
    """

    values: IntArray
    offsets: IntArray

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0:
            raise ValueError(f"offsets of shape {offsets.shape} must be one row that starts at 0")
        if offsets[-1] != len(self.values):
            raise ValueError(f"offsets end at {offsets[-1]}, but there are {len(self.values)}")
        if (np.diff(offsets) < 0).any():
            raise ValueError("offsets must not decrease")

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | IntArray]) -> Ragged:
        """Joins rows given one by one; a row may be empty."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(values, offsets_of([len(row) for row in arrays]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> IntArray:
        """One row, a view; a negative row counts from the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """(R,) number of values of each row."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> IntArray:
        """(total,) the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: IntArray) -> Ragged:
        """The given rows in the given order; rows may repeat."""
        return self._slice(self.offsets[rows], self.lengths[rows])

    def tail(self, length: int) -> Ragged:
        """The last `length` values of each row, or the whole row where it is shorter."""
        lengths = np.minimum(self.lengths, length)
        return self._slice(self.offsets[1:] - lengths, lengths)

    def keep(self, wanted: npt.NDArray[np.bool_]) -> Ragged:
        """Drops the values where `wanted` (total,) is False; rows stay, perhaps empty."""
        lengths = np.bincount(self.row_of_value[wanted], minlength=len(self))
        return Ragged(self.values[wanted], offsets_of(lengths))

    def _slice(self, starts: IntArray, lengths: IntArray) -> Ragged:
        offsets = offsets_of(lengths)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(starts, lengths) + within], offsets)


def offsets_of(lengths: Sequence[int] | IntArray) -> IntArray:
    """(R + 1,) int64 offsets of rows of the given lengths (R,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.asarray(lengths, dtype=np.int64), out=offsets[1:])
    return offsets
