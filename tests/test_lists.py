"""Exposure, diversity and calibration of lists, against slow loops and by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sparse
import torch

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.data.ragged import Ragged
from mmrec.evaluation import lists
from mmrec.evaluation.lists import (
    BLEND,
    ItemTraits,
    behaviour_diversity,
    case_list_metrics,
    category_shares,
    intra_list_diversity,
    miscalibration,
    num_categories,
    users_of_items,
)
from mmrec.evaluation.metrics import gini, list_metrics


def test_gini_is_half_the_relative_mean_difference() -> None:
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.8, size=40)
    slow = np.abs(counts[:, None] - counts[None, :]).sum() / (2 * 40**2 * counts.mean())
    assert gini(counts, 40) == pytest.approx(slow)
    assert gini(counts[counts > 0], 40) == pytest.approx(slow)  # those never shown may be left out


def test_gini_at_its_ends() -> None:
    assert gini(np.full(7, 3), 7) == pytest.approx(0)
    assert gini(np.array([5]), 100) == pytest.approx(0.99)
    top = np.array([[0, 1], [0, -1]])  # item 0 twice, item 1 once, two never
    metrics = list_metrics(top, np.array([6, 2, 0, 0]), num_candidates=4, ks=(2,))
    assert metrics["gini@2"] == pytest.approx((3 * 2 + 1 * 1) / (4 * 3))


def test_diversity_is_one_minus_the_mean_cosine_of_pairs() -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:4] = 0  # no content
    shown = generator.integers(0, 30, size=(700, 6))
    shown[::3, 4:] = -1
    shown[0] = [0, 1, 2, 3, 9, -1]  # one vector: nothing to compare
    found = intra_list_diversity(shown, torch.from_numpy(vectors))
    assert math.isnan(found[0])
    for row in range(1, 700):
        items = [item for item in shown[row] if item >= 4]
        if len(items) < 2:
            assert math.isnan(found[row])
            continue
        cosines = [vectors[a] @ vectors[b] for a, b in itertools.combinations(items, 2)]
        assert found[row] == pytest.approx(1 - np.mean(cosines), abs=1e-5)


def slow_miscalibration(shown: list[int], met: list[int], genres: list[list[int]]) -> float:
    """Steck's formula, category by category."""

    def mix(items: list[int]) -> list[float]:
        known = [item for item in items if genres[item]]
        return [
            sum((g in genres[i]) / len(genres[i]) for i in known) / len(known) for g in range(4)
        ]

    p, q = mix(met), mix(shown)
    blended = [(1 - BLEND) * b + BLEND * a for a, b in zip(p, q, strict=True)]
    return sum(a * math.log(a / b) for a, b in zip(p, blended, strict=True) if a)


def test_behaviour_diversity_compares_who_met_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    histories = [generator.integers(1, 12, generator.integers(0, 7)).tolist() for _ in range(40)]
    met_by = users_of_items(Ragged.from_rows(histories), 13)  # items 0 and 12 were met by nobody
    users = [{user for user, own in enumerate(histories) if item in own} for item in range(13)]
    shown = np.stack([generator.permutation(13)[:5] for _ in range(600)])
    shown[::4, 3:] = -1
    shown[0] = [0, 12, 3, -1, -1]
    found = behaviour_diversity(shown, met_by)
    assert math.isnan(found[0])
    for row in range(1, 600):
        items = [item for item in shown[row] if item >= 0 and users[item]]
        if len(items) < 2:
            assert math.isnan(found[row])
            continue
        cosines = [
            len(users[a] & users[b]) / math.sqrt(len(users[a]) * len(users[b]))
            for a, b in itertools.combinations(items, 2)
        ]
        assert found[row] == pytest.approx(1 - np.mean(cosines)), row
    monkeypatch.setattr(lists, "MAX_USERS", 3)
    few = users_of_items(Ragged.from_rows(histories), 13)
    assert few.shape == (13, 3)  # the first, the middle, the last
    assert set(few[:, [2]].nonzero()[0]) == set(histories[-1])


def test_categories_of_a_list_are_counted_once_each() -> None:
    # two of item 0, one of 1 and 2, none of 3
    shares = sparse.csr_array(np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]))
    shown = np.array([[0, 1, 3], [1, -1, -1], [0, 2, -1], [3, -1, -1]])
    found = num_categories(shown, shares)
    assert found[:3].tolist() == [2, 1, 3] and math.isnan(found[3])
    traits = ItemTraits(torch.eye(4), "unit vectors", "genres", shares, sparse.csr_array(np.eye(4)))
    metrics = case_list_metrics(shown, Ragged.from_rows([[0]] * 4), traits, k=2)
    assert metrics["categories@2"][:3].tolist() == [2, 1, 3]
    assert metrics["behaviour_diversity@2"][0] == 1  # nobody met both


def test_miscalibration_equals_the_slow_loop() -> None:
    genres = [[0], [0, 1], [1, 2, 3], [3], [], [2], [0, 3]]
    shares = np.array([[(g in own) / max(len(own), 1) for g in range(4)] for own in genres])
    generator = np.random.default_rng(2)
    met = [generator.integers(0, 7, size=9).tolist() for _ in range(40)]
    shown = np.array([generator.permutation(7)[:5] for _ in range(40)])
    found = miscalibration(shown, Ragged.from_rows(met), sparse.csr_array(shares))
    slow = [slow_miscalibration(row.tolist(), own, genres) for row, own in zip(shown, met)]  # noqa: B905
    np.testing.assert_allclose(found, slow, atol=1e-12)


def test_the_same_mix_is_calibrated_and_another_is_not() -> None:
    shares = sparse.csr_array(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    met = Ragged.from_rows([[0, 1], [0], [2], []])
    shown = np.array([[1, 0], [1, -1], [0, 1], [0, 1]])
    same, other, no_category, no_history = miscalibration(shown, met, shares)
    assert same == pytest.approx(0, abs=1e-12)
    assert other == pytest.approx(math.log(1 / BLEND))
    assert math.isnan(no_category) and math.isnan(no_history)


def test_only_the_first_k_of_a_list_count() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    traits = ItemTraits(vectors, "made up")
    top, history = np.array([[0, 2, 1]]), Ragged.from_rows([[0]])
    found = case_list_metrics(top, history, traits, k=2)
    assert list(found) == ["diversity@2"] and found["diversity@2"].tolist() == [0.0]


def test_categories_come_from_the_first_set_that_is_small_enough(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "kind": ["x", "y", "x"],
            "same": ["s", "s", "s"],
            "genres": ["red|blue", "red", ""],
        }
    ).write_csv(source / "items.csv")
    log = [(f"u{user}", item, place) for user in range(4) for place, item in enumerate("abc")]
    pl.DataFrame(log, ["user", "item", "place"], orient="row").write_csv(source / "log.csv")
    kinds = {"kind": "category", "same": "set", "genres": "set"}
    catalogue = {
        "name": "small",
        "kind": "video",
        "items": {
            "table": "items.csv",
            "id": "id",
            "text": ["kind"],
            "attributes": {name: {"type": kind} for name, kind in kinds.items()},
        },
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "place"},
    }
    (tmp_path / "catalogue.yaml").write_text(json.dumps(catalogue))
    prepare(tmp_path / "catalogue.yaml", source, tmp_path / "data", num_workers=1)
    found = category_shares(PreparedData.open(tmp_path / "data"))
    assert found is not None and found[0] == "genres"
    assert found[1].toarray().tolist() == [[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]]
