"""What an evaluation found beside metrics and ranks; with those, all that the report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrec.evaluation.ablation import KnockoutRow
from mmrec.evaluation.breakdown import Breakdown
from mmrec.evaluation.confidence import Reliability
from mmrec.evaluation.cost import Costs
from mmrec.evaluation.data_facts import DataFacts
from mmrec.evaluation.evaluate import Metrics
from mmrec.evaluation.exposure import Exposure
from mmrec.evaluation.gap import Gap
from mmrec.evaluation.stability import Stability
from mmrec.evaluation.strips import UserStrip
from mmrec.evaluation.sweep import AtCost, Sweep
from mmrec.evaluation.tail import TailPoint
from mmrec.evaluation.variety import VarietyPoint


@dataclass(frozen=True)
class OffsetPoint:
    """Validation figures at one offset (in logits) of the items without events."""

    offset: float
    warm_ndcg: float
    cold_ndcg: float
    warm_hr: float
    cold_hr: float


@dataclass(frozen=True)
class Findings:
    """Each is left out of the report where it is empty.

    Attributes:
        strips: users taken evenly, to show with pictures.
        best: cases where our model did best.
        worst: cases where it did worst.
        knockout: figures with media left out, the whole model first.
        before: our metrics by slice before the first step, on the same cases.
        gap: from targets of training to those of validation.
        breakdowns: accuracy by counts of events.
        exposures: which groups of items the lists show.
        offset_curve: warm against cold on validation, as our offset was chosen.
        chosen_offset: our model's offset, in logits.
        warm_cost: share of warm NDCG@10 that the choice was allowed to cost.
        sweeps: cold against warm of every model on validation.
        at_costs: the same models on these cases, with offsets chosen there.
        popularity_share: share of our popularity term that the figures were made with.
        tail_curve: tail against head on validation, as that share falls.
        variety_curve: accuracy against diversity on validation, as lists are re-ranked.
        reliability: of our probabilities.
        costs: of training and use.
        facts: of the data.
        stability: of the lists, where `mmrec stability` measured it.
        diversity_by: in words, the vectors that the diversity of lists is measured with.
        miscalibration_by: attribute whose mix lists are compared by.
        simulated: say so beside the figures; also said where the catalogue's kind is `simulated`.
    """

    strips: Sequence[UserStrip] = ()
    best: Sequence[UserStrip] = ()
    worst: Sequence[UserStrip] = ()
    knockout: Sequence[KnockoutRow] = ()
    before: Mapping[str, Metrics | None] | None = None
    gap: Gap | None = None
    breakdowns: Sequence[Breakdown] = ()
    exposures: Sequence[Exposure] = ()
    offset_curve: Sequence[OffsetPoint] = ()
    chosen_offset: float | None = None
    warm_cost: float | None = None
    sweeps: Sequence[Sweep] = ()
    at_costs: Sequence[AtCost] = ()
    popularity_share: float | None = None
    tail_curve: Sequence[TailPoint] = ()
    variety_curve: Sequence[VarietyPoint] = ()
    reliability: Sequence[Reliability] = ()
    costs: Costs | None = None
    facts: DataFacts | None = None
    stability: Stability | None = None
    diversity_by: str | None = None
    miscalibration_by: str | None = None
    simulated: bool = False
