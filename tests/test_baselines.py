"""Baselines against hand-made counts and textbook formulas, and the floors on MovieLens-1M."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mmrec.data.ragged import Ragged
from mmrec.evaluation import baselines
from mmrec.evaluation.baselines import (
    NAMES,
    Content,
    Scorer,
    fit_baselines,
    input_histories,
    join_content,
)
from mmrec.evaluation.metrics import metrics_from_ranks
from mmrec.evaluation.protocol import Cases, without_targets
from mmrec.evaluation.ranking import rank_cases

TRAIN = [[0, 1, 2], [0, 1, 3], [1, 2], [3, 0, 1, 1]]


def _cases(histories: list[list[int]], num_items: int = 6) -> Cases:
    rows = Ragged.from_rows(histories)
    return Cases(
        user_index=np.arange(len(histories)),
        history=rows,
        seen=rows.keep(np.zeros(len(rows.values), dtype=bool)),
        targets=Ragged.from_rows([[0]] * len(histories)),
        slice=["warm"] * len(histories),
        candidates=np.arange(num_items),
        candidate_is_cold=np.zeros(num_items, dtype=bool),
        num_items=num_items,
    )


def _fit(name: str, cases: Cases, content: Content | None = None) -> Scorer:
    train = Ragged.from_rows(TRAIN)
    users = np.arange(100, 104)  # none of the cases' users
    return fit_baselines([name], cases, train_users=users, train=train, content=content)[name]


def _scores(scorer: Scorer, cases: Cases) -> np.ndarray:
    """All scores, after a check that tiles of any size give the same."""
    rows, everything = np.arange(len(cases)), slice(0, len(cases.candidates))
    scores = scorer.score(rows, everything)
    assert scores.dtype == torch.float32 and scores.shape == (len(rows), len(cases.candidates))
    part = scorer.score(rows[1:], slice(2, 5))
    torch.testing.assert_close(part, scores[1:, 2:5])
    kept = scores.clone()
    part.fill_(-1)  # scores are the caller's to overwrite
    torch.testing.assert_close(scorer.score(rows, everything), kept)
    return scores.numpy()


def test_random_is_uniform_and_depends_on_the_seed() -> None:
    cases = _cases([[0]] * 50, num_items=400)
    scores = _scores(_fit("random", cases), cases)
    assert abs(scores.mean() - 0.5) < 0.01 and abs(scores.var() - 1 / 12) < 0.002
    assert len(np.unique(scores)) > 19_900
    other = baselines.RandomScorer(cases, 1).score(np.arange(50), slice(0, 400)).numpy()
    assert abs(np.corrcoef(scores.ravel(), other.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(scores[0], scores[1])[0, 1]) < 0.2


def test_popularity_counts_events_of_the_inputs() -> None:
    cases = _cases([[], [3]])
    assert _scores(_fit("popularity", cases), cases)[0].tolist() == [3, 5, 2, 3, 0, 0]


def test_input_history_is_the_longest_of_a_user() -> None:
    cases = _cases([[5, 4, 3], [1]])
    train = Ragged.from_rows([[5, 4], [1, 2, 0], [2]])
    inputs = input_histories(cases, train_users=np.array([0, 1, 9]), train=train)
    assert [inputs[row].tolist() for row in range(3)] == [[5, 4, 3], [1, 2, 0], [2]]


def test_item_knn_is_the_cosine_of_user_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = _cases([[0], [0, 2]])
    scores = _scores(_fit("item_knn", cases), cases)
    # users of 0 with the two cases' own inputs: five; of 2: three; of both: two
    assert scores[0, 2] == pytest.approx(2 / np.sqrt(5 * 3))
    assert scores[0, 0] == 0 and scores[1, 0] == pytest.approx(scores[0, 2])
    assert scores[1, 1] > scores[0, 1] and (scores[:, 4:] == 0).all()
    monkeypatch.setattr(baselines, "NUM_NEIGHBOURS", 1)
    nearest = _scores(_fit("item_knn", cases), cases)
    assert (nearest[0] > 0).sum() == 1 and nearest[0].argmax() == scores[0].argmax()


def test_fitting_leaves_the_histories_as_they_were() -> None:
    inputs, train = Ragged.from_rows(TRAIN), Ragged.from_rows(TRAIN)  # the last has 1 twice
    names = [name for name in NAMES if name != "content_knn"]
    fit_baselines(names, _cases([[0]]), train_users=np.arange(4), train=train, inputs=inputs)
    for kept in (inputs, train):
        assert [kept[row].tolist() for row in range(len(kept))] == TRAIN


def test_ease_solves_its_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "EASE_REGULARISATION", 0.5)
    generator = np.random.default_rng(0)
    histories = [generator.permutation(6)[: generator.integers(1, 5)].tolist() for _ in range(40)]
    cases = _cases(histories, num_items=7)
    empty = Ragged.from_rows([])
    scorer = fit_baselines(["ease"], cases, train_users=np.empty(0, np.int64), train=empty)["ease"]
    matrix = np.zeros((40, 7))
    for row, history in enumerate(histories):
        matrix[row, history] = 1
    scores = _scores(scorer, cases)
    for item in range(6):  # each column is the ridge regression on all other items
        others = [other for other in range(7) if other != item]
        x = matrix[:, others]
        weights = np.linalg.solve(x.T @ x + 0.5 * np.eye(6), x.T @ matrix[:, item])
        np.testing.assert_allclose(scores[:, item], x @ weights, atol=1e-5)
    assert (scores[:, 6] == 0).all()


def test_markov_counts_transitions_and_backs_off_to_popularity() -> None:
    cases = _cases([[3, 0], [], [5], [0, 1]])
    scores = _scores(_fit("markov", cases), cases)
    assert np.floor(scores[0]).tolist() == [0, 3, 0, 0, 0, 0]
    assert np.floor(scores[3]).tolist() == [0, 1, 2, 1, 0, 0]
    popularity = [3, 5, 2, 2, 0, 0]
    for row in (1, 2):  # no history; an item that nothing followed
        assert np.argsort(-scores[row], kind="stable").tolist() == [1, 0, 2, 3, 4, 5]
        np.testing.assert_allclose(scores[row] * 11, popularity, rtol=1e-6)


def test_content_knn_is_the_cosine_to_the_last_ten_with_content() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 5, generator=generator)
    mask = torch.ones(20, dtype=torch.bool)
    mask[[3, 19]] = False
    cases = _cases([[19, 18, *range(12)], [3], []], num_items=20)
    scores = _scores(_fit("content_knn", cases, Content(vectors, mask)), cases)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    mean = unit[[1, 2, 4, 5, 6, 7, 8, 9, 10, 11]].mean(0)
    expected = torch.nn.functional.cosine_similarity(unit, mean[None], dim=1)
    np.testing.assert_allclose(scores[0, mask], expected[mask], atol=1e-6)
    assert (scores[:, ~mask] == -1).all() and (scores[1:, mask] == 0).all()


def test_joined_content_averages_the_cosines() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(4, 3, generator=generator), torch.randn(4, 6, generator=generator)
    mask = torch.tensor([True, True, True, False])
    joined = join_content([Content(first, torch.ones(4, dtype=torch.bool)), Content(second, mask)])
    cosine = torch.nn.functional.cosine_similarity
    expected = (cosine(first[:1], first[1:2]) + cosine(second[:1], second[1:2])) / 2
    torch.testing.assert_close(cosine(joined.vectors[:1], joined.vectors[1:2]), expected)
    assert joined.mask.all() and (joined.vectors[3, 3:] == 0).all()


def test_what_cannot_run_is_left_out_and_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MAX_EASE_ITEMS", 5)
    cases = _cases([[0]])
    with caplog.at_level(logging.WARNING):
        train = Ragged.from_rows(TRAIN)
        fitted = fit_baselines(NAMES, cases, train_users=np.arange(4), train=train)
    assert list(fitted) == ["random", "popularity", "item_knn", "als", "markov"]
    assert "ease is left out: 6 items" in caplog.text and "content_knn is left out" in caplog.text
    with pytest.raises(ValueError, match="baseline 'svd': allowed are random"):
        fit_baselines(["svd"], cases, train_users=np.arange(4), train=train)


@pytest.mark.realdata
def test_floors_on_movielens_1m(shared_data: Path) -> None:
    """The figures of the protocol, leave-one-out, all candidates, seen items removed."""
    log = pl.read_parquet(
        shared_data / "ml-1m" / "interactions.parquet", columns=["user_id", "item_id", "pos"]
    ).sort("user_id", "pos")
    known, item_index = np.unique(log["item_id"].to_numpy(), return_inverse=True)
    lengths = np.unique(log["user_id"].to_numpy(), return_counts=True)[1]
    full = Ragged(item_index.astype(np.int64), np.concatenate([[0], np.cumsum(lengths)]))
    rows = [full[user] for user in range(len(full))]
    history, targets = (
        Ragged.from_rows(row[:-1] for row in rows),
        Ragged.from_rows(row[-1:] for row in rows),
    )
    cases = Cases(
        user_index=np.arange(len(full)),
        history=history,
        seen=without_targets(history, targets),
        targets=targets,
        slice=["warm"] * len(full),
        candidates=np.arange(len(known)),
        candidate_is_cold=np.zeros(len(known), dtype=bool),
        num_items=len(known),
    )
    scorers = fit_baselines(
        [name for name in NAMES if name != "content_knn"],
        cases,
        train_users=cases.user_index,
        train=Ragged.from_rows(row[:-2] for row in rows),
    )
    figures = {}
    for name, scorer in scorers.items():
        metrics = metrics_from_ranks(rank_cases(scorer, cases).rank, targets.offsets)
        figures[name] = (metrics["hr@10"], metrics["ndcg@10"])
    # a tie's expected rank instead of a lucky order costs popularity .0001
    assert figures["popularity"] == pytest.approx((0.0364, 0.0179), abs=1.5e-4)
    assert figures["ease"] == pytest.approx((0.1099, 0.0544), abs=5e-5)
    assert figures["markov"] == pytest.approx((0.2144, 0.1259), abs=5e-5)
    assert figures["random"] == pytest.approx((10 / 3251, 0.0014), abs=1.5e-3)
    assert figures["popularity"][0] * 1.5 < figures["item_knn"][0] < figures["ease"][0]
    # implicit's ALS, the best of five settings on validation, has .1007 / .0510
    assert figures["als"] == pytest.approx((0.1007, 0.0510), rel=0.1)
