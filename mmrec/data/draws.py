"""What chance chooses for a step: items to encode, items to compare, events to hide.

Legend: L events of a history · P targets of a batch · M fresh items · N items in training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmrec.data.histories import IntArray


def draw_fresh(
    targets: IntArray, *, num_items: int, size: int | None, random: np.random.Generator
) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Chooses the items that a step encodes with gradient.

    Half are drawn uniformly from the batch's distinct targets, the rest uniformly from all items
    that were not drawn. So pi = a + (1 - a) b with a the share of the targets drawn (0 for other
    items) and b the share of the others drawn. M is the same in every step: new shapes cost memory.

    Args:
        targets: rows of the batch's targets.
        num_items: N.
        size: M; None or at least N means every item, with pi = 1.
        random: drawn from (seed, epoch, batch).

    Returns:
        M ascending rows and their 1 / pi.
    """
    if size is None or size >= num_items:
        return np.arange(num_items), np.ones(num_items, np.float32)
    distinct = np.unique(targets)
    from_targets = min(size - size // 2, distinct.shape[0])
    from_all = size - from_targets
    drawn = random.choice(distinct, from_targets, replace=False)
    others = np.ones(num_items, np.bool_)
    others[drawn] = False
    uniform = random.choice(np.flatnonzero(others), from_all, replace=False)
    fresh = np.sort(np.concatenate([drawn, uniform]))
    share = np.zeros(num_items)
    share[distinct] = from_targets / max(distinct.shape[0], 1)
    share = share[fresh]
    probability = share + (1 - share) * from_all / (num_items - from_targets)
    return fresh, (1 / probability).astype(np.float32)


def draw_candidates(
    targets: IntArray,
    fresh: IntArray,
    counts: IntArray,
    *,
    size: int,
    random: np.random.Generator,
) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Chooses the items that the loss compares: a uniform sample, the batch's targets, fresh items.

    The probability of being one is that of at least one of three draws: pi = 1 - (1 - a)(1 - b)
    (1 - c) with a = size / N, b = 1 - (1 - share of all events)^P of being one of P targets, and
    c the share of the items that are fresh. Fresh items lean towards targets, which b covers.

    Args:
        targets: (P,) rows of the batch's targets.
        fresh: rows of the items encoded with gradient.
        counts: (N,) training events of each item.
        size: of the uniform sample; N or more means every item, with pi = 1.
        random: drawn from (seed, epoch, batch).

    Returns:
        Ascending rows, and log pi of each.
    """
    num_items = counts.shape[0]
    if size >= num_items:
        return np.arange(num_items), np.zeros(num_items, np.float32)
    uniform = random.choice(num_items, size, replace=False)
    rows = np.unique(np.concatenate([uniform, targets, fresh]))
    share = counts[rows] / max(int(counts.sum()), 1)
    missed = (1 - size / num_items) * (1 - share) ** len(targets) * (1 - len(fresh) / num_items)
    return rows, np.log1p(-missed).astype(np.float32)


def hide_some(
    allowed: npt.NDArray[np.bool_], share: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Chooses the events of a history that are hidden: each by chance, and one in any case.

    Args:
        allowed: (L,) bool, events that may be.
        share: chance of each.
        random: drawn from (seed, epoch, batch).

    Returns:
        (L,) bool. Where chance hides none it is the last that may be, as in use.
    """
    hidden = allowed & (random.random(allowed.shape[0]) < share)
    if not hidden.any():
        hidden[np.flatnonzero(allowed)[-1:]] = True
    return hidden
