"""Whether the model's probabilities are what they say: predicted against observed shares of hits.

softmax over the candidates ─► probability that the next item is among the first K ─► beside hits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mmrec.evaluation.metrics import FloatArray
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer
from mmrec.evaluation.scores import masked_scores

NUM_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Predicted beside observed, in bins of equal size.

    Attributes:
        k: the event is that the item met next is among the first k.
        slice: which cases.
        num_cases: how many.
        error: expected calibration error, 0 to 1.
        predicted: mean probability of each bin, ascending.
        observed: share of hits of each bin.
        counts: cases of each bin.
    """

    k: int
    slice: str
    num_cases: int
    error: float
    predicted: list[float]
    observed: list[float]
    counts: list[int]


def reliability(
    probability: FloatArray,
    hit: npt.NDArray[np.bool_],
    *,
    k: int,
    slice_name: str,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """Expected calibration error and its bins.

        ECE = sum_b n_b / n |mean probability in b - share of hits in b|

    Naeini et al. (2015) and Guo et al. (2017) with bins of equal size, not of equal width:
    where thousands of items compete nearly all probabilities are small, and would share a bin.

    Args:
        probability: (n,) predicted, 0 to 1; n is 1 at least.
        hit: (n,) whether it came true.
        k: the event, see `Reliability`.
        slice_name: which cases.
        num_bins: how many bins, at most n.
    """
    order = np.argsort(probability, kind="stable")
    bins = [part for part in np.array_split(order, num_bins) if len(part)]
    predicted = np.array([probability[part].mean() for part in bins])
    observed = np.array([hit[part].mean() for part in bins])
    counts = np.array([len(part) for part in bins])
    error = float((counts * np.abs(predicted - observed)).sum() / counts.sum())
    return Reliability(
        k=k,
        slice=slice_name,
        num_cases=len(probability),
        error=error,
        predicted=predicted.tolist(),
        observed=observed.tolist(),
        counts=counts.tolist(),
    )


def list_probabilities(
    scorer: VectorScorer, cases: Cases, *, temperature: float, ks: Sequence[int]
) -> dict[int, tuple[FloatArray, npt.NDArray[np.bool_]]]:
    """Probability that a case's item is among the first K, and whether one of its targets is.

        p_K = sum over the first K of softmax(score / tau)

    over the candidates that the case may be shown: training's softmax, without what was met.

    Args:
        scorer: our vectors; scores in units of cosine.
        cases: who is asked what.
        temperature: tau.
        ks: the list lengths.

    Returns:
        K -> (U,) probabilities and (U,) hits.
    """
    device = scorer.item_vectors.device
    column_of = np.full(cases.num_items, -1, dtype=np.int64)
    column_of[cases.candidates] = np.arange(len(cases.candidates))
    mass = {k: np.empty(len(cases)) for k in ks}
    hits = {k: np.zeros(len(cases), dtype=np.bool_) for k in ks}
    for rows, scores in masked_scores(scorer, cases, device=device):
        length = min(max(ks), scores.shape[1])
        top, columns = torch.softmax(scores / temperature, dim=1).topk(length, dim=1)
        targets = cases.targets.take(rows)
        wanted = torch.from_numpy(column_of[targets.values]).to(device)
        found = columns[torch.from_numpy(targets.row_of_value).to(device)] == wanted[:, None]
        for k in ks:
            mass[k][rows] = top[:, :k].double().sum(1).cpu().numpy()
            of_target = found[:, :k].any(1).cpu().numpy()
            hits[k][rows[targets.row_of_value[of_target]]] = True
    return {k: (mass[k], hits[k]) for k in ks}


def our_reliability(
    scorer: VectorScorer, cases: Cases, *, temperature: float, ks: Sequence[int] = (1, 10)
) -> list[Reliability]:
    """Reliability of our model on warm cases, the ones its softmax was trained for.

    Where a split has none, all cases count.
    """
    warm = np.array([name == "warm" for name in cases.slice], dtype=np.bool_)
    chosen, slice_name = (warm, "warm") if warm.any() else (~warm, "all")
    found = list_probabilities(scorer, cases, temperature=temperature, ks=ks)
    return [
        reliability(probability[chosen], hit[chosen], k=k, slice_name=slice_name)
        for k, (probability, hit) in found.items()
    ]
