"""Exact search: every vector is compared, block by block, and no list of N scores is ever sorted.

A matrix product finds the rows that may be among the best; those are scored once more, pair by
pair. So the score of a query and a row does not depend on what else is searched, and equal vectors
have equal scores: ties are listed in the order of rows.
"""

from __future__ import annotations

import numpy as np

from mmrec.retrieval.indexes.rows import BoolArray, FloatArray, IntArray, Vectors

# Scores of a block at once: 64 queries x 65,536 rows are 16 MB, which caches hold better than more.
BLOCK_ROWS = 65_536
BLOCK_QUERIES = 64
# Two products of one pair in another order of addition differ by less than this share of a score.
ROUNDING = 1e-5
# Rows kept beyond K: ties, and what rounding may have put behind the K-th.
MAX_TIES = 1_024


class ExactIndex:
    """Compares a query with every vector.

    Args:
        vectors: (N, D); may be memory-mapped.
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    def search(
        self, queries: FloatArray, k: int, allowed: BoolArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """The K rows with the largest inner product; ties in the order of rows.

        Args:
            queries: (Q, D).
            k: K.
            allowed: (N,) bool, True = may be listed; None: all.

        Returns:
            Scores and rows (Q, K), best first; row -1 and score -inf where there are fewer.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for start in range(0, len(queries), BLOCK_QUERIES):
            part = slice(start, start + BLOCK_QUERIES)
            asked = queries[part]
            best = likely_rows(self.vectors, asked, k, allowed)
            scores[part], rows[part] = rescored(self.vectors, asked, best, k)
        return scores, rows


def likely_rows(
    vectors: Vectors, queries: FloatArray, k: int, allowed: BoolArray | None = None
) -> IntArray:
    """The K best rows by a matrix product, and those so near the K-th that rounding may decide.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        k: K.
        allowed: (N,) bool; None: all.

    Returns:
        (Q, P) rows in no set order, P at least the least of K and the number allowed; -1 behind.
    """
    num_queries = len(queries)
    pool_scores = [np.zeros(0, np.float32)] * num_queries
    pool_rows = [np.zeros(0, np.int64)] * num_queries
    floor = np.full(num_queries, -np.inf, np.float32)
    for start in range(0, len(vectors) if k else 0, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(vectors))
        if allowed is None:
            rows, block = np.arange(start, stop), vectors[start:stop]
        else:
            rows = start + np.flatnonzero(allowed[start:stop])
            whole = len(rows) == stop - start
            block = vectors[start:stop] if whole else vectors[rows]
        if not len(rows):
            continue
        scores = queries @ block.T  # (Q, n)
        near = scores >= floor[:, None]
        for query in np.flatnonzero(near.any(1)).tolist():
            new = np.flatnonzero(near[query])
            joined = np.concatenate([pool_scores[query], scores[query, new]])
            joined_rows = np.concatenate([pool_rows[query], rows[new]])
            if len(joined) > k:
                kept, floor[query] = _best_and_near(joined, k)
                joined, joined_rows = joined[kept], joined_rows[kept]
            pool_scores[query], pool_rows[query] = joined, joined_rows
    found = np.full((num_queries, max(map(len, pool_rows), default=0)), -1, np.int64)
    for query, pool in enumerate(pool_rows):
        found[query, : len(pool)] = pool
    return found


def _best_and_near(scores: FloatArray, k: int) -> tuple[IntArray, float]:
    """Places of the K best of more than K scores and of those near the K-th, and how near is near.

    Of many ties the first are kept: with no popularity and no history a catalogue is one tie.
    """
    slack = ROUNDING * float(np.abs(scores).max())
    floor = float(np.partition(scores, -k)[-k]) - slack
    kept = np.flatnonzero(scores >= floor)
    if len(kept) > k + MAX_TIES:
        order = np.argsort(-scores[kept], kind="stable")[: k + MAX_TIES]
        kept = np.sort(kept[order])
    return kept, floor


def rescored(
    vectors: Vectors, queries: FloatArray, rows: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    """The K best of the rows that are given for each query, by exact scores.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        rows: (Q, P), each at most once; -1 for none.
        k: K.

    Returns:
        Scores and rows (Q, K) as of `ExactIndex.search`.
    """
    num_queries, num_rows = rows.shape
    best_scores = np.full((num_queries, k), -np.inf, np.float32)
    best_rows = np.full((num_queries, k), -1, np.int64)
    if not num_rows or not len(vectors):
        return best_scores, best_rows
    pairs = vectors[np.maximum(rows, 0).reshape(-1)].reshape(num_queries, num_rows, -1)
    scores = np.einsum("qd,qpd->qp", queries, pairs)
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores))[:, :k]
    kept = min(k, num_rows)
    best_scores[:, :kept] = np.take_along_axis(scores, order, 1)
    best_rows[:, :kept] = np.take_along_axis(rows, order, 1)
    return best_scores, best_rows
