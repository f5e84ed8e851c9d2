"""The offset of items without events, chosen on validation for a stated warm cost.

Training never meets such an item, so its score lacks what popularity and the id part give the
others. One number added to all of them trades warm accuracy for cold: it is part of the model and
a dial in use. It is chosen on `cold_validation`; `cold_test` is not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmrec.evaluation.evaluate import slice_metrics
from mmrec.training.validate import Validation, rank

if TYPE_CHECKING:
    from mmrec.build import Assembly

NUM_COARSE = 17
NUM_FINE = 11


def choose_offset(
    assembly: Assembly, looked: Validation, *, max_cost: float
) -> tuple[float, list[dict[str, float]]]:
    """Finds the offset with the best cold NDCG@10 among those that cost little.

    Args:
        assembly: the run's parts.
        looked: a look at validation whose vectors hold the model's present offset.
        max_cost: largest share of the warm NDCG@10 (at offset 0) that may be lost.

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

    def look(cosine: float) -> dict[str, float]:
        offset = cosine / tau
        items = looked.items.clone()
        items[unseen, -1] += (offset - present) * tau
        metrics = slice_metrics(
            rank(cases, looked.users, items), cases, popularity=assembly.popularity
        )
        warm, among = metrics["warm"], metrics["cold"]
        assert warm is not None and among is not None
        return {
            "offset": offset,
            "warm_ndcg@10": warm["ndcg@10"],
            "warm_hr@10": warm["hr@10"],
            "cold_ndcg@10": among["ndcg@10"],
            "cold_hr@10": among["hr@10"],
        }

    def best_of(points: list[dict[str, float]]) -> dict[str, float]:
        within = [point for point in points if point["warm_ndcg@10"] >= (1 - max_cost) * base]
        return max(within, key=lambda point: (point["cold_ndcg@10"], -abs(point["offset"])))

    # few users and items are told apart by more than 0.8 of cosine: the ends put cold items last
    # and first
    coarse = torch.linspace(-0.2, 0.6, NUM_COARSE).tolist()
    curve = [look(cosine) for cosine in coarse]
    base = min(curve, key=lambda point: abs(point["offset"]))["warm_ndcg@10"]
    centre = best_of(curve)["offset"] * tau
    step = coarse[1] - coarse[0]
    curve += [look(c) for c in torch.linspace(centre - step, centre + step, NUM_FINE).tolist()]
    curve.sort(key=lambda point: point["offset"])
    return best_of(curve)["offset"], curve
