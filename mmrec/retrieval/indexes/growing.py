"""Vectors in float32 that may lie on disk, and grow in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from mmrec.retrieval.indexes.exact import BLOCK_ROWS
from mmrec.retrieval.indexes.rows import FloatArray, IntArray


class GrowingVectors:
    """(N, D) float32 whose first part is never copied: it may be a file as large as memory.

    Args:
        first: (n, D).
    """

    def __init__(self, first: FloatArray) -> None:
        self._first = np.ascontiguousarray(first, dtype=np.float32)
        self._room = np.empty((0, self.width), np.float32)
        self._num_added = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Maps what `write` wrote into memory: only what is looked at is read."""
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return cls(np.asarray(array))

    @property
    def width(self) -> int:
        """D."""
        return int(self._first.shape[1])

    def __len__(self) -> int:
        return len(self._first) + self._num_added

    def __getitem__(self, chosen: slice | IntArray) -> FloatArray:
        if not self._num_added:
            return self._first[chosen]
        if isinstance(chosen, slice):
            start, stop, _ = chosen.indices(len(self))
            if stop <= len(self._first):
                return self._first[start:stop]
            return self[np.arange(start, stop)]
        behind = chosen - len(self._first)
        found = np.empty((len(chosen), self.width), np.float32)
        found[behind < 0] = self._first[chosen[behind < 0]]
        found[behind >= 0] = self._room[behind[behind >= 0]]
        return found

    def add(self, vectors: FloatArray) -> None:
        """Takes in (n, D), in room that doubles: one at a time is as quick as all at once."""
        end = self._num_added + len(vectors)
        if end > len(self._room):
            room = np.empty((max(end, 2 * len(self._room)), self.width), np.float32)
            room[: self._num_added] = self._room[: self._num_added]
            self._room = room
        self._room[self._num_added : end] = vectors
        self._num_added = end

    def write(self, path: Path) -> None:
        """Writes one file of numpy, a block at a time."""
        shape = (len(self), self.width)
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            for start in range(0, len(self), BLOCK_ROWS):
                file.write(np.ascontiguousarray(self[start : start + BLOCK_ROWS], "<f4").data)
