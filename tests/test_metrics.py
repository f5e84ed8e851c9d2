"""Metrics against hand-made numbers, a slow loop over explicit lists, and kept libraries."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from mmrec.evaluation.metrics import (
    KS,
    bootstrap_interval,
    case_metrics,
    list_metrics,
    metrics_from_ranks,
    paired_test,
    user_means,
)


def _random_ranks(num_cases: int, num_candidates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = [
        generator.permutation(num_candidates)[: generator.integers(1, 8)] + 1.0
        for _ in range(num_cases)
    ]
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return np.concatenate(rows), offsets


def _slow(ranks: np.ndarray, k: int, num_candidates: int) -> dict[str, float]:
    """Walks down one explicit list of zeros and ones."""
    relevant = [0] * num_candidates
    for rank in ranks:
        relevant[int(rank) - 1] = 1
    hits, gain, precisions = 0, 0.0, 0.0
    for place, hit in enumerate(relevant[:k], start=1):
        if hit:
            hits += 1
            gain += 1 / math.log2(place + 1)
            precisions += hits / place
    n = len(ranks)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(n, k) + 1))
    return {
        f"hr@{k}": float(hits > 0),
        f"recall@{k}": hits / n,
        f"precision@{k}": hits / k,
        f"ndcg@{k}": gain / ideal,
        f"map@{k}": precisions / min(n, k),
        "mrr": 1 / (relevant.index(1) + 1),
    }


def test_hand_computed_case() -> None:
    # targets at 1, 4 and 12 of a list
    metrics = case_metrics(np.array([4.0, 12.0, 1.0]), np.array([0, 3]), ks=(1, 5, 10))
    expected = {
        "hr@1": 1.0,
        "recall@1": 1 / 3,
        "precision@1": 1.0,
        "ndcg@1": 1.0,
        "map@1": 1.0,
        "recall@5": 2 / 3,
        "precision@5": 0.4,
        "ndcg@5": (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 0.5),
        "map@5": (1 + 2 / 4) / 3,
        "mrr": 1.0,
    }
    for name, value in expected.items():
        assert metrics[name][0] == pytest.approx(value), name


@pytest.mark.parametrize("num_targets", [1, 3, 10, 25])
def test_the_perfect_ranker_has_one_and_the_reversed_what_its_places_say(num_targets: int) -> None:
    num_candidates, offsets = 40, np.array([0, num_targets])
    perfect = case_metrics(np.arange(1.0, num_targets + 1), offsets)
    last = num_candidates - np.arange(num_targets)[::-1]  # the worst places there are
    reversed_ = case_metrics(last.astype(float), offsets)
    for k in KS:
        assert perfect[f"hr@{k}"][0] == 1 and perfect[f"ndcg@{k}"][0] == pytest.approx(1)
        assert perfect[f"map@{k}"][0] == 1 and perfect["mrr"][0] == 1
        assert perfect[f"recall@{k}"][0] == min(num_targets, k) / num_targets
        assert perfect[f"precision@{k}"][0] == min(num_targets, k) / k
        # of 40 places the targets have the last ones: k reaches the first of them, or none
        shown = max(0, min(k, num_candidates) - (num_candidates - num_targets))
        assert reversed_[f"recall@{k}"][0] == shown / num_targets
        assert reversed_[f"precision@{k}"][0] == shown / k
        assert reversed_[f"hr@{k}"][0] == (shown > 0)
        if shown == 0:
            assert reversed_[f"ndcg@{k}"][0] == reversed_[f"map@{k}"][0] == 0
    assert reversed_["mrr"][0] == 1 / (num_candidates - num_targets + 1)
    places = num_candidates - num_targets + np.arange(1, num_targets + 1)
    wanted = (1 / np.log2(1 + places)).sum() / (1 / np.log2(np.arange(2, num_targets + 2))).sum()
    assert reversed_["ndcg@50"][0] == pytest.approx(wanted)
    wanted = (np.arange(1, num_targets + 1) / places).mean()
    assert reversed_["map@50"][0] == pytest.approx(wanted)


@pytest.mark.parametrize("num_candidates", [9, 60], ids=["K-above-C", "C-above-K"])
def test_equals_slow_loop(num_candidates: int) -> None:
    ranks, offsets = _random_ranks(200, num_candidates, seed=1)
    metrics = case_metrics(ranks, offsets)
    for case in range(200):
        own = ranks[offsets[case] : offsets[case + 1]]
        for k in KS:
            for name, value in _slow(own, k, num_candidates).items():
                assert metrics[name][case] == pytest.approx(value), (case, name)


def test_all_metrics_lie_between_zero_and_one() -> None:
    ranks, offsets = _random_ranks(100, 12, seed=2)
    for name, values in case_metrics(ranks, offsets).items():
        assert (values >= 0).all() and (values <= 1).all(), name


def test_ndcg_equals_scikit_learn() -> None:
    from sklearn.metrics import ndcg_score

    ranks, offsets = _random_ranks(50, 80, seed=3)
    relevance = np.zeros((50, 80))
    case = np.repeat(np.arange(50), np.diff(offsets))
    relevance[case, ranks.astype(int) - 1] = 1
    scores = np.tile(np.arange(80, 0, -1.0), (50, 1))
    ours = metrics_from_ranks(ranks, offsets)
    for k in KS:
        assert ours[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k)), k


@pytest.mark.slow
@pytest.mark.timeout(900)  # ranx compiles on first use: half a minute of processor time
def test_equals_ranx() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, evaluate

        ranks, offsets = _random_ranks(60, 100, seed=4)
        relevant = {
            str(case): {str(int(rank)): 1 for rank in ranks[offsets[case] : offsets[case + 1]]}
            for case in range(60)
        }
        shown = {
            str(case): {str(place): float(101 - place) for place in range(1, 101)}
            for case in range(60)
        }
        names = [f"{name}@{k}" for k in (10, 50) for name in ("precision", "recall", "ndcg", "map")]
        names += ["hit_rate@10", "mrr"]
        theirs = evaluate(Qrels(relevant), Run(shown), names)
    ours = metrics_from_ranks(ranks, offsets)  # n <= 7 < K, where both average precisions agree
    for name in names:
        assert ours[name.replace("hit_rate", "hr")] == pytest.approx(theirs[name]), name


def test_fractional_rank_counts_where_it_is_at_most_k() -> None:
    metrics = case_metrics(np.array([10.5, 10.0]), np.array([0, 1, 2]), ks=(10,))
    assert metrics["hr@10"].tolist() == [0.0, 1.0]
    assert metrics["mrr"].tolist() == pytest.approx([1 / 10.5, 0.1])


def test_mean_is_over_users_not_cases() -> None:
    # user 7 has two cases (one hit), user 3 has one (a hit)
    users = np.array([7, 7, 3])
    metrics = metrics_from_ranks(np.array([1.0, 99.0, 1.0]), np.arange(4), users)
    assert metrics["hr@10"] == pytest.approx(0.75)
    assert user_means(np.array([1.0, 0.0, 1.0]), users).tolist() == [1.0, 0.5]


def test_no_case_gives_no_metric() -> None:
    assert metrics_from_ranks(np.empty(0), np.array([0])) == {}


@pytest.mark.parametrize(
    ("ranks", "offsets", "message"),
    [
        (np.array([0.5]), np.array([0, 1]), "1-based"),
        (np.array([np.nan]), np.array([0, 1]), "1-based"),
        (np.array([1.0]), np.array([0, 1, 1]), "case 1 has no target"),
    ],
    ids=["below-one", "nan", "no-target"],
)
def test_bad_ranks_are_refused(ranks: np.ndarray, offsets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case_metrics(ranks, offsets)


def test_list_metrics_by_hand() -> None:
    popularity = np.array([6, 2, 0, 0])  # 8 events, 4 items: smoothed shares 7, 3, 1, 1 of 12
    top = np.array([[0, 1], [0, -1]])
    metrics = list_metrics(top, popularity, num_candidates=4, ks=(1, 2, 5))
    assert metrics["coverage@1"] == 0.25 and metrics["coverage@2"] == 0.5
    assert metrics["popularity@2"] == pytest.approx(14 / 3)
    expected = (2 * math.log2(12 / 7) + math.log2(12 / 3)) / 3
    assert metrics["novelty@2"] == pytest.approx(expected)
    assert "coverage@5" not in metrics


def test_bootstrap_interval_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=900)
    low, high = bootstrap_interval(values, num_samples=2000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.1)
    assert bootstrap_interval(values, num_samples=2000) == (low, high)


def test_paired_test_finds_a_difference_and_only_where_there_is_one() -> None:
    generator = np.random.default_rng(1)
    first = generator.normal(size=400)
    noise = generator.normal(scale=0.5, size=400)
    assert paired_test(first, first + 0.2 + noise, num_samples=1000) < 0.01
    assert paired_test(first, first + noise - noise.mean(), num_samples=1000) > 0.5
    assert paired_test(first, first, num_samples=100) == 1.0
    with pytest.raises(ValueError, match="pair up"):
        paired_test(first, first[:3])
