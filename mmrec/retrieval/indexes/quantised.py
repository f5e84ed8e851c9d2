"""Vectors as int8: a quarter of the memory, compared one and all.

A vector has a scale of its own, its largest number is 127: v ~ code * scale. So a vector that is
added later loses no more than those that were there, which scales of dimensions cannot promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mmrec.retrieval.indexes.exact import BLOCK_ROWS, ExactIndex
from mmrec.retrieval.indexes.rows import BoolArray, FloatArray, IntArray, Vectors

CODES_FILE, SCALES_FILE = "codes.npy", "scales.npy"
LARGEST = 127
CodeArray = npt.NDArray[np.int8]


def quantise(vectors: Vectors, width: int) -> tuple[CodeArray, FloatArray]:
    """Codes and scales of vectors, symmetric around 0; a number is off by half a scale at most.

    Args:
        vectors: (N, D); a block of them is read at a time.
        width: D.

    Returns:
        (N, D) int8 and (N,) float32.
    """
    codes = np.empty((len(vectors), width), np.int8)
    scales = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        block = vectors[part]
        largest = np.abs(block).max(axis=1)
        scales[part] = np.where(largest > 0, largest, 1) / np.float32(LARGEST)
        codes[part] = np.rint(block / scales[part, None])
    return codes, scales


class DecodedVectors:
    """Codes that become numbers where they are looked at.

    Args:
        codes: (N, D) int8.
        scales: (N,).
    """

    def __init__(self, codes: CodeArray, scales: FloatArray) -> None:
        self.codes, self.scales = codes, scales

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, chosen: slice | IntArray) -> FloatArray:
        numbers = self.codes[chosen].astype(np.float32)
        numbers *= self.scales[chosen, None]
        return numbers


class Int8Index:
    """Compares a query with the codes of every vector.

    Args:
        codes: (N, D) int8.
        scales: (N,).
    """

    # A scan has nothing to skip. What it takes for better are near ties, which come back when more
    # rows than K are scored once more.
    effort = 1
    efforts: Sequence[int] = (1,)

    def __init__(self, codes: CodeArray, scales: FloatArray) -> None:
        self.vectors = DecodedVectors(codes, scales)

    @classmethod
    def build(cls, vectors: Vectors, width: int) -> Self:
        """Quantises (N, D) vectors."""
        return cls(*quantise(vectors, width))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Opens what `write` wrote."""
        codes = np.load(folder / CODES_FILE, allow_pickle=False)
        return cls(codes, np.load(folder / SCALES_FILE, allow_pickle=False))

    def add(self, vectors: FloatArray) -> None:
        """See `RowIndex.add`."""
        codes, scales = quantise(vectors, vectors.shape[1])
        old = self.vectors
        self.vectors = DecodedVectors(
            np.concatenate([old.codes, codes]), np.concatenate([old.scales, scales])
        )

    def search(
        self, queries: FloatArray, k: int, allowed: BoolArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """See `RowIndex.search`."""
        return ExactIndex(self.vectors).search(queries, k, allowed)

    def parameters(self) -> dict[str, Any]:
        """See `RowIndex.parameters`."""
        return {"scales": "one a vector, symmetric"}

    def write(self, folder: Path) -> None:
        """See `RowIndex.write`."""
        np.save(folder / CODES_FILE, self.vectors.codes, allow_pickle=False)
        np.save(folder / SCALES_FILE, self.vectors.scales, allow_pickle=False)
