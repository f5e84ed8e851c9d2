"""Rank-biased overlap: beside a slow sum over the paper's terms, and values made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec.evaluation.overlap import rank_biased_overlap


def slow(first: list[int], second: list[int], p: float) -> float:
    """Webber, Moffat and Zobel (2010), equation 32, term by term."""
    short, long = sorted([first, second], key=len)
    if not long:
        return 1.0
    if not short:
        return 0.0
    s, ell = len(short), len(long)
    x = {d: len(set(short[:d]) & set(long[:d])) for d in range(1, ell + 1)}
    seen = sum(x[d] / d * p**d for d in range(1, ell + 1))
    assumed = sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, ell + 1))
    return (1 - p) / p * (seen + assumed) + ((x[ell] - x[s]) / ell + x[s] / s) * p**ell


def padded(rows: list[list[int]], k: int) -> np.ndarray:
    return np.array([[*row, *[-1] * (k - len(row))] for row in rows], dtype=np.int64)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([1, 2, 3], [1, 2, 3], 1.0, id="equal"),
        pytest.param([1, 2, 3], [4, 5, 6], 0.0, id="disjoint"),
        # agreement 1, 1/2, 1 and then 1: .5 + .25 / 2 + .125 + .125
        pytest.param([1, 2, 3], [1, 3, 2], 0.875, id="swapped-below"),
        # agreement 0, 1, 1 and then 1: .25 + .125 + .125
        pytest.param([1, 2, 3], [2, 1, 3], 0.5, id="swapped-on-top"),
        # agreement 1, 1/2, 1/3 and then 1/3: .5 + .125 + .25 / 3
        pytest.param([1, 2, 3], [1, 4, 5], 0.5 + 0.125 + 0.25 / 3, id="one-shared"),
        # one item, agreed on: the shorter list is taken to go on as it began
        pytest.param([1], [1, 2, 3], 1.0, id="short-within-long"),
        pytest.param([], [1, 2, 3], 0.0, id="one-empty"),
        pytest.param([], [], 1.0, id="both-empty"),
    ],
)
def test_by_hand(first: list[int], second: list[int], expected: float) -> None:
    for one, other in ((first, second), (second, first)):
        found = rank_biased_overlap(padded([one], 3), padded([other], 3), persistence=0.5)
        assert found[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("persistence", [0.2, 0.9, 0.99])
def test_equals_the_sum_of_the_papers_terms(persistence: float) -> None:
    random = np.random.default_rng(0)
    lists = [
        [random.permutation(14)[: random.integers(11)].tolist() for _ in range(200)]
        for _ in range(2)
    ]
    found = rank_biased_overlap(padded(lists[0], 10), padded(lists[1], 10), persistence=persistence)
    wanted = [slow(*pair, persistence) for pair in zip(*lists, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert len(np.unique(found)) > 100


def test_equal_lists_have_one_to_the_last_bit() -> None:
    lists = padded([list(range(length)) for length in range(11)], 10)
    for persistence in (0.1, 0.3, 0.9, 0.999):
        assert (rank_biased_overlap(lists, lists, persistence=persistence) == 1).all()


@pytest.mark.parametrize(
    ("shape", "persistence", "says"),
    [((2, 3), 0.9, "do not pair up"), ((2, 4), 1.0, "persistence is 1.0")],
    ids=["shapes", "persistence"],
)
def test_what_cannot_be_compared(shape: tuple[int, int], persistence: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rank_biased_overlap(np.zeros((2, 4), int), np.zeros(shape, int), persistence=persistence)
