"""What items without events get in place of popularity, chosen on validation for a warm cost.

    content of items in training ─ ridge regression ─► popularity that a new item can expect
    share of it, offset ─► the best figure of new items that costs little ─► both kept in the model

Training never meets such an item, so its score lacks what popularity and the id part give the
others. One number added to all of them trades warm accuracy for cold. A share of what their content
lets expect (a sequel, a known cast) tells them apart too, and lets the right ones through at the
same cost: expected of a regression towards the mean, it needs no trust in single items. Both are
part of the model and dials in use. They are chosen on `cold_validation`; `cold_test` is not looked
at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrec.evaluation.evaluate import rank_metrics
from mmrec.evaluation.new_last import in_lists
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.training.validate import Validation

if TYPE_CHECKING:
    from mmrec.build import Assembly
    from mmrec.config import EvaluationConfig

NUM_COARSE = 17
NUM_FINE = 11
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# of items of unit content, some thousands of which have a hundred directions; between .01 and 10
# what a regression tells of items left out hardly differs
RIDGE = 1.0


@dataclass(frozen=True)
class NewItems:
    """What was chosen for items without events.

    Attributes:
        offset: in logits.
        share: of the expected popularity.
        expectation: (D + 1,) weights of the content and a constant, the share in them; None for
            none.
        curve: offset, warm and cold NDCG@10 and HR@10 of each offset tried with that share.
    """

    offset: float = 0.0
    share: float = 0.0
    expectation: Tensor | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


def choose_for_new(assembly: Assembly, looked: Validation, settings: EvaluationConfig) -> NewItems:
    """Finds share and offset with the best cold NDCG@10 among those that cost little.

    Args:
        assembly: the run's parts; its model expects nothing of new items yet.
        looked: a look at validation whose vectors hold the model's present offset.
        settings: the largest cost, and whether anything is expected.
    """
    offset, curve = choose_offset(
        assembly, looked, max_cost=settings.warm_cost, new_last=settings.new_last
    )
    chosen = NewItems(offset, curve=curve)
    model = assembly.model
    if not curve or not settings.expected_popularity or model.popularity is None:
        return chosen
    assert looked.content is not None
    rows = torch.from_numpy(assembly.item_index_of).to(looked.content.device)
    popularity = settings.popularity_share * model.popularity(model.counts).detach()
    expectation = expect_popularity(looked.content[rows], popularity)
    cases = assembly.validation
    assert cases is not None
    candidates = torch.from_numpy(cases.candidates).to(rows.device)
    unseen = ~torch.isin(candidates, rows)
    expected = looked.content[candidates[unseen]] @ expectation[:-1] + expectation[-1]
    base = _warm_at_zero(curve)
    best = _at(curve, offset)
    for share in SHARES[1:]:
        items = looked.items.clone()
        items[unseen, -1] += share * expected * model.temperature.detach()
        offset, curve = choose_offset(
            assembly,
            replace(looked, items=items),
            max_cost=settings.warm_cost,
            base=base,
            new_last=settings.new_last,
        )
        point = _at(curve, offset)
        cheap = point["warm_ndcg@10"] >= (1 - settings.warm_cost) * base
        if cheap and point["cold_ndcg@10"] > best["cold_ndcg@10"]:
            best = point
            chosen = NewItems(offset, share, share * expectation, curve)
    return chosen


def expect_popularity(content: Tensor, popularity: Tensor) -> Tensor:
    """Ridge regression of popularity on content; the constant is not drawn to 0.

    Args:
        content: (R, D) of items in training.
        popularity: (R,) what each of their logits gets for it.

    Returns:
        (D + 1,) weights of the content, and the constant, in fp32.
    """
    inputs, answers = content.double(), popularity.double()
    centre, mean = inputs.mean(0), answers.mean()
    inputs = inputs - centre
    squares = inputs.T @ inputs
    squares.diagonal().add_(RIDGE)
    weights = torch.linalg.solve(squares, inputs.T @ (answers - mean))
    return torch.cat([weights, (mean - centre @ weights)[None]]).float()


def choose_offset(
    assembly: Assembly,
    looked: Validation,
    *,
    max_cost: float,
    base: float | None = None,
    new_last: int | None = None,
) -> tuple[float, list[dict[str, float]]]:
    """Finds the offset with the best cold NDCG@10 among those that cost little.

    Args:
        assembly: the run's parts.
        looked: a look at validation whose vectors hold the model's present offset.
        max_cost: largest share of the warm NDCG@10 that may be lost.
        base: what it is a share of; None: the figure at offset 0.
        new_last: lists as `evaluation.new_last` has them.

    Returns:
        The offset in logits (0 where validation has no cold items or the model knows no media)
        and the curve: offset, warm and cold NDCG@10 and HR@10 of each offset tried.
    """
    cases = assembly.validation
    assert cases is not None
    cold = torch.from_numpy(cases.candidate_is_cold).to(looked.items.device)
    if looked.content is None or not bool(cold.any()) or looked.metrics.get("cold") is None:
        return 0.0, []
    tau = float(assembly.model.temperature.detach())
    present = float(assembly.model.offset)
    counts = torch.zeros(cases.num_items, device=looked.items.device)
    counts[torch.from_numpy(assembly.item_index_of).to(counts.device)] = assembly.model.counts
    unseen = counts[torch.from_numpy(cases.candidates).to(counts.device)] == 0
    is_new = unseen.cpu().numpy()

    def look(cosine: float) -> dict[str, float]:
        offset = cosine / tau
        items = looked.items.clone()
        items[unseen, -1] += (offset - present) * tau
        # what no offset is chosen by costs more than ranking: lists of fifty, and all about them
        scorer = in_lists(VectorScorer(looked.users, items), new_last, is_new)
        ranking = rank_cases(scorer, cases, top_k=1, device=looked.users.device)
        warm, among = (rank_metrics(ranking, cases, name, ks=(10,)) for name in ("warm", "cold"))
        return {
            "offset": offset,
            "warm_ndcg@10": warm["ndcg@10"],
            "warm_hr@10": warm["hr@10"],
            "cold_ndcg@10": among["ndcg@10"],
            "cold_hr@10": among["hr@10"],
        }

    def best_of(points: list[dict[str, float]]) -> dict[str, float]:
        within = [point for point in points if point["warm_ndcg@10"] >= least]
        within = within or [points[0]]  # new items stand last there: no offset costs less
        return max(within, key=lambda point: (point["cold_ndcg@10"], -abs(point["offset"])))

    # few users and items are told apart by more than 0.8 of cosine: the ends put cold items last
    # and first
    coarse = torch.linspace(-0.2, 0.6, NUM_COARSE).tolist()
    curve = [look(cosine) for cosine in coarse]
    least = (1 - max_cost) * (_warm_at_zero(curve) if base is None else base)
    centre = best_of(curve)["offset"] * tau
    step = coarse[1] - coarse[0]
    curve += [look(c) for c in torch.linspace(centre - step, centre + step, NUM_FINE).tolist()]
    curve.sort(key=lambda point: point["offset"])
    return best_of(curve)["offset"], curve


def _warm_at_zero(curve: list[dict[str, float]]) -> float:
    return min(curve, key=lambda point: abs(point["offset"]))["warm_ndcg@10"]


def _at(curve: list[dict[str, float]], offset: float) -> dict[str, float]:
    return next(point for point in curve if point["offset"] == offset)
