"""Lists in which new items stand last within the first places: who is listed is as before.

    by score     known  NEW  known  known  NEW | known ...
    new last     known  known  known  NEW  NEW | known ...

A new item that is met counts the same wherever it stood among the first ten, and one that nobody
wants costs least at their end: the same loss of warm NDCG buys more hits on new items. What they
gain in hits they lose in places: their own NDCG is lower than that of as many hits by score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.evaluation.metrics import FloatArray
from mmrec.retrieval.rerank import new_last

if TYPE_CHECKING:
    from mmrec.evaluation.protocol import BoolArray
    from mmrec.evaluation.ranking import Scorer

NEW_LAST = ", new last"  # behind a model's name: its lists with new items last in the first ten


@dataclass(frozen=True)
class NewLast:
    """A scorer whose lists have new items last.

    Attributes:
        scorer: whose scores they are.
        places: P, the first so many places of a list.
        is_new: (C,) True = training had no event of the candidate.
    """

    scorer: Scorer
    places: int
    is_new: BoolArray

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """The scores as they are."""
        return self.scorer.score(case_rows, candidate_rows)


def in_lists(scorer: Scorer, places: int | None, is_new: BoolArray) -> Scorer:
    """A scorer as `evaluation.new_last` has its lists; None: by score."""
    return scorer if places is None else NewLast(scorer, places, is_new)


def ranks_new_last(
    rank: FloatArray,
    *,
    among_new: FloatArray,
    among_known: FloatArray,
    is_new: BoolArray,
    num_known: IntArray,
    places: int,
) -> FloatArray:
    """Ranks of targets where new items stand last; of items below the first places as by score.

    Args:
        rank: (T,) by score.
        among_new: (T,) among new candidates only; read of new targets.
        among_known: (T,) among the others only; read of the others.
        is_new: (T,).
        num_known: (T,) how many of the others the first places hold.
        places: P.
    """
    moved = np.where(is_new, num_known + among_new, among_known)
    return np.where(rank <= places, moved, rank)


def order_lists(top_items: IntArray, is_new: BoolArray, places: int) -> tuple[IntArray, IntArray]:
    """How the items of lists move, and how many known ones their first places hold.

    Args:
        top_items: (U, K) item_index, best first; -1 where there is none.
        is_new: (N,).
        places: P, at most K.

    Returns:
        (U, K) columns in their new order, and (U,).
    """
    absent = top_items < 0
    new = is_new[top_items] | absent  # -1 reads some item: it is absent whatever that says
    return new_last(new, places), (~new[:, :places]).sum(axis=1)
