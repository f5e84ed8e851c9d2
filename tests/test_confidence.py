"""Probabilities against hits: scikit-learn's bins, and a softmax made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from mmrec.data.ragged import Ragged
from mmrec.evaluation.confidence import list_probabilities, our_reliability, reliability
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer


def cases_of(slices: list[str]) -> Cases:
    return Cases(
        user_index=np.arange(3),
        history=Ragged.from_rows([[0], [1], [2]]),
        seen=Ragged.from_rows([[0], [1], []]),
        targets=Ragged.from_rows([[2], [4, 0], [3]]),
        slice=slices,
        candidates=np.array([0, 1, 2, 3, 4]),
        candidate_is_cold=np.array([False] * 4 + [True]),
        num_items=6,
    )


def test_bins_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probability = generator.beta(1, 20, size=1000)
    hit = generator.random(1000) < 0.7 * probability
    found = reliability(probability, hit, k=1, slice_name="warm")
    observed, predicted = calibration_curve(hit, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(found.predicted, predicted)
    np.testing.assert_allclose(found.observed, observed)
    assert found.counts == [100] * 10
    assert found.error == pytest.approx(np.abs(observed - predicted).mean())


def test_a_true_probability_has_no_error_and_a_boast_has() -> None:
    hit = np.arange(40) % 4 == 0
    assert reliability(np.full(40, 0.25), hit, k=1, slice_name="warm", num_bins=1).error == 0
    assert reliability(np.ones(40), hit, k=1, slice_name="warm").error == pytest.approx(0.75)
    few = reliability(np.array([0.5]), np.array([True]), k=1, slice_name="warm")
    assert few.counts == [1] and few.error == 0.5


def test_probabilities_are_the_softmax_over_what_can_be_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(3, 4, generator=generator)
    items = torch.randn(5, 4, generator=generator)
    cases = cases_of(["warm"] * 3)
    found = list_probabilities(VectorScorer(users, items), cases, temperature=0.5, ks=(1, 2))
    for row in range(3):
        allowed = [item for item in range(5) if item not in cases.seen[row]]
        logits = {item: float(users[row] @ items[item]) / 0.5 for item in allowed}
        total = sum(np.exp(value) for value in logits.values())
        best = sorted(allowed, key=lambda item: -logits[item])
        for k in (1, 2):
            probability, hit = found[k]
            expected = sum(np.exp(logits[item]) for item in best[:k]) / total
            assert probability[row] == pytest.approx(expected, rel=1e-5)
            assert hit[row] == bool(set(best[:k]) & set(cases.targets[row].tolist()))


def test_warm_cases_are_judged_where_there_are_any() -> None:
    scorer = VectorScorer(torch.ones(3, 1), torch.arange(5.0)[:, None])
    some = our_reliability(scorer, cases_of(["warm", "cold", "warm"]), temperature=1.0)
    assert [(each.k, each.slice, each.num_cases) for each in some] == [
        (1, "warm", 2),
        (10, "warm", 2),
    ]
    assert some[1].predicted[0] == pytest.approx(1)  # a list of all five holds all there is
    none = our_reliability(scorer, cases_of(["cold"] * 3), temperature=1.0)
    assert none[0].slice == "all" and none[0].num_cases == 3
