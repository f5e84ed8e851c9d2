"""Sweeping one offset: the ranks at each are those of a ranking with the offset really added."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray, Ragged
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import rank_cases
from mmrec.evaluation.sweep import (
    Sweep,
    at_costs,
    ranks_at_offsets,
    sweep_models,
    sweep_offsets,
    useful_offsets,
)

NUM_ITEMS, NUM_CASES = 60, 50
POPULARITY = np.where(np.arange(NUM_ITEMS) < 45, 3, 0)


class Table:
    """Scores of a table, some columns moved by a number."""

    def __init__(self, scores: Tensor, moved: np.ndarray, offset: float = 0.0) -> None:
        self.scores = scores + offset * torch.from_numpy(moved).float()

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        return self.scores[torch.from_numpy(case_rows)][:, candidate_rows].clone()


def make_cases(seed: int) -> Cases:
    """Half the cases warm with two targets, half cold with one; a few items seen."""
    generator = np.random.default_rng(seed)
    slices = ["warm" if row % 2 == 0 else "cold" for row in range(NUM_CASES)]
    seen, targets = [], []
    for name in slices:
        order = generator.permutation(45)
        seen.append(np.sort(order[:4]))
        cold = generator.integers(45, NUM_ITEMS, size=1)
        targets.append(order[4:6] if name == "warm" else cold)
    return Cases(
        user_index=np.arange(NUM_CASES) // 2,
        history=Ragged.from_rows(seen),
        seen=Ragged.from_rows(seen),
        targets=Ragged.from_rows(targets),
        slice=slices,
        candidates=np.arange(NUM_ITEMS),
        candidate_is_cold=np.arange(NUM_ITEMS) >= 45,
        num_items=NUM_ITEMS,
    )


@pytest.mark.parametrize("levels", [4, 10_000], ids=["ties", "distinct"])
def test_ranks_equal_a_ranking_with_the_offset_added(levels: int) -> None:
    cases = make_cases(0)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(levels, (NUM_CASES, NUM_ITEMS), generator=generator).float()
    unseen = POPULARITY == 0
    offsets = np.array([-2.0 * levels, -1.0, 0.0, 1.0, levels / 2, 2.0 * levels])
    found = ranks_at_offsets(Table(scores, unseen), cases, unseen, offsets)
    for offset, ranks in zip(offsets, found, strict=True):
        expected = rank_cases(Table(scores, unseen, float(offset)), cases).rank
        np.testing.assert_allclose(ranks, expected)


def test_the_offsets_span_from_no_new_item_to_nothing_else() -> None:
    cases, unseen = make_cases(1), POPULARITY == 0
    scores = torch.rand(NUM_CASES, NUM_ITEMS, generator=torch.Generator().manual_seed(1)) * 7 - 3
    offsets = useful_offsets(Table(scores, unseen), cases, unseen)
    assert (np.diff(offsets) > 0).all() and 0 in offsets
    for offset, wanted in ((offsets[0] - 1e-3, 0), (offsets[-1] + 1e-3, 10)):
        top = rank_cases(Table(scores, unseen, float(offset)), cases, top_k=10).top_items
        assert (unseen[top].sum(1) == wanted).all()


def test_a_scorer_that_knows_no_new_item_is_swept_too() -> None:
    cases, unseen = make_cases(2), POPULARITY == 0
    scores = torch.rand(NUM_CASES, NUM_ITEMS, generator=torch.Generator().manual_seed(2))
    scores[:, unseen] = 0
    sweep = sweep_offsets("popularity", Table(scores, unseen), cases, unseen)
    assert sweep.cold_hr[0] == 0 and sweep.warm_ndcg[-1] == 0
    assert sweep.cold_ndcg[-1] > 0  # fifteen new items, all tied at the top
    assert sweep.offset[sweep.as_it_is()] == 0


def test_the_best_offset_keeps_within_its_cost() -> None:
    sweep = Sweep("m", [-1.0, 0.0, 1.0, 2.0], [0.4, 0.4, 0.39, 0.1], [0.0, 0.1, 0.2, 0.3], [], [])
    assert [sweep.best_within(cost) for cost in (0.0, 0.05, 1.0)] == [1, 2, 3]
    assert sweep.as_it_is() == 1


def test_the_offset_at_a_cost_lies_between_the_points_of_the_sweep() -> None:
    warm = [0.38, 0.4, 0.36, 0.2, 0.1]  # a hair below its best where no new item is shown
    sweep = Sweep("m", [-1.0, 0.0, 1.0, 2.0, 4.0], warm, [], [], [])
    found = [sweep.offset_at(cost) for cost in (0.0, 0.05, 0.1, 0.3, 0.625, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.5, 3.0, 4.0])


def test_figures_at_a_cost_are_those_of_a_ranking_with_the_offset_added() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(NUM_CASES, NUM_ITEMS, generator=generator)
    chosen, asked = make_cases(4), make_cases(5)
    unseen = POPULARITY == 0
    knows, blind = Table(scores, unseen), Table(scores * torch.from_numpy(~unseen), unseen, -50.0)
    blind.scores[:, unseen] = -torch.inf  # it never shows a new item, whatever is added
    sweeps = sweep_models({"knows": knows, "blind": blind}, chosen, POPULARITY)
    found = at_costs(sweeps, {"knows": knows, "blind": blind}, asked, POPULARITY, costs=(0.1, 0.5))
    assert [(each.model, each.warm_cost) for each in found] == [("knows", 0.1), ("knows", 0.5)]
    for each in found:
        moved = Table(scores, unseen, each.offset)
        ranking = rank_cases(moved, asked)
        is_cold = np.repeat(np.array(asked.slice) == "cold", asked.targets.lengths)
        assert each.cold_hr == pytest.approx((ranking.rank[is_cold] <= 10).mean())
    assert found[0].offset < found[1].offset and found[0].cold_hr < found[1].cold_hr
    warm = asked.take(np.arange(0, NUM_CASES, 2))
    assert at_costs(sweeps, {"knows": knows, "blind": blind}, warm, POPULARITY) == []


def test_nothing_is_swept_without_cold_targets() -> None:
    cases = make_cases(3).take(np.arange(0, NUM_CASES, 2))
    assert (
        sweep_models({"m": Table(torch.zeros(25, NUM_ITEMS), POPULARITY)}, cases, POPULARITY) == []
    )
