"""What an index of rows does: it searches vectors by inner product and knows no ids.

The vectors are those of an export: [embedding, popularity] for items and [embedding, 1] for users,
so that the inner product is the model's score. A row is the place of a vector in the order in which
vectors were added.

Legend: Q queries · N vectors · K list length · D width, the dimension of popularity included.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mmrec.data.ragged import IntArray

__all__ = ["BoolArray", "FloatArray", "IntArray", "RowIndex", "Searchable", "Vectors"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Vectors(Protocol):
    """(N, D) float32 in parts: an array, a memory-mapped file, or codes that are decoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any, /) -> FloatArray:
        """Rows of a slice or of (n,) int64."""


class Searchable(Protocol):
    """Vectors that can be searched."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """The K rows with the largest inner product.

        Args:
            queries: (Q, D).
            k: K.

        Returns:
            Scores and rows (Q, K), best first; row -1 where there are fewer than K vectors.
        """


class RowIndex(Protocol):
    """An index in memory that grows at its end; a `LocalIndex` scores what it finds once more.

    Attributes:
        effort: how far a search looks; more finds more and takes longer.
    """

    effort: int

    @property
    def efforts(self) -> Sequence[int]:
        """Values of `effort` to try, from the quickest; one where there is no choice."""

    def add(self, vectors: FloatArray) -> None:
        """Takes in (n, D) vectors, behind those there are."""

    def search(
        self, queries: FloatArray, k: int, allowed: BoolArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """See `Searchable.search`.

        Args:
            queries: (Q, D).
            k: K.
            allowed: (N,) bool, True = may be found; None: all.

        Returns:
            Scores, of the index's own precision, and rows (Q, K), best first; row -1 where it found
            fewer.
        """

    def parameters(self) -> dict[str, Any]:
        """What it was built with, for a manifest."""

    def write(self, folder: Path) -> None:
        """Writes its files into a folder."""
