"""Rank-biased overlap: how far two ranked lists agree, their tops counting most."""

from __future__ import annotations

import numpy as np

from mmrec.data.ragged import IntArray
from mmrec.evaluation.metrics import FloatArray

# The first ten places then carry 86 % of the weight (Webber et al., section 4.3).
PERSISTENCE = 0.9


def rank_biased_overlap(
    first: IntArray, second: IntArray, *, persistence: float = PERSISTENCE
) -> FloatArray:
    """Rank-biased overlap of pairs of lists, extrapolated beyond their ends.

    With X_d how many items the two share among their first d, s <= l their lengths and p the
    persistence, the chance that a reader goes on from one place to the next:

        RBO = (1 - p) sum_{d = 1, 2, ...} p^(d-1) A_d

        A_d = X_d / d                           d <= s
              (X_d + X_s (d - s) / s) / d       s < d <= l
              (X_l - X_s) / l + X_s / s         d > l

    Equal lists have 1 exactly, lists without a common item 0. This is RBO_EXT of Webber, Moffat
    and Zobel (2010, equation 32; 23 where s = l). Places are strict: whoever makes the lists breaks
    ties, and the same way in both, or a tie counts as a change.

    Args:
        first: (U, K) items, best first, none twice in a row; -1 after the end of a shorter list.
        second: (U, K) the lists to compare with, row by row.
        persistence: p, above 0 and below 1.

    Returns:
        (U,) from 0 to 1; two empty lists are equal.

    Raises:
        ValueError: the lists do not pair up, or p is out of range.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"lists of {first.shape} and {second.shape} do not pair up")
    if not 0 < persistence < 1:
        raise ValueError(f"persistence is {persistence}: it lies between 0 and 1")
    num_lists, k = first.shape
    if k == 0:
        return np.ones(num_lists)
    same = (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]
    shared = same.cumsum(1).cumsum(2).diagonal(axis1=1, axis2=2)  # (U, K, K) -> X (U, K)
    lengths = np.stack([(each >= 0).sum(1) for each in (first, second)])
    short, long = lengths.min(0)[:, None], lengths.max(0)[:, None]  # s, l: (U, 1)
    of_short, of_long = (
        np.take_along_axis(shared, np.maximum(length - 1, 0), axis=1) for length in (short, long)
    )
    depth = np.arange(1, k + 1)
    expected = of_short * np.maximum(depth - short, 0) / np.maximum(short, 1)
    beyond = (of_long - of_short) / np.maximum(long, 1) + of_short / np.maximum(short, 1)
    beyond = np.where(long == 0, 1.0, beyond)
    agreement = np.where(depth > long, beyond, (shared + expected) / depth)
    # what is lacking is summed, not what is there: equal lists then have 1 to the last bit
    lacking = (1 - agreement) @ ((1 - persistence) * persistence ** (depth - 1))
    lacking += (1 - beyond[:, 0]) * persistence**k
    overlap: FloatArray = np.clip(1 - lacking, 0, 1)
    return overlap
