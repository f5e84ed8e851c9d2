"""Lists of both stages: of what retrieval puts first, the order of the second stage.

    scored candidates ─ what may be listed, best first ─► Pool ─ first num ─► second stage ─┐
                                                            └─ the rest, behind them ───────┴─► list

Legend: C candidates · K list length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.retrieval.lists import Basis, Recommendation, Scored, allowed_scores, make_list
from mmrec.retrieval.rerank import POOL
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.second_stage import RankedItems
from mmrec.retrieval.wishes import Wishes


@dataclass(frozen=True)
class RankedRecommendation(Recommendation):
    """One item of a list that the second stage has ordered.

    Attributes:
        retrieval_rank: its place by retrieval alone.
        heads: what the ranker's heads tell: values, and probabilities where these are calibrated;
            empty for an item below those that were ranked.
    """

    retrieval_rank: int = 0
    heads: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """Candidates of one user that may be listed, best first by retrieval.

    Attributes:
        rows: (C,) item_index.
        scores: (C,) in units of cosine, age taken off.
        num: how many of them the second stage is to rank.
        basis: what the scores were made from.
    """

    rows: IntArray
    scores: Tensor
    num: int
    basis: Basis


def make_pool(
    retriever: Retriever,
    scored: Scored,
    k: int,
    num_candidates: int,
    *,
    now: float,
    wishes: Wishes,
) -> Pool:
    """What may be listed, and how much of it is ranked.

    Args:
        retriever: the model and its items.
        scored: by retrieval.
        k: how many items the list holds.
        num_candidates: how many are ranked, unless the list needs more.
        now: Unix seconds at which items must be available and age is counted.
        wishes: what the list is asked to be like.
    """
    scores, order = allowed_scores(retriever, scored, now, wishes).sort(
        descending=True, stable=True
    )
    num_left = int(torch.isfinite(scores).sum())
    moved = wishes.diversity or wishes.max_per or wishes.prefer or wishes.novelty
    wanted = k * POOL if moved else k
    rows = scored.rows[order[:num_left].cpu().numpy()]
    num = min(max(wanted, num_candidates), num_left)
    return Pool(rows, scores[:num_left], num, scored.basis)


def ranked_list(
    retriever: Retriever, pool: Pool, ranked: RankedItems, k: int, *, now: float, wishes: Wishes
) -> list[Recommendation]:
    """A list whose scores are those of both stages.

    Candidates below those that are ranked keep their order behind them, so that a list is full
    where limits or wishes take much of the ranked ones.

    Args:
        retriever: the model and its items.
        pool: what may be listed.
        ranked: its first `num`.
        k: how many items the list holds.
        now: as the pool was made.
        wishes: as the pool was made.
    """
    scores, rest = torch.from_numpy(ranked.scores).to(pool.scores), pool.scores[pool.num :]
    if len(rest):
        rest = rest - (rest[0] - scores[-1]).clamp(min=0)
    rows = np.concatenate([ranked.items, pool.rows[pool.num :]])
    places = {int(row): place for place, row in enumerate(rows)}
    both = Scored(rows, torch.cat([scores, rest]), pool.basis)
    # age has taken its part before the ranker saw the scores
    found = make_list(retriever, both, k, now=now, wishes=replace(wishes, half_life_hours=None))
    return [
        _as_ranked(entry, ranked, places[retriever.items.rows[entry.item_id]]) for entry in found
    ]


def _as_ranked(entry: Recommendation, ranked: RankedItems, place: int) -> RankedRecommendation:
    """What the second stage says of an entry beside its score; below those ranked, its place."""
    is_ranked = place < len(ranked.items)
    heads = ranked.heads if is_ranked else {}
    return RankedRecommendation(
        entry.rank,
        entry.item_id,
        entry.score,
        entry.title,
        entry.basis,
        entry.probability,
        retrieval_rank=int(ranked.retrieval_rank[place]) if is_ranked else place + 1,
        heads={name: float(values[place]) for name, values in heads.items()},
    )
