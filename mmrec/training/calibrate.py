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

NUM_OFFSETS = 25


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
    curve = []
    # cosines differ by at most 2; an offset beyond half of that puts every cold item first or last
    for cosine in torch.linspace(-0.25, 0.75, NUM_OFFSETS).tolist():
        offset = cosine / tau
        items = looked.items.clone()
        items[unseen, -1] += (offset - present) * tau
        metrics = slice_metrics(
            rank(cases, looked.users, items), cases, popularity=assembly.popularity
        )
        warm, among = metrics["warm"], metrics["cold"]
        assert warm is not None and among is not None
        curve.append(
            {
                "offset": offset,
                "warm_ndcg@10": warm["ndcg@10"],
                "warm_hr@10": warm["hr@10"],
                "cold_ndcg@10": among["ndcg@10"],
                "cold_hr@10": among["hr@10"],
            }
        )
    base = min(curve, key=lambda point: abs(point["offset"]))["warm_ndcg@10"]
    within = [point for point in curve if point["warm_ndcg@10"] >= (1 - max_cost) * base]
    best = max(within, key=lambda point: (point["cold_ndcg@10"], -abs(point["offset"])))
    return best["offset"], curve
