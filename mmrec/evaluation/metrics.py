"""Ranking metrics from the ranks of targets, and what the shown lists look like.

    ranks of each case's targets ─► one value a case ─► mean over cases of a user ─► mean over users

A rank is 1-based and may be fractional: ties carry their expected rank (see `ranking`). All
metrics at K count a target as shown where its rank is at most K.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrec.data.ragged import IntArray

KS = (1, 5, 10, 20, 50)
FloatArray = npt.NDArray[np.float64]


def case_metrics(
    ranks: FloatArray, offsets: IntArray, *, ks: Sequence[int] = KS
) -> dict[str, FloatArray]:
    """Metrics of every case.

    With r_1 <= ... <= r_n the ranks of a case's n targets and h = #{i: r_i <= K}:

        hr@K         1 where h > 0
        recall@K     h / n
        precision@K  h / K
        ndcg@K       sum_{i: r_i <= K} 1 / log2(1 + r_i)  over  sum_{i <= min(n, K)} 1 / log2(1 + i)
        map@K        sum_{i: r_i <= K} i / r_i  over  min(n, K)
        mrr          1 / r_1, at no K

    NDCG is Järvelin and Kekäläinen (2002) with binary gains. Average precision is divided by
    min(n, K), not by n, so that a perfect list of K items is worth 1.

    Args:
        ranks: (T,) float ranks of targets, those of one case together.
        offsets: (U + 1,) where the targets of each case start; every case has one at least.
        ks: the list lengths K.

    Returns:
        `hr@1`, ..., `map@50`, `mrr`: (U,) each.

    Raises:
        ValueError: a case has no target, or a rank is below 1 or not a number.
    """
    num_targets = np.diff(offsets)
    if (num_targets < 1).any():
        raise ValueError(f"case {int(np.argmin(num_targets))} has no target: drop it first")
    if not (ranks >= 1).all():
        raise ValueError(f"ranks are 1-based, but {ranks[~(ranks >= 1)][0]} is among them")
    num_cases = len(num_targets)
    case = np.repeat(np.arange(num_cases), num_targets)
    ranks = ranks[np.lexsort((ranks, case))]
    ordinal = np.arange(len(ranks)) - np.repeat(offsets[:-1], num_targets) + 1

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(case, weights=values, minlength=num_cases).astype(np.float64)

    ideal_gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, max(ks) + 2)))])
    metrics: dict[str, FloatArray] = {}
    for k in ks:
        shown = ranks <= k
        hits = total(shown.astype(np.float64))
        best_length = np.minimum(num_targets, k)
        metrics[f"hr@{k}"] = (hits > 0).astype(np.float64)
        metrics[f"recall@{k}"] = hits / num_targets
        metrics[f"precision@{k}"] = hits / k
        metrics[f"ndcg@{k}"] = total(shown / np.log2(1 + ranks)) / ideal_gain[best_length]
        metrics[f"map@{k}"] = total(shown * ordinal / ranks) / best_length
    metrics["mrr"] = 1 / ranks[offsets[:-1]]
    return metrics


def metrics_from_ranks(
    ranks: FloatArray,
    offsets: IntArray,
    users: IntArray | None = None,
    *,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Means over users of `case_metrics`.

    Args:
        ranks: (T,) float ranks of targets, those of one case together.
        offsets: (U + 1,) where the targets of each case start.
        users: (U,) user of each case; a user with several cases counts once, with their mean.
            None: every case is a user of its own.
        ks: the list lengths K.

    Returns:
        One number a metric; empty where there is no case.
    """
    if len(offsets) < 2:
        return {}
    per_case = case_metrics(ranks, offsets, ks=ks)
    if users is None:
        return {name: float(values.mean()) for name, values in per_case.items()}
    return {name: float(user_means(values, users).mean()) for name, values in per_case.items()}


def user_means(values: FloatArray, users: IntArray) -> FloatArray:
    """Means of (U,) case values over the cases of each user, in ascending order of user."""
    _, row = np.unique(users, return_inverse=True)
    return np.bincount(row, weights=values) / np.bincount(row)


def list_metrics(
    top_items: IntArray,
    popularity: IntArray,
    *,
    num_candidates: int,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """What the shown lists look like, whether or not they hit.

        coverage@K    distinct items shown / candidates
        novelty@K     mean over shown items of -log2((n + 1) / (E + N)), bits: the self-information
                      of meeting the item in the training log (n of its E events), add-one smoothed
                      so that an item without events has a value
        popularity@K  mean over shown items of n
        gini@K        inequality of exposure: with e_1 <= ... <= e_C how often each candidate is
                      shown, sum_i (2 i - C - 1) e_i / (C sum_i e_i); 0 where all are shown equally
                      often, near 1 where few items are all that is shown (Shani and Gunawardana,
                      2011, who divide by C - 1)

    Args:
        top_items: (U, K_max) item_index, best first; -1 where a list is shorter.
        popularity: (N,) training events of each item.
        num_candidates: how many items could have been shown.
        ks: the list lengths; a K above K_max is left out.
    """
    surprise = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    metrics: dict[str, float] = {}
    for k in ks:
        shown = top_items[:, :k]
        shown = shown[shown >= 0]
        if k > top_items.shape[1] or not len(shown):
            continue
        metrics[f"coverage@{k}"] = len(np.unique(shown)) / num_candidates
        metrics[f"novelty@{k}"] = float(surprise[shown].mean())
        metrics[f"popularity@{k}"] = float(popularity[shown].mean())
        metrics[f"gini@{k}"] = gini(np.bincount(shown), num_candidates)
    return metrics


def gini(counts: IntArray, num_candidates: int) -> float:
    """Gini index of how often each candidate is shown; see `list_metrics` for the formula.

    Args:
        counts: how often items are shown, at least one of them; those not given are never shown.
        num_candidates: C, at least as many as are shown.
    """
    shown = np.sort(counts[counts > 0])
    place = np.arange(num_candidates - len(shown), num_candidates) + 1
    weight = 2 * place - num_candidates - 1
    return float((weight * shown).sum() / (num_candidates * shown.sum()))


def bootstrap_interval(
    values: FloatArray, *, level: float = 0.95, num_samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron, 1979).

    Args:
        values: (U,) one value a user, e.g. `user_means` of a metric.
        level: chance that the interval holds the mean.
        num_samples: resamples of the users with replacement.
        seed: of the resampling.

    Raises:
        ValueError: there is no user.
    """
    if not len(values):
        raise ValueError("a bootstrap interval needs at least one user")
    generator = np.random.default_rng(seed)
    means = [
        values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_samples)
    ]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    first: FloatArray, second: FloatArray, *, num_samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of a paired randomisation test that two models have the same mean.

    The signs of the users' differences are flipped at random (Fisher's test; Smucker et al., 2007,
    recommend it for ranked lists); the p-value counts the observed signs as one of the samples.

    Args:
        first: (U,) values of one model, one a user.
        second: (U,) values of the other for the same users in the same order.
        num_samples: random sign patterns.
        seed: of the signs.

    Raises:
        ValueError: the two do not pair up.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"values of {first.shape} and {second.shape} users do not pair up")
    difference = first - second
    difference = difference[difference != 0]  # a sign on zero changes nothing
    observed = abs(difference.sum())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(num_samples):
        signs = generator.integers(2, size=len(difference), dtype=np.int8) * 2.0 - 1.0
        extreme += abs(signs @ difference) >= observed - 1e-12
    return float((extreme + 1) / (num_samples + 1))
