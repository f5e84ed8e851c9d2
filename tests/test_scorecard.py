"""report.md and scorecard.png: the same figures as report.json, in every facet that has some."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mmrec.evaluation.scorecard import Facet, facet_groups, scorecard_markdown
from mmrec.evaluation.scorecard_plot import MAX_PANELS, in_bands, scorecard_figure, scorecard_png

GOLDEN = Path(__file__).parent / "golden"
COSTS = {
    "parameters": {"fusion": {"trainable": 312_345, "frozen": 0}},
    "training_s": 1234.5,
    "steps": 40,
    "epochs": 2,
    "step_of_model": 30,
    "peak_memory_bytes": 1_500_000_000,
    "peak_device_memory_bytes": None,
    "vector_bytes": 4096,
    "latency": {
        "p50_ms": 2.5,
        "p95_ms": 4.0,
        "num_calls": 200,
        "num_candidates": 48,
        "num_threads": 1,
        "device": "cpu",
    },
}

STABILITY: dict[str, Any] = {
    "list_length": 10,
    "num_draws": 5,
    "num_users": 1000,
    "perturbations": [
        {
            "name": "typos",
            "overlap": {"mean": 0.9, "over_users": 0.2, "over_repetitions": 0.0125},
            "cosine": 0.97,
        }
    ],
    "seeds": {
        "runs": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
        "overlap": {"mean": 0.6, "over_users": 0.25, "over_repetitions": 0.03},
    },
}


@pytest.fixture
def document() -> dict[str, Any]:
    """The golden report with every facet filled."""
    found: dict[str, Any] = json.loads((GOLDEN / "report.json").read_text())
    parts = {"head": {"ndcg@10": 0.5, "hr@10": 0.6}, "tail": {"ndcg@10": 0.25, "hr@10": 0.3}}
    for slices in found["models"].values():
        slices["all"] |= {"gini@10": 0.75, "diversity@10": 0.5, "miscalibration@10": 1.5}
    for by, slice_name in (("item", "all"), ("user", "warm"), ("user", "cold")):
        found["breakdowns"].append(
            {
                "by": by,
                "slice": slice_name,
                "groups": {"head": "head: 3", "tail": "tail: 9"},
                "models": {"mmrec": parts, "popularity": {"head": parts["head"]}},
            }
        )
    interval = {"ndcg@10": [0.3, 0.41], "hr@10": [0.4, 0.5]}
    found["intervals"] = {name: {"warm": dict(interval)} for name in found["models"]}
    found["tests"] = [
        {
            "slice": "warm",
            "metric": "ndcg@10",
            "first": "mmrec",
            "second": "popularity",
            "difference": -0.05,
            "interval": [-0.1, 0.02],
            "p_value": 0.125,
            "num_users": 3,
        }
    ]
    found["knockout"] = [
        {"name": "all media", "ndcg": {"warm": 0.35, "cold": 0.1}},
        {"name": "without audio", "ndcg": {"warm": 0.3, "cold": None}},
    ]
    found["before"] = {"all": {"ndcg@10": 0.02}, "warm": {"ndcg@10": 0.03}, "cold": None}
    found["learning"]["gap"] = {
        "num_users": 2000,
        "train_ndcg": 0.45,
        "validation_ndcg": 0.4,
        "difference": 0.05,
        "interval": [0.04, 0.06],
    }
    found["reliability"] = [{"k": 1, "error": 0.0625}, {"k": 10, "error": 0.03125}]
    found["costs"] = COSTS
    found["stability"] = STABILITY
    found["lists"] = {"diversity_by": "content vectors", "miscalibration_by": "genres"}
    return found


def facets_of(document: dict[str, Any]) -> dict[tuple[str, str, str], Facet]:
    return {
        (group.title, facet.title, facet.measure): facet
        for group in facet_groups(document)
        for facet in group.facets
    }


def test_every_facet_is_there_with_the_figures_of_the_document(document: dict[str, Any]) -> None:
    assert [group.title for group in facet_groups(document)] == [
        "Accuracy",
        "Fairness",
        "Lists: coverage, novelty, diversity",
        "Robustness: media left out",
        "Stability: media changed a little",
        "Before and after training",
        "Over-fitting",
        "Calibration",
        "Cost of training: 1,234 s",
        "Cost of use",
    ]
    found = facets_of(document)
    assert found["Accuracy", "Warm items", "NDCG@10"].values == {"mmrec": 0.35, "popularity": 0.4}
    assert found["Accuracy", "Warm items", "NDCG@10"].intervals["mmrec"] == [0.3, 0.41]
    assert found["Fairness", "Tail items", "NDCG@10"].values == {"mmrec": 0.25, "popularity": None}
    assert not any("cold targets" in title for _, title, _ in found)
    assert found["Fairness", "Exposure of items", "Gini@10"].better == "lower"
    lists = "Lists: coverage, novelty, diversity"
    assert found[lists, "Coverage", "share of candidates"].values["mmrec"] == 0.5
    robust = found["Robustness: media left out", "Cold items, among all", "NDCG@10"]
    assert robust.values == {"all media": 0.1, "without audio": None}
    stable = "Stability: media changed a little"
    lists, contents = (f"{what} before and after" for what in ("Lists", "Contents"))
    assert found[stable, lists, "RBO@10"].values == {"typos": 0.9, "another seed": 0.6}
    spread = found[stable, f"{lists}, deviation", "RBO"].values
    assert spread == {"typos": 0.0125, "another seed": 0.03}
    assert found[stable, contents, "cosine"].values == {"typos": 0.97, "another seed": None}
    training = found["Before and after training", "Warm items", "NDCG@10"]
    told = {"after training": 0.35, "before training": 0.03, "popularity": 0.4}
    assert training.values == told
    gap = found["Over-fitting", "Targets of", "NDCG@10"]
    assert gap.values == {"training": 0.45, "validation": 0.4}
    assert found["Cost of use", "One recommendation", "milliseconds"].values["median"] == 2.5


def test_a_facet_without_figures_is_left_out() -> None:
    document = json.loads((GOLDEN / "report.json").read_text())
    titles = [group.title for group in facet_groups(document)]
    assert titles == ["Accuracy", "Lists: coverage, novelty, diversity"]
    text = scorecard_markdown(document)
    assert "The model reads no media" in text and "Over-fitting" not in text
    assert len(scorecard_figure(document).axes) == 8 + 2


def test_the_best_is_bold_whoever_it_is_and_the_loss_is_told(document: dict[str, Any]) -> None:
    text = scorecard_markdown(document)
    accuracy = text.split("## Accuracy")[1].split("## ")[0]
    (row,) = [line for line in accuracy.splitlines() if line.startswith("| popularity |")]
    assert "| **.4000** (.3000–.4100) |" in row
    assert (
        "- Warm items: mmrec minus popularity, the best baseline, NDCG@10 -0.0500 "
        "(-0.1000 to +0.0200; p = 0.12)" in text
    )
    assert "seed 5" in text and "**Simulated data:**" in text and "(scorecard.png)" in text
    assert "A gap of +0.0500 (+0.0400 to +0.0600)" in text and "peak memory 1.5 GB" in text
    for sentence in document["sentences"]:
        assert sentence in text


def test_every_table_has_as_many_cells_a_row_as_its_head(document: dict[str, Any]) -> None:
    lines = scorecard_markdown(document).splitlines()
    runs = itertools.groupby(lines, key=lambda line: line.startswith("|"))
    tables = [list(own) for is_table, own in runs if is_table]
    assert len(tables) == len(facet_groups(document))
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table


def test_the_picture_has_a_panel_a_facet_with_bars_as_long_as_the_figures(
    document: dict[str, Any],
) -> None:
    figure = scorecard_figure(document)
    figure.draw_without_rendering()
    drawn = [
        (axes.get_title(), tuple(round(bar.get_width(), 6) for bar in axes.patches))
        for axes in figure.axes
    ]
    expected = [
        (
            facet.title.replace(", ", ",\n"),
            tuple(round(value or 0.0, 6) for value in facet.values.values()),
        )
        for facet in facets_of(document).values()
    ]
    assert sorted(drawn) == sorted(expected)
    for axes in figure.axes:
        assert axes.get_xlim()[0] == 0 and axes.get_xlabel()
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(box.x1 <= axes.get_window_extent().x1 + 1 for box in boxes), axes.get_title()


def test_no_band_is_too_full(document: dict[str, Any]) -> None:
    groups = facet_groups(document)
    bands = in_bands(groups)
    assert all(sum(len(group.facets) for group in band) <= MAX_PANELS for band in bands)
    kept = [facet for band in bands for group in band for facet in group.facets]
    assert len(kept) == sum(len(group.facets) for group in groups)
    assert [group.title for group in bands[0]][0] == "Accuracy: NDCG@10"


def test_equal_documents_give_equal_pictures(document: dict[str, Any]) -> None:
    first, second = scorecard_png(document), scorecard_png(document)
    assert first.startswith(b"\x89PNG")
    # pytest takes minutes to set a hundred kilobytes that differ side by side
    same = first == second
    assert same
