"""Tiled ranking against explicit sorted lists; ties, seen items, cold candidates, tiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.shards import UNKNOWN_TIME
from mmrec.data.ragged import Ragged
from mmrec.evaluation import ranking
from mmrec.evaluation.protocol import (
    ALWAYS,
    FOR_EVER,
    Availability,
    Cases,
    without_targets,
)
from mmrec.evaluation.ranking import VectorScorer, rank_cases


@dataclass(frozen=True)
class MatrixScorer:
    """Scores written down in full, (U, C)."""

    matrix: Tensor

    def score(self, case_rows: np.ndarray, candidate_rows: slice) -> Tensor:
        return self.matrix[torch.from_numpy(case_rows), candidate_rows].clone()


def _cases(num_cases: int, num_items: int, *, seed: int, max_targets: int = 4) -> Cases:
    """Random cases over the even items; a third of the candidates cold, cases in turn."""
    generator = np.random.default_rng(seed)
    candidates = np.arange(0, num_items, 2)
    is_cold = generator.random(len(candidates)) < 1 / 3
    names = [("warm", "cold", "new_users")[case % 3] for case in range(num_cases)]
    pools = {"cold": candidates[is_cold], "warm": candidates, "new_users": candidates}
    targets = Ragged.from_rows(
        generator.permutation(pools[name])[: generator.integers(1, max_targets + 1)]
        for name in names
    )
    seen = Ragged.from_rows(
        generator.integers(num_items, size=generator.integers(0, num_items // 2)) for _ in names
    )
    return Cases(
        user_index=np.arange(num_cases),
        history=seen,
        seen=without_targets(seen, targets),
        targets=targets,
        slice=names,
        candidates=candidates,
        candidate_is_cold=is_cold,
        num_items=num_items,
    )


def _with_availability(cases: Cases, *, seed: int) -> Cases:
    """The same cases at instants of which one is unknown, over candidates that come and go."""
    generator = np.random.default_rng(seed)
    asked = generator.integers(0, 100, size=len(cases))
    asked[0] = UNKNOWN_TIME
    start = generator.integers(0, 60, size=len(cases.candidates))
    end = start + generator.integers(1, 60, size=len(start))
    start[::5], end[::7] = ALWAYS, FOR_EVER
    return replace(cases, availability=Availability(asked, start, end))


def _is_available(cases: Cases, case: int, column: int) -> bool:
    known = cases.availability
    if known is None or known.asked[case] == UNKNOWN_TIME:
        return True
    if cases.candidates[column] in cases.targets[case]:
        return True
    return bool(known.start[column] <= known.asked[case] < known.end[column])


def _slow_ranks(cases: Cases, matrix: Tensor, *, among_cold: bool) -> list[float]:
    """Counts one by one; targets of a case that tie share the tied places evenly, in order."""
    ranks = []
    for case in range(len(cases)):
        allowed = [
            column
            for column, item in enumerate(cases.candidates)
            if item not in cases.seen[case]
            and (not among_cold or cases.candidate_is_cold[column])
            and _is_available(cases, case, column)
        ]
        column_of = {int(item): column for column, item in enumerate(cases.candidates)}
        targets = [column_of[int(item)] for item in cases.targets[case]]
        scores = matrix[case].tolist()
        met: dict[float, int] = {}
        for target in targets:
            value = scores[target]
            above = sum(scores[column] > value for column in allowed)
            tied = sum(scores[column] == value for column in allowed)
            own = sum(scores[other] == value for other in targets)
            met[value] = met.get(value, 0) + 1
            ranks.append(above + met[value] * (tied + 1) / (own + 1))
    return ranks


@pytest.mark.parametrize("levels", [1, 3, 10_000], ids=["constant", "many-ties", "few-ties"])
@pytest.mark.parametrize(
    ("user_tile", "item_tile", "kept"),
    [(None, 65_536, 2**26), (3, 7, 2**26), (5, 7, 0)],
    ids=["one-tile", "small-tiles", "scored-twice"],
)
@pytest.mark.parametrize("available", [False, True], ids=["always", "come-and-go"])
def test_equals_slow_loop(
    levels: int,
    user_tile: int | None,
    item_tile: int,
    kept: int,
    available: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "MAX_KEPT_SCORES", kept)
    cases = _cases(17, 80, seed=levels)
    if available:
        cases = _with_availability(cases, seed=levels)
    matrix = torch.from_numpy(np.random.default_rng(5).integers(levels, size=(17, 40))).float()
    result = rank_cases(
        MatrixScorer(matrix), cases, top_k=6, user_tile=user_tile, item_tile=item_tile
    )
    assert result.rank.tolist() == pytest.approx(_slow_ranks(cases, matrix, among_cold=False))
    cold = np.repeat(np.array(cases.slice) == "cold", cases.targets.lengths)
    slow_cold = np.array(_slow_ranks(cases, matrix, among_cold=True))
    assert result.rank_among_cold[cold].tolist() == pytest.approx(slow_cold[cold].tolist())
    assert np.isnan(result.rank_among_cold[~cold]).all()
    for case in range(len(cases)):
        order = sorted(range(40), key=lambda column: (-matrix[case, column].item(), column))
        order = [column for column in order if _is_available(cases, case, column)]
        shown = [int(cases.candidates[column]) for column in order]
        shown = [item for item in shown if item not in cases.seen[case]]
        assert result.top_items[case].tolist() == [*shown, *[-1] * 6][:6]


def test_expected_rank_is_the_mean_over_all_orders_of_the_tied() -> None:
    # five candidates, one above, four tied of which two are targets
    places = [
        sorted(order.index(target) + 2 for target in (0, 1))
        for order in itertools.permutations(range(4))
    ]
    first, second = np.mean(places, axis=0)
    cases = Cases(
        user_index=np.array([0]),
        history=Ragged.from_rows([[]]),
        seen=Ragged.from_rows([[]]),
        targets=Ragged.from_rows([[1, 3]]),
        slice=["warm"],
        candidates=np.arange(5),
        candidate_is_cold=np.zeros(5, dtype=bool),
        num_items=5,
    )
    result = rank_cases(MatrixScorer(torch.tensor([[2.0, 1.0, 1.0, 1.0, 1.0]])), cases)
    assert result.rank.tolist() == pytest.approx([first, second])


def test_k_above_candidates_pads_the_list() -> None:
    cases = _cases(4, 20, seed=0)
    result = rank_cases(MatrixScorer(torch.rand(4, 10)), cases, top_k=15, item_tile=4)
    for case in range(4):
        left = 10 - len(np.intersect1d(cases.seen[case], cases.candidates))
        assert (result.top_items[case] >= 0).sum() == left
        assert np.isneginf(result.top_scores[case, left:]).all()


@pytest.mark.parametrize("kept", [2**26, 0], ids=["kept", "scored-twice"])
def test_vectors_that_no_other_equals_meet_no_tie(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target's score and its column are one number, so a generic ranking is a whole number."""
    monkeypatch.setattr(ranking, "MAX_KEPT_SCORES", kept)
    cases = _cases(101, 2_000, seed=3, max_targets=2)
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(101, 37, generator=generator)
    items = torch.randn(1_000, 37, generator=generator)
    result = rank_cases(VectorScorer(users, items), cases, user_tile=17, item_tile=123)
    exact = users.double() @ items.double().T
    expected = np.array(_slow_ranks(cases, exact, among_cold=False))
    assert (result.rank == np.round(result.rank)).all()
    # float32 may swap two neighbours of a thousand; a self-tie would shift every rank by a half
    assert np.abs(result.rank - expected).max() <= 1 and (result.rank == expected).mean() > 0.98


def test_a_kernel_that_rounds_differently_each_call_makes_no_self_tie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "MAX_KEPT_SCORES", 0)

    class Unsteady:
        calls = 0

        def score(self, case_rows: np.ndarray, candidate_rows: slice) -> Tensor:
            self.calls += 1
            base = torch.arange(10.0)[candidate_rows].expand(len(case_rows), -1)
            return base + 1e-3 * self.calls

    cases = _cases(6, 20, seed=1, max_targets=1)
    result = rank_cases(Unsteady(), cases, user_tile=2, item_tile=10)
    expected = _slow_ranks(cases, torch.arange(10.0).expand(6, -1), among_cold=False)
    # every call is higher than the last: all others rise by a hair, the target is no own rival
    assert result.rank.tolist() == expected


def test_seen_items_and_targets() -> None:
    seen = Ragged.from_rows([[4, 2, 4, 9], [], [1]])
    targets = Ragged.from_rows([[2], [3], [1]])
    kept = without_targets(seen, targets)
    assert [kept[row].tolist() for row in range(3)] == [[4, 9], [], []]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite|not a number"):
        rank_cases(MatrixScorer(torch.full((3, 10), value)), _cases(3, 20, seed=0))


def test_target_outside_the_candidates_is_refused() -> None:
    cases = _cases(3, 20, seed=0)
    wrong = Cases(**{**vars(cases), "targets": Ragged.from_rows([[1], [2], [4]])})
    with pytest.raises(ValueError, match="item_index 1 is a target but no candidate"):
        rank_cases(MatrixScorer(torch.rand(3, 10)), wrong)


def test_ragged_rows() -> None:
    ragged = Ragged.from_rows([[5, 6, 7], [], [8]])
    assert len(ragged) == 3 and ragged[-1].tolist() == [8] and ragged.lengths.tolist() == [3, 0, 1]
    assert ragged.row_of_value.tolist() == [0, 0, 0, 2]
    taken = ragged.take(np.array([2, 0, 0]))
    assert [taken[row].tolist() for row in range(3)] == [[8], [5, 6, 7], [5, 6, 7]]
    tail = ragged.tail(2)
    assert [tail[row].tolist() for row in range(3)] == [[6, 7], [], [8]]
    kept = ragged.keep(ragged.values != 6)
    assert [kept[row].tolist() for row in range(3)] == [[5, 7], [], [8]]
    with pytest.raises(IndexError, match="row 3 of 3"):
        ragged[3]
    with pytest.raises(ValueError, match="offsets end at 2"):
        Ragged(np.arange(3), np.array([0, 2]))
