"""Alternating least squares against normal equations solved row by row, and against the closed form
that the whole problem has where every cell weighs the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrec.data.ragged import Ragged
from mmrec.evaluation import als
from mmrec.evaluation.als import factorise, fit_als, solve_rows
from mmrec.evaluation.protocol import Cases

HISTORIES = [[0, 1, 2, 0], [], [3, 1], [4], [0, 1, 2, 3, 4], [2, 2], [1, 4, 0]]
NUM_ITEMS = 6  # nobody met the last


def _matrix(histories: list[list[int]]) -> np.ndarray:
    matrix = np.zeros((len(histories), NUM_ITEMS))
    for row, history in enumerate(histories):
        matrix[row, history] = 1
    return matrix


@pytest.mark.parametrize("block_values", [1, 7, 1 << 18])
def test_each_row_solves_its_normal_equations(
    block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als, "BLOCK_VALUES", block_values)
    factors = torch.randn(NUM_ITEMS, 3, generator=torch.Generator().manual_seed(0))
    rows = [sorted(set(history)) for history in HISTORIES]
    solved = solve_rows(Ragged.from_rows(rows), factors, weight=2.5, regularisation=0.3).numpy()
    y = factors.double().numpy()
    for row, wanted in enumerate(_matrix(HISTORIES)):
        confidence = np.diag(1 + 2.5 * wanted)
        expected = np.linalg.solve(
            y.T @ confidence @ y + 0.3 * np.eye(3), y.T @ confidence @ wanted
        )
        np.testing.assert_allclose(solved[row], expected, atol=1e-5)


def test_equal_weights_end_at_the_shrunk_singular_values() -> None:
    """|P - XY'|^2 + r (|X|^2 + |Y|^2) is least at U max(S - r, 0) V', which width 5 can hold."""
    items = factorise(
        Ragged.from_rows(HISTORIES),
        NUM_ITEMS,
        seed=0,
        width=5,
        weight=0.0,
        regularisation=0.4,
        num_rounds=300,
    )
    rows = Ragged.from_rows([sorted(set(history)) for history in HISTORIES])
    users = solve_rows(rows, items, weight=0.0, regularisation=0.4)
    left, values, right = np.linalg.svd(_matrix(HISTORIES), full_matrices=False)
    expected = left @ np.diag(np.maximum(values - 0.4, 0)) @ right
    np.testing.assert_allclose((users @ items.T).numpy(), expected, atol=1e-4)


def test_rounds_lower_the_objective() -> None:
    matrix, rows = _matrix(HISTORIES), Ragged.from_rows(HISTORIES)
    distinct = Ragged.from_rows([sorted(set(history)) for history in HISTORIES])

    def objective(num_rounds: int) -> float:
        given = {"weight": 3.0, "regularisation": 0.5}
        items = factorise(rows, NUM_ITEMS, seed=1, width=2, num_rounds=num_rounds, **given)
        users = solve_rows(distinct, items, **given)
        errors = (matrix - (users @ items.T).numpy()) ** 2 * (1 + 3.0 * matrix)
        return float(errors.sum() + 0.5 * ((users**2).sum() + (items**2).sum()))

    values = [objective(num_rounds) for num_rounds in range(1, 6)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] * 1.01


def test_users_are_solved_from_what_they_met_before_the_target() -> None:
    histories = Ragged.from_rows([[0, 1], [0, 1, 2], [3, 4], [3, 4]] * 300)
    rows = Ragged.from_rows([[0], [3], [], [0, 0]])
    cases = Cases(
        user_index=np.arange(4),
        history=rows,
        seen=rows.keep(np.zeros(len(rows.values), dtype=bool)),
        targets=Ragged.from_rows([[1], [4], [0], [1]]),
        slice=["warm"] * 4,
        candidates=np.array([5, 4, 2, 1, 0]),
        candidate_is_cold=np.zeros(5, dtype=bool),
        num_items=NUM_ITEMS,
    )
    scores = fit_als(cases, histories, seed=3).score(np.arange(4), slice(0, 5))
    assert scores.dtype == torch.float32
    assert (scores[:, 0] == 0).all() and (scores[2] == 0).all()  # no event; no history
    assert scores[0, 3] > 10 * scores[0, 1].abs() and scores[1, 1] > 10 * scores[1, 3].abs()
    assert torch.equal(scores[0], scores[3])  # how often does not count
    again = fit_als(cases, histories, seed=3).score(np.arange(4), slice(0, 5))
    assert torch.equal(scores, again)
