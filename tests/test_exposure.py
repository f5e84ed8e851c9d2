"""Exposure of groups of items: by hand, against a slow loop, and in a report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sparse
from made_tables import write_tables

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.exposure import (
    ItemGroups,
    attribute_groups,
    event_groups,
    exposures,
)
from mmrec.evaluation.lists import exposure_shares

pytest_plugins = ["tiny_run"]


def test_places_count_as_they_do_in_ndcg() -> None:
    shares = sparse.csr_array(np.array([[1.0, 0], [0, 1], [0.5, 0.5], [0, 1]]))
    top = np.array([[0, 1, 2], [1, 0, -1]])  # the third list is as long as K allows
    second = 1 / math.log2(3)
    whole = (1 + second) * 2
    found = exposure_shares(top, shares, k=2)
    assert found.tolist() == pytest.approx([(1 + second) / whole, (1 + second) / whole])
    found = exposure_shares(top[:1], shares, k=3)
    total = 1 + second + 0.5
    assert found.tolist() == pytest.approx([(1 + 0.25) / total, (second + 0.25) / total])
    assert exposure_shares(np.full((2, 3), -1), shares).tolist() == [0, 0]


def test_exposure_equals_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(4), size=30)
    top = np.stack([generator.permutation(30)[:12] for _ in range(50)])
    top[::3, 7:] = -1
    slow = np.zeros(4)
    for row in top:
        for place, item in enumerate(row[:10], start=1):
            if item >= 0:
                slow += shares[item] / math.log2(1 + place)
    found = exposure_shares(top, sparse.csr_array(shares))
    np.testing.assert_allclose(found, slow / slow.sum())
    assert found.sum() == pytest.approx(1)


def test_items_by_events_and_what_to_hold_a_model_against() -> None:
    popularity = np.array([6, 2, 2, 1, 1, 0])
    groups = event_groups(popularity)
    assert groups.names == ("head", "middle", "tail", "new")
    assert groups.shares.toarray().argmax(1).tolist() == [1, 2, 2, 2, 2, 3]
    even = np.array([3, 3, 3, 2, 2, 2, 1, 1, 1, 0])
    assert event_groups(even).shares.toarray().argmax(1).tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 3]
    lists = exposure_shares(np.array([[0, 5], [0, 1]]), groups.shares)
    (found,) = exposures(
        [groups], {"mmrec": [lists]}, candidates=np.array([0, 1, 3, 5]), popularity=popularity
    )
    assert found.candidates == {"head": 0.0, "middle": 0.25, "tail": 0.5, "new": 0.25}
    assert found.events == {"head": 0.0, "middle": 0.5, "tail": 0.5, "new": 0.0}
    second = 1 / math.log2(3)
    assert found.models["mmrec"]["middle"] == pytest.approx(2 / (2 + 2 * second))
    assert sum(found.models["mmrec"].values()) == pytest.approx(1)


def test_items_by_provider(tmp_path: Path) -> None:
    """Thirteen labels of falling size, so that the thirteenth is among all others."""
    labels = [f"l{label:02}" for label in range(13) for _ in range(14 - label)]
    rows = [{"id": f"i{k}", "title": "x", "label": each} for k, each in enumerate(labels)]
    rows += [
        {"id": "two", "title": "x", "label": "l00|l12"},
        {"id": "none", "title": "x", "label": None},
    ]
    ids = [row["id"] for row in rows]
    log = pl.DataFrame({"user": ["u"] * len(ids), "item": ids, "place": range(len(ids))})
    catalogue = write_tables(
        tmp_path / "source",
        items=pl.DataFrame(rows),
        log=log,
        catalogue={
            "name": "labels",
            "kind": "video",
            "items": {"attributes": {"label": {"type": "set", "separator": "|"}}},
            "interactions": {"order": "place"},
        },
    )
    prepare(catalogue, tmp_path / "source", tmp_path / "data", num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    groups = attribute_groups(data, "label")
    assert isinstance(groups, ItemGroups) and groups.by == "items.label"
    assert groups.names == (*(f"l{k:02}" for k in range(12)), "all others", "unknown")
    table = groups.shares.toarray()
    np.testing.assert_allclose(table.sum(1), 1)
    both = table[data.items.index_of("two")]
    assert both[0] == 0.5 and both[groups.names.index("all others")] == 0.5
    assert table[data.items.index_of("none")][-1] == 1


def test_the_report_tells_every_models_exposure(tiny_run: Path) -> None:
    evaluate_run(tiny_run)
    report = json.loads((tiny_run / "report.json").read_text(encoding="utf-8"))
    (by_events,) = report["exposures"]
    assert by_events["by"] == "events"
    assert set(by_events["models"]) == set(report["models"])
    for shares in (*by_events["models"].values(), by_events["candidates"], by_events["events"]):
        assert sum(shares.values()) == pytest.approx(1)
    assert by_events["events"]["new"] == 0 < by_events["candidates"]["new"]
    figures = report["models"]["mmrec"]["all"]
    assert 0 <= figures["behaviour_diversity@10"] <= 1
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "Which items are shown: by training events" in page and "of the candidates" in page
    text = (tiny_run / "report.md").read_text(encoding="utf-8")
    assert "Exposure of tail items" in text and "Exposure of new items" in text
