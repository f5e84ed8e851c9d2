"""How far two samples are apart, each figure with a limit that two halves of one set stay under.

    items in each bucket (B,) and (B,) ─► population stability index
    a share of the items of each side  ─► its difference

A limit is the size of a gap that matters, and what chance adds to it in samples of this size: a
large sample is not told of a gap that means nothing, a small one not of a gap that is chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

FEWEST = 20
"""Items a side; of fewer nothing is told."""
CHANCE = 0.001
"""How often chance alone may lift a figure to what is added to its limit: a report has dozens."""
Z = 3.3
"""The same in standard errors (two-sided)."""

PSI_LIMIT = 0.25
"""The usual reading of the index: below .1 nothing has moved, above .25 much has."""


@dataclass(frozen=True)
class Gap:
    """A figure and the limit above which it is large.

    Attributes:
        figure: what was measured.
        limit: it is large above this.
        interval: 95 % interval of the figure, where it has one.
        p_value: of a permutation test, where there was one.
    """

    figure: float
    limit: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None

    @property
    def is_large(self) -> bool:
        """Whether the figure is above its limit."""
        return self.figure > self.limit


def stability_gap(earlier: FloatArray, new: FloatArray, *, num_earlier: int, num_new: int) -> Gap:
    """Population stability index of two histograms: sum of (q - p) ln(q / p) over buckets.

    p and q are the buckets' shares, of counts to which half an item is added, so that an empty
    bucket is a large gap and not an infinite one. Of two samples of one set the index is near
    (1/n + 1/m) times a chi-square of B - 1 degrees of freedom (Yurdakul and Naranjo, "Statistical
    properties of the population stability index", 2020), whose upper end is added to the limit.

    Args:
        earlier: (B,) items in each bucket; whoever has several values counts in parts.
        new: (B,) likewise.
        num_earlier: n, items counted.
        num_new: m.
    """
    from scipy.special import chdtri  # half a second, which few commands need

    filled = (earlier + new) > 0
    p, q = earlier[filled] + 0.5, new[filled] + 0.5
    p, q = p / p.sum(), q / q.sum()
    figure = float(((q - p) * np.log(q / p)).sum())
    freedom = max(int(filled.sum()) - 1, 1)
    chance = float(chdtri(freedom, CHANCE)) * (1 / num_earlier + 1 / num_new)
    return Gap(figure, PSI_LIMIT + chance)


def share_gap(
    earlier: float, new: float, *, num_earlier: int, num_new: int, limit: float, two_sided: bool
) -> Gap:
    """Difference of two shares of items.

    Args:
        earlier: share of the n earlier items.
        new: share of the m new ones.
        num_earlier: n.
        num_new: m.
        limit: of the difference, without chance.
        two_sided: less is a gap as well.
    """
    whole = (earlier * num_earlier + new * num_new) / (num_earlier + num_new)
    error = math.sqrt(whole * (1 - whole) * (1 / num_earlier + 1 / num_new))
    difference = new - earlier
    return Gap(abs(difference) if two_sided else difference, limit + Z * error)
