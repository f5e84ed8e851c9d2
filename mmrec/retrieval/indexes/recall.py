"""How much of exact search an index finds, and how far it has to look for that."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from mmrec.retrieval.indexes.exact import ExactIndex
from mmrec.retrieval.indexes.rows import FloatArray, Searchable, Vectors

logger = logging.getLogger(__name__)

# What `tune` asks for: above the .97 that is promised, because other queries than those it saw do a
# little worse.
RECALL = 0.975
LENGTHS = (10, 100)


class Tunable(Searchable, Protocol):
    """An index that can be told how far to look, as `RowIndex` says."""

    effort: int

    @property
    def efforts(self) -> Sequence[int]:
        """Values to try, from the quickest."""


@dataclass(frozen=True)
class Recall:
    """Share of the exact best rows that an index finds, mean over queries.

    at_10: among lists of 10.
    at_100: among lists of 100.
    num_queries: asked; they had no part in tuning.
    """

    at_10: float
    at_100: float
    num_queries: int

    def document(self) -> dict[str, float | int]:
        """As a manifest keeps it."""
        shares = {"recall@10": self.at_10, "recall@100": self.at_100}
        return {name: round(value, 4) for name, value in shares.items()} | {
            "queries": self.num_queries
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Self:
        """What `document` gave."""
        return cls(document["recall@10"], document["recall@100"], document["queries"])


def recall_at_k(index: Searchable, vectors: Vectors, queries: FloatArray, k: int) -> float:
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
    return _share_found(index, vectors, queries, exact)


def measure_recall(index: Searchable, vectors: Vectors, queries: FloatArray) -> Recall:
    """Recall in lists of 10 and of 100; the arguments are those of `recall_at_k`."""
    if not len(vectors) or not len(queries):
        return Recall(1.0, 1.0, 0)
    at_10, at_100 = _shares_found(index, vectors, queries, _exact_100(vectors, queries))
    return Recall(at_10, at_100, len(queries))


def tune(index: Tunable, vectors: Vectors, queries: FloatArray, *, recall: float = RECALL) -> None:
    """Sets the least effort with which an index finds a share of the best 10 and 100 rows.

    Where no effort is enough, the greatest stays and a line says so.

    Args:
        index: over the same vectors.
        vectors: (N, D).
        queries: (Q, D), not those that the index is judged by afterwards.
        recall: the share, in (0, 1].
    """
    efforts = index.efforts
    if len(efforts) == 1 or not len(vectors) or not len(queries):
        return
    exact = _exact_100(vectors, queries)

    def found(place: int) -> float:
        index.effort = efforts[place]
        return min(_shares_found(index, vectors, queries, exact))

    last = len(efforts) - 1
    least = bisect_left(range(last), True, key=lambda place: found(place) >= recall)
    share = found(least)  # of the effort that stays
    if share >= recall:
        return
    logger.warning(
        "the index finds %.3f of the best items, %.3f were asked for: another kind finds more",
        share,
        recall,
    )


def _exact_100(vectors: Vectors, queries: FloatArray) -> FloatArray:
    return ExactIndex(vectors).search(queries, min(max(LENGTHS), len(vectors)))[0]


def _shares_found(
    index: Searchable, vectors: Vectors, queries: FloatArray, exact: FloatArray
) -> list[float]:
    """Of each of `LENGTHS`."""
    return [_share_found(index, vectors, queries, exact[:, :k]) for k in LENGTHS]


def _share_found(
    index: Searchable, vectors: Vectors, queries: FloatArray, exact: FloatArray
) -> float:
    """Recall, by the scores (Q, K) of exact search."""
    num_queries, k = exact.shape
    _, rows = index.search(queries, k)
    found = vectors[np.maximum(rows, 0).reshape(-1)].reshape(num_queries, k, -1)
    scores = np.einsum("qd,qkd->qk", queries, found)
    good = (rows >= 0) & (scores >= exact[:, -1:] - 1e-5)
    return float(good.mean())
