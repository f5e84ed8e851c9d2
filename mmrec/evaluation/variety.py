"""What variety costs: accuracy of the lists against their diversity, by the strength of re-ranking.

validation cases, our scores ─ best 100 ─ MMR or DPP ─► lists of ten ─► a VarietyPoint a strength
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmrec.evaluation.asked import Asked
from mmrec.evaluation.lists import LIST_LENGTH, intra_list_diversity
from mmrec.evaluation.metrics import metrics_from_ranks
from mmrec.evaluation.ranking import VectorScorer
from mmrec.evaluation.scores import masked_scores
from mmrec.retrieval.rerank import METHODS, POOL, Method, choose_varied, gain_of

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MOST_CASES = 1_000
"""Cases that the curves are taken on, evenly: 14 lists each take some 5 ms."""


@dataclass(frozen=True)
class VarietyPoint:
    """Figures of one strength.

    Attributes:
        method: `mmr` or `dpp`.
        strength: 0 is the order of the scores.
        ndcg: NDCG@10 of the targets, the mean over users.
        recall: recall@10.
        diversity: 1 - mean cosine over the pairs of a list, the mean over lists; None where no list
            has two items that can be compared.
    """

    method: Method
    strength: float
    ndcg: float
    recall: float
    diversity: float | None


def variety_curves(asked: Asked, vectors: Tensor) -> list[VarietyPoint]:
    """The curve of each method, on no more than `MOST_CASES` cases.

    Args:
        asked: a model's vectors for the cases.
        vectors: (N, V) as of `variety_curve`.
    """
    num_cases = len(asked.cases)
    if num_cases > MOST_CASES:
        rows = np.linspace(0, num_cases - 1, MOST_CASES).astype(np.int64)
        chosen = torch.from_numpy(rows).to(asked.users.device)
        asked = Asked(asked.cases.take(rows), asked.users[chosen], asked.items)
    return [point for method in METHODS for point in variety_curve(asked, vectors, method)]


def variety_curve(
    asked: Asked, vectors: Tensor, method: Method, strengths: Sequence[float] = STRENGTHS
) -> list[VarietyPoint]:
    """The figures of lists that are re-ranked at several strengths.

    Args:
        asked: a model's vectors for the cases.
        vectors: (N, V) unit vectors that items are compared by, zeros where an item has none.
        method: how variety is measured.
        strengths: from 0 to 1.
    """
    cases = asked.cases
    pool = min(POOL * LIST_LENGTH, len(cases.candidates))
    best: list[Tensor] = []
    scorer = VectorScorer(asked.users, asked.items)
    for _, scores in masked_scores(scorer, cases, device=asked.items.device):
        found = scores.sort(dim=1, descending=True, stable=True)
        best.append(torch.stack([found.values[:, :pool].double(), found.indices[:, :pool]]).cpu())
    scores_of, columns = torch.cat(best, dim=1).numpy()
    items = cases.candidates[columns.astype(np.int64)]  # (U, pool)
    known = vectors.double().cpu().numpy()
    curve = []
    for strength in strengths:
        shown = np.full((len(cases), LIST_LENGTH), -1)
        for row in range(len(cases)):
            listable = np.isfinite(scores_of[row])
            own = items[row][listable]
            gain = gain_of(method, scores_of[row][listable], known[own], strength)
            chosen = choose_varied(gain, len(own), LIST_LENGTH)
            shown[row, : len(chosen)] = own[chosen]
        curve.append(_point(asked, vectors, shown, method, strength))
    return curve


def _point(
    asked: Asked,
    vectors: Tensor,
    shown: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    method: Method,
    strength: float,
) -> VarietyPoint:
    cases = asked.cases
    own = shown[cases.targets.row_of_value]  # (T, 10)
    found = own == cases.targets.values[:, None]
    beyond = len(cases.candidates) + 1
    rank = np.where(found.any(1), found.argmax(1) + 1.0, beyond)
    metrics = metrics_from_ranks(rank, cases.targets.offsets, cases.user_index, ks=(LIST_LENGTH,))
    varied = intra_list_diversity(shown, vectors)
    told = varied[~np.isnan(varied)]
    return VarietyPoint(
        method=method,
        strength=strength,
        ndcg=metrics["ndcg@10"],
        recall=metrics["recall@10"],
        diversity=float(told.mean()) if len(told) else None,
    )
