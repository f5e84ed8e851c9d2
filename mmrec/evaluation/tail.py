"""What unpopular items get: how often they are shown and found as less of the popularity counts.

    validation cases, our vectors ─► items with a share of the popularity term ─► ranks, lists
                                                                              └► a TailPoint a share

Head and tail are those of `mmrec.evaluation.breakdown`: items that hold a third of the training
events each. Items without events are neither; their dial is the offset (`mmrec.evaluation.sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmrec.data.ragged import IntArray
from mmrec.evaluation.asked import Asked
from mmrec.evaluation.breakdown import thirds
from mmrec.evaluation.metrics import metrics_from_ranks
from mmrec.evaluation.protocol import BoolArray, Cases
from mmrec.evaluation.ranking import Ranking
from mmrec.model import RecommenderModel
from mmrec.training.validate import rank

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 10


@dataclass(frozen=True)
class TailPoint:
    """Figures of one share of the popularity term; None where no target is of that kind.

    Attributes:
        popularity_share: 1 is the model as trained.
        tail_coverage: share of the tail's candidates that are in at least one list of ten.
        tail_exposure: share of the places of all lists of ten that the tail holds.
        tail_recall: recall@10 of the tail's targets, the mean over the users who have any.
        tail_ndcg: NDCG@10 of the same.
        head_ndcg: NDCG@10 of the head's targets.
        ndcg: NDCG@10 of all targets.
    """

    popularity_share: float
    tail_coverage: float | None
    tail_exposure: float
    tail_recall: float | None
    tail_ndcg: float | None
    head_ndcg: float | None
    ndcg: float | None


def tail_curve(
    model: RecommenderModel, asked: Asked, popularity: IntArray, shares: Sequence[float] = SHARES
) -> list[TailPoint]:
    """The model's figures at several shares; nothing without a popularity term.

    Args:
        model: the trained one.
        asked: its vectors for the validation cases.
        popularity: (N,) training events of each item.
        shares: which; that of the model joins them.
    """
    if model.popularity is None:
        return []
    cases, users, items = asked.cases, asked.users, asked.items
    counts = torch.from_numpy(popularity[cases.candidates]).to(items.device)
    with torch.no_grad():
        term = model.popularity(counts) * model.temperature
    curve = []
    for share in sorted({*shares, model.popularity_share}):
        moved = items.clone()
        moved[:, -1] += (share - model.popularity_share) * term
        curve.append(tail_point(share, rank(cases, users, moved), cases, popularity))
    return curve


def tail_point(share: float, ranking: Ranking, cases: Cases, popularity: IntArray) -> TailPoint:
    """Figures of one ranking of the cases.

    Args:
        share: of the popularity term that it was made with.
        ranking: of the cases.
        cases: who is asked what.
        popularity: (N,) training events of each item.
    """
    part = thirds(popularity, popularity)
    shown = ranking.top_items[:, :SHOWN]
    shown = shown[shown >= 0]
    tail = cases.candidates[part[cases.candidates] == 0]
    target_part = part[cases.targets.values]
    of_tail = _accuracy(ranking, cases, target_part == 0)
    of_head = _accuracy(ranking, cases, target_part == 2)
    of_all = _accuracy(ranking, cases, np.ones(len(target_part), dtype=bool))
    return TailPoint(
        popularity_share=share,
        tail_coverage=float(np.isin(tail, shown).mean()) if len(tail) else None,
        tail_exposure=float((part[shown] == 0).mean()) if len(shown) else 0.0,
        tail_recall=of_tail.get("recall@10"),
        tail_ndcg=of_tail.get("ndcg@10"),
        head_ndcg=of_head.get("ndcg@10"),
        ndcg=of_all.get("ndcg@10"),
    )


def _accuracy(ranking: Ranking, cases: Cases, wanted: BoolArray) -> dict[str, float]:
    """Metrics of the wanted targets (T,) as if there were no others; empty where there is none."""
    targets = cases.targets.keep(wanted)
    rows = np.flatnonzero(targets.lengths)
    asked = targets.take(rows)
    return metrics_from_ranks(
        ranking.rank[wanted], asked.offsets, cases.user_index[rows], ks=(SHOWN,)
    )
