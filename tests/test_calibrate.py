"""What items without events get: the best cold figure among the choices that cost little."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mmrec.config import EvaluationConfig
from mmrec.data.ragged import Ragged
from mmrec.evaluation.evaluate import slice_metrics
from mmrec.evaluation.protocol import Cases
from mmrec.training.calibrate import RIDGE, choose_for_new, choose_offset, expect_popularity
from mmrec.training.validate import Validation, rank

NUM_WARM, NUM_COLD, NUM_USERS = 30, 10, 60


def world(
    gap: float, *, wanted: Sequence[int] = range(NUM_WARM, NUM_WARM + NUM_COLD), noise: float = 0.5
) -> tuple[Any, Validation]:
    """Users near their targets; cold items score `gap` lower in cosine than they should.

    Args:
        gap: in cosine.
        wanted: cold items that are targets.
        noise: between users and their targets.
    """
    random = np.random.default_rng(0)
    num_items = NUM_WARM + NUM_COLD
    items = torch.nn.functional.normalize(torch.randn(num_items, 8, generator=_generator()), dim=1)
    warm = random.integers(0, NUM_WARM, NUM_USERS)
    cold = np.asarray(wanted)[random.integers(0, len(wanted), NUM_USERS)]
    targets = np.concatenate([warm, cold])
    away = noise * torch.randn(2 * NUM_USERS, 8, generator=_generator())
    users = torch.nn.functional.normalize(items[torch.from_numpy(targets)] + away, dim=1)
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


def test_new_items_last_let_more_of_them_in_at_one_cost() -> None:
    assembly, looked = world(gap=0.4, noise=1.0)
    by_score, curve = choose_offset(assembly, looked, max_cost=0.05)
    last, other = choose_offset(assembly, looked, max_cost=0.05, new_last=10)
    assert last > by_score
    hits = {point["offset"]: point["cold_hr@10"] for point in [*curve, *other]}
    assert hits[last] > hits[by_score]
    told = settings(new_last=10, expected_popularity=False)
    chosen = choose_for_new(assembly, looked, told)
    assert (chosen.offset, chosen.curve) == (last, other)


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


def test_expected_popularity_is_scikit_learns_ridge() -> None:
    content = torch.nn.functional.normalize(torch.randn(50, 8, generator=_generator()), dim=1)
    popularity = 3 * content[:, 0] + torch.randn(50, generator=_generator()) + 2
    found = expect_popularity(content, popularity)
    theirs = Ridge(alpha=RIDGE).fit(content.double().numpy(), popularity.double().numpy())
    assert found.shape == (9,) and found.dtype == torch.float32
    np.testing.assert_allclose(found[:-1], theirs.coef_, rtol=1e-4, atol=1e-6)
    assert float(found[-1]) == pytest.approx(float(theirs.intercept_), rel=1e-4)


def told(*, truly: bool) -> tuple[Any, Validation]:
    """As `world`, where a direction of the content tells how popular items in training are.

    Args:
        truly: of new items too: their users want the three of which it says most, else the least.
    """
    tells = torch.linspace(-1, 1, NUM_WARM + NUM_COLD)[torch.randperm(NUM_WARM + NUM_COLD)]
    by_size = NUM_WARM + tells[NUM_WARM:].argsort(descending=truly).numpy()
    assembly, looked = world(gap=0.4, wanted=by_size[:3], noise=0.8)
    assert looked.content is not None
    content, items = looked.content.clone(), looked.items.clone()
    content[:, -1] = tells
    beta = 4.0 * tells
    items[:NUM_WARM, -1] += 0.02 * beta[:NUM_WARM]
    assembly.model.popularity = lambda counts: beta[: len(counts)]
    return assembly, Validation(looked.metrics, content, looked.users, items)


def settings(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"warm_cost": 0.05, **changes})


def test_share_of_the_expected_popularity_is_the_best_that_costs_little() -> None:
    torch.manual_seed(0)
    assembly, looked = told(truly=True)
    alone = choose_for_new(assembly, looked, settings(expected_popularity=False))
    assert alone.share == 0 and alone.expectation is None
    assert (alone.offset, alone.curve) == choose_offset(assembly, looked, max_cost=0.05)
    chosen = choose_for_new(assembly, looked, settings())
    points = {each.share: next(p for p in each.curve if p["offset"] == each.offset)
              for each in (alone, chosen)}  # fmt: skip
    base = min(alone.curve, key=lambda point: abs(point["offset"]))["warm_ndcg@10"]
    assert chosen.share > 0 and chosen.expectation is not None
    assert points[chosen.share]["cold_ndcg@10"] > points[0.0]["cold_ndcg@10"]
    assert points[chosen.share]["warm_ndcg@10"] >= 0.95 * base
    # the vectors that the choice gives have the figures that it was made by
    cases, unseen = assembly.validation, torch.arange(40) >= NUM_WARM
    items = looked.items.clone()
    content = looked.content
    assert content is not None
    expected = content[unseen] @ chosen.expectation[:-1] + chosen.expectation[-1]
    items[unseen, -1] += 0.1 * (expected + chosen.offset)
    metrics = slice_metrics(rank(cases, looked.users, items), cases, popularity=assembly.popularity)
    assert metrics["cold"] is not None
    assert metrics["cold"]["ndcg@10"] == points[chosen.share]["cold_ndcg@10"]


def test_nothing_is_expected_where_it_would_not_help() -> None:
    torch.manual_seed(0)
    assembly, looked = told(truly=False)
    chosen = choose_for_new(assembly, looked, settings())
    assert chosen.share == 0 and chosen.expectation is None
    assembly.model.popularity = None
    assert choose_for_new(assembly, looked, settings()).expectation is None
