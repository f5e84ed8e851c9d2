"""Vectors and a finder of likely rows: what is found is scored by the vectors themselves.

    queries ─► finder ─► 3 K likely rows ─► scored exactly ─► K rows
            └► every allowed row, where they are few, or the finder came back with too few

So scores and their order are those of exact search, whatever found the rows, and a list has K rows
where K are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrec.retrieval.indexes.exact import BLOCK_QUERIES, likely_rows, rescored
from mmrec.retrieval.indexes.growing import GrowingVectors
from mmrec.retrieval.indexes.rows import BoolArray, FloatArray, IntArray, RowIndex

# Rows scored exactly for a list of one: fewer bits and directions put some a little too low.
OVERFETCH = 3
# Of fewer allowed rows, or a smaller share, all are compared: as quick, and nothing is missed.
FEW_ROWS = 16_384
FEW_SHARE = 0.1


class RescoredIndex:
    """Exact scores of rows that a finder proposes; see `RowIndex`.

    Args:
        vectors: (N, D).
        finder: over the same rows; None compares every row.
    """

    def __init__(self, vectors: GrowingVectors, finder: RowIndex | None) -> None:
        self.vectors, self.finder = vectors, finder

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def effort(self) -> int:
        """How far the finder looks."""
        return 1 if self.finder is None else self.finder.effort

    @effort.setter
    def effort(self, effort: int) -> None:
        if self.finder is not None:
            self.finder.effort = effort

    @property
    def efforts(self) -> Sequence[int]:
        """Values of `effort` to try."""
        return (1,) if self.finder is None else self.finder.efforts

    def add(self, vectors: FloatArray) -> None:
        """Takes in (n, D), behind those there are."""
        self.vectors.add(vectors)
        if self.finder is not None:
            self.finder.add(vectors)

    def search(
        self, queries: FloatArray, k: int, allowed: BoolArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """The K best rows among those allowed; ties in the order of rows.

        Args:
            queries: (Q, D).
            k: K.
            allowed: (N,) bool, True = may be listed; None: all.

        Returns:
            Scores and rows (Q, K), best first; row -1 and score -inf where fewer are allowed.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        for start in range(0, len(queries), BLOCK_QUERIES):
            part = slice(start, start + BLOCK_QUERIES)
            asked = queries[part]
            likely = self._likely(asked, min(k, num_allowed), allowed, num_allowed)
            scores[part], rows[part] = rescored(self.vectors, asked, likely, k)
        return scores, rows

    def _likely(
        self, queries: FloatArray, k: int, allowed: BoolArray | None, num_allowed: int
    ) -> IntArray:
        """(Q, P) rows, among them at least K allowed ones; -1 behind."""
        wanted = OVERFETCH * k
        few = max(FEW_ROWS, FEW_SHARE * len(self), 2 * wanted)
        if self.finder is None or num_allowed <= few:
            return likely_rows(self.vectors, queries, k, allowed)
        _, found = self.finder.search(queries, wanted, allowed)
        short = np.flatnonzero((found >= 0).sum(1) < k)
        if not short.size:
            return found
        exact = likely_rows(self.vectors, queries[short], k, allowed)
        likely = np.full((len(queries), max(found.shape[1], exact.shape[1])), -1, np.int64)
        likely[:, : found.shape[1]] = found
        likely[short] = -1
        likely[short, : exact.shape[1]] = exact
        return likely
