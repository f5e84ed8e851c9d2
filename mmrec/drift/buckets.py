"""Values of two sides in common buckets, of which the population stability index is taken.

What is not known has a bucket of its own: values that go missing are a gap like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrec.drift.two_samples import FloatArray, Gap, Z, stability_gap

NUM_QUANTILES = 10
MAX_CATEGORIES = 20
"""Values with a bucket of their own, the most frequent of both sides; the others share one."""
FEWEST_OF_A_CATEGORY = 10
"""Items of both sides together; the index of rarer values is noise."""

NUM_DEALS = 100

Categories = Sequence[Sequence[str]]
"""The values of each item, none where they are not known."""


def number_gap(earlier: FloatArray, new: FloatArray) -> Gap:
    """Stability of a number, in buckets that hold equal parts of the earlier side.

    Args:
        earlier: (n,) numbers, NaN where not known.
        new: (m,) likewise.
    """
    edges = _edges(earlier[~np.isnan(earlier)])
    counts = []
    for side in (earlier, new):
        known = side[~np.isnan(side)]
        filled = np.bincount(np.digitize(known, edges), minlength=len(edges) + 1)
        counts.append(np.array([*filled, len(side) - len(known)], np.float64))
    return stability_gap(*counts, num_earlier=len(earlier), num_new=len(new))


def _edges(known: FloatArray) -> FloatArray:
    """Edges of buckets: quantiles, and both ends, beyond which lies what the side does not have.

    An edge lies half-way between two values that occur, so that a side whose numbers are all a
    hair's breadth larger falls into the same buckets.
    """
    values = np.unique(known)
    if not len(values):
        return np.zeros(0)
    asked = np.quantile(known, np.arange(1, NUM_QUANTILES) / NUM_QUANTILES)
    above = np.searchsorted(values, asked, side="right")
    inner = above[above < len(values)]
    margin = 0.01 * ((values[-1] - values[0]) or abs(values[0]) or 1.0)
    ends = [values[0] - margin, values[-1] + margin]
    return np.unique([*ends, *(values[inner - 1] + values[inner]) / 2])


def category_gap(earlier: Categories, new: Categories) -> Gap:
    """Stability of a category or a set; the values of a set share their item.

    The buckets are chosen from both sides at once: values that are frequent on the earlier side
    alone would be, by their choice, a little rarer on the other.

    Args:
        earlier: of n items.
        new: of m items.
    """
    totals = Counter(value for side in (earlier, new) for item in side for value in set(item))
    often = [value for value, count in totals.items() if count >= FEWEST_OF_A_CATEGORY]
    kept = sorted(often, key=lambda value: (-totals[value], value))[:MAX_CATEGORIES]
    bucket_of = {value: bucket for bucket, value in enumerate(kept)}
    counts = []
    for side in (earlier, new):
        filled = np.zeros(len(kept) + 2)  # then all other values, then not known
        for item in side:
            for value in item:
                filled[bucket_of.get(value, len(kept))] += 1 / len(item)
            filled[-1] += not item
        counts.append(filled)
    return stability_gap(*counts, num_earlier=len(earlier), num_new=len(new))


def unseen_gap(earlier: Categories, new: Categories, *, limit: float, seed: int = 0) -> Gap:
    """Share of the new side's values that the earlier side does not have.

    A long tail of values is never seen whole. As many as are unseen where the items of both sides
    are dealt out anew, at random, are no gap: their mean and spread over deals is added to the
    limit.

    Args:
        earlier: of n items, one of them with a value.
        new: of m items, likewise.
        limit: of the share, without chance.
        seed: of the deals.
    """
    items = [*earlier, *new]
    code_of: dict[str, int] = {}
    codes = np.array([code_of.setdefault(v, len(code_of)) for item in items for v in item])
    item_of = np.repeat(np.arange(len(items)), [len(item) for item in items])
    is_new = np.arange(len(items)) >= len(earlier)

    def unseen(is_new: npt.NDArray[np.bool_]) -> float:
        asked = is_new[item_of]
        met = np.bincount(codes[~asked], minlength=len(code_of)) > 0
        return float((~met[codes[asked]]).mean()) if asked.any() else 0.0

    random = np.random.default_rng((seed, 4))
    by_chance = [unseen(random.permutation(is_new)) for _ in range(NUM_DEALS)]
    return Gap(unseen(is_new), limit + float(np.mean(by_chance)) + Z * float(np.std(by_chance)))
