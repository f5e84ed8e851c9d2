"""The offset of items without events: the best cold figure among those that cost little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mmrec.data.ragged import Ragged
from mmrec.evaluation.evaluate import slice_metrics
from mmrec.evaluation.protocol import Cases
from mmrec.training.calibrate import choose_offset
from mmrec.training.validate import Validation, rank

NUM_WARM, NUM_COLD, NUM_USERS = 30, 10, 60


def world(gap: float) -> tuple[Any, Validation]:
    """Users near their targets; cold items score `gap` lower in cosine than they should."""
    random = np.random.default_rng(0)
    num_items = NUM_WARM + NUM_COLD
    items = torch.nn.functional.normalize(torch.randn(num_items, 8, generator=_generator()), dim=1)
    warm = random.integers(0, NUM_WARM, NUM_USERS)
    cold = random.integers(NUM_WARM, num_items, NUM_USERS)
    targets = np.concatenate([warm, cold])
    noise = torch.randn(2 * NUM_USERS, 8, generator=_generator())
    users = torch.nn.functional.normalize(items[torch.from_numpy(targets)] + 0.5 * noise, dim=1)
    bias = torch.zeros(num_items)
    bias[NUM_WARM:] = -gap
    empty = Ragged.from_rows([[] for _ in targets])
    cases = Cases(
        user_index=np.concatenate([np.arange(NUM_USERS)] * 2),
        history=empty,
        seen=empty,
        targets=Ragged.from_rows([[target] for target in targets]),
        slice=["warm"] * NUM_USERS + ["cold"] * NUM_USERS,
        candidates=np.arange(num_items),
        candidate_is_cold=np.arange(num_items) >= NUM_WARM,
        num_items=num_items,
    )
    user_side = torch.cat([users, torch.ones(len(users), 1)], dim=1)
    item_side = torch.cat([items, bias[:, None]], dim=1)
    popularity = np.array([5] * NUM_WARM + [0] * NUM_COLD)
    metrics = slice_metrics(rank(cases, user_side, item_side), cases, popularity=popularity)
    model = SimpleNamespace(
        temperature=torch.tensor(0.1), offset=torch.tensor(0.0), counts=torch.full((NUM_WARM,), 5.0)
    )
    assembly = SimpleNamespace(
        validation=cases, model=model, item_index_of=np.arange(NUM_WARM), popularity=popularity
    )
    return assembly, Validation(metrics, items, user_side, item_side)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_offset_lifts_cold_items_within_the_cost() -> None:
    assembly, looked = world(gap=0.4)
    offset, curve = choose_offset(assembly, looked, max_cost=0.05)
    chosen = next(point for point in curve if point["offset"] == offset)
    at_zero = min(curve, key=lambda point: abs(point["offset"]))
    assert offset > 0 and chosen["cold_ndcg@10"] > at_zero["cold_ndcg@10"]
    assert chosen["warm_ndcg@10"] >= 0.95 * at_zero["warm_ndcg@10"]
    better = [point for point in curve if point["cold_ndcg@10"] > chosen["cold_ndcg@10"]]
    assert all(point["warm_ndcg@10"] < 0.95 * at_zero["warm_ndcg@10"] for point in better)


def test_a_larger_cost_gives_more_cold_hits() -> None:
    assembly, looked = world(gap=0.4)
    cheap, curve = choose_offset(assembly, looked, max_cost=0.0)
    dear, other = choose_offset(assembly, looked, max_cost=0.3)
    cold = {p["offset"]: p["cold_ndcg@10"] for p in [*curve, *other]}
    assert cold[dear] > cold[cheap]


def test_curve_trades_warm_for_cold_monotonically_at_its_ends() -> None:
    assembly, looked = world(gap=0.4)
    _, curve = choose_offset(assembly, looked, max_cost=0.05)
    assert [p["offset"] for p in curve] == sorted(p["offset"] for p in curve)
    assert curve[0]["cold_ndcg@10"] < curve[-1]["cold_ndcg@10"]
    assert curve[0]["warm_ndcg@10"] > curve[-1]["warm_ndcg@10"]


def test_no_offset_without_cold_items_or_content() -> None:
    assembly, looked = world(gap=0.4)
    without_content = Validation(looked.metrics, None, looked.users, looked.items)
    assert choose_offset(assembly, without_content, max_cost=0.05) == (0.0, [])
