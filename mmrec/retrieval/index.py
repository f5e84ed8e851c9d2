"""Searches vectors by inner product: exactly with numpy, or through an index on disk.

The vectors are those of an export: [embedding, popularity] for items and [embedding, 1] for users,
so that the inner product is the model's score. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mmrec.data.ragged import IntArray

FloatArray = npt.NDArray[np.float32]
# Scores kept at once by exact search: 256 MB.
MAX_SCORES = 2**26


class Index(Protocol):
    """Vectors that can be searched; a row is the place of a vector in the order it was added."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """The K rows with the largest inner product.

        Args:
            queries: (Q, D).
            k: K.

        Returns:
            Scores and rows (Q, K), best first; row -1 where there are fewer than K vectors.
        """


class ExactIndex:
    """Compares a query with every vector.

    Args:
        vectors: (N, D); may be memory-mapped.
    """

    def __init__(self, vectors: FloatArray) -> None:
        self.vectors = vectors

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """See `Index.search`; ties in the order of rows."""
        num_items = len(self.vectors)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        tile = max(1, MAX_SCORES // max(num_items, 1))
        kept = min(k, num_items)
        for start in range(0, len(queries), tile):
            all_scores = queries[start : start + tile] @ self.vectors.T
            order = np.argsort(-all_scores, axis=1, kind="stable")[:, :kept]
            part = slice(start, start + len(order))
            rows[part, :kept] = order
            scores[part, :kept] = np.take_along_axis(all_scores, order, axis=1)
        return scores, rows


class FaissIndex:
    """An index of faiss, in memory while it is used and one file on disk.

    Args:
        index: any index of faiss over inner products.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def flat(cls, width: int, vectors: Iterable[FloatArray]) -> Self:
        """An exact index of vectors that come in parts.

        Args:
            width: D.
            vectors: parts (n, D).
        """
        import faiss

        index = faiss.IndexFlatIP(width)
        for part in vectors:
            index.add(np.ascontiguousarray(part, dtype=np.float32))
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Opens what `write` wrote."""
        import faiss

        return cls(faiss.read_index(str(path)))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """See `Index.search`."""
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return scores, rows

    def write(self, path: Path) -> None:
        """Writes the index as one file."""
        import faiss

        faiss.write_index(self._index, str(path))


def recall_at_k(index: Index, vectors: FloatArray, queries: FloatArray, k: int) -> float:
    """Share of the exact K best rows that an index finds, mean over queries.

    A row whose exact score equals that of the K-th counts as found: which of several tied rows is
    listed is nobody's mistake.

    Args:
        index: over the same vectors.
        vectors: (N, D).
        queries: (Q, D).
        k: K; of fewer vectors all are asked for.
    """
    k = min(k, len(vectors))
    if not k or not len(queries):
        return 1.0
    exact, _ = ExactIndex(vectors).search(queries, k)
    _, rows = index.search(queries, k)
    found = np.einsum("qd,qkd->qk", queries, vectors[rows])
    good = (rows >= 0) & (found >= exact[:, -1:] - 1e-5)
    return float(good.mean())
