"""The report: what it says, in which words, and that it is one file; read back from its HTML."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from data_prep.simulate import simulate
from mmrec.errors import UserError
from mmrec.evaluation import report_plots
from mmrec.evaluation.report import (
    SLICE_LABELS,
    KnockoutRow,
    OffsetPoint,
    UserStrip,
    headline,
    metrics_table,
    render_report,
)


def scores(hr: float, ndcg: float) -> dict[str, float]:
    return {
        "num_users": 3,
        "num_targets": 3,
        "hr@10": hr,
        "ndcg@10": ndcg,
        "mrr": ndcg / 2,
        "hr@50": hr,
        "coverage@10": 0.5,
        "novelty@10": 8.0,
        "popularity@10": 20.0,
    }


MODELS = {
    "popularity": {
        "all": scores(0.2, 0.1),
        "warm": scores(0.5, 0.4),
        "cold": scores(0.0, 0.0),
        "cold_among_cold": scores(0.1, 0.05),
        "new_users": None,
    },
    "mmrec": {
        "all": scores(0.4, 0.3),
        "warm": scores(0.45, 0.35),
        "cold": scores(0.2, 0.1),
        "cold_among_cold": scores(0.6, 0.4),
        "new_users": None,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("simulated")
    catalogue = simulate(
        folder / "raw", num_items=48, num_users=60, events_per_user=8, num_new_items=0
    )
    prepare(catalogue, folder / "raw", folder / "data", num_workers=1)
    return PreparedData.open(folder / "data")


@pytest.fixture
def run(tmp_path: Path, data: PreparedData) -> Path:
    document = {
        "schema": 1,
        "split": data.split().name,
        "protocol": {"name": data.split().name, "hash": "0123456789abcdef0123"},
        "data_hash": data.data_hash,
        "checkpoint": "best",
        "seed": 5,
        "models": MODELS,
    }
    (tmp_path / "metrics-test.json").write_text(json.dumps(document))
    return tmp_path


def words_of(page: str) -> str:
    """The text of a page, its tags and styles removed."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_run_with_figures_only_gives_a_report(run: Path, data: PreparedData) -> None:
    path = render_report(run, data=data, strips=[])
    words = words_of(path.read_text())
    assert "Simulated data." in words
    assert "medium: broken image 1" in words and "medium: broken audio 1" in words
    assert "protocol hash 0123456789abcdef" in words and "seed 5" in words
    assert "had users been shown them" in words
    assert "Nothing here is about users without any history" in words
    for absent in ("Learning", "What each medium is worth", "Cold against warm", "users </h2>"):
        assert absent not in words
    assert [p.name for p in run.iterdir() if "partial" in p.name] == []


def test_a_full_run_is_one_file_with_every_section(run: Path, data: PreparedData) -> None:
    lines = [{"step": s, "epoch": 0, "loss": 5 - s / 10} for s in range(1, 5)]
    looks = [{"step": 4, "epoch": 0, "validation": {"warm": {"ndcg@10": 0.2}, "cold": None}}]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(x) for x in [*lines, *looks]) + "\n")
    (run / "config.yaml").write_text("name: <demo> & more\n")
    ranks = [
        {"model": m, "user_id": f"u{u}", "item_id": "i", "slice": s, "rank": float(u + r)}
        for m, r in (("mmrec", 1), ("popularity", 3))
        for s in ("warm", "cold", "cold_among_cold")
        for u in range(4)
    ]
    pl.DataFrame(ranks).write_parquet(run / "ranks-test.parquet")
    no_picture = int((~data.items.has("image")).argmax())
    strips = [
        UserStrip("u<1>", met=list(range(20)), recommended=[3, no_picture], cold=[5], targets=[3])
    ]
    path = render_report(
        run,
        data=data,
        strips=strips,
        knockout=[
            KnockoutRow("all media", {"warm": 0.3, "cold": 0.2}),
            KnockoutRow("without audio", {"warm": 0.2, "cold": None}),
        ],
        offset_curve=[OffsetPoint(float(o), 0.3 - o / 20, o / 20, 0.5, 0.2) for o in range(4)],
        chosen_offset=1.0,
        warm_cost=0.05,
        facts={"parameters": 312_345, "seconds": 12.5},
    )
    page = path.read_text()
    words = words_of(page)
    for heading in ("Learning", "What each medium is worth", "Cold against warm", "1 user"):
        assert heading in words
    assert "at most 5 % of the warm NDCG@10: +1.00 logits" in words
    assert "parameters 312,345" in words and "seconds 12.5" in words
    assert "Met, oldest to newest (last 12 of 20)" in words
    assert "Warm items: +0." in words and "4 users" in words
    assert "u&lt;1&gt;" in page and "&lt;demo&gt; &amp; more" in page
    assert page.count('class="tile hit"') == 1 and 'class="blank"' in page
    assert page.count('src="data:image/svg+xml') == 4 and 'src="data:audio/flac' in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_equal_inputs_give_equal_bytes(run: Path, data: PreparedData) -> None:
    first = render_report(run, data=data, strips=[]).read_bytes()
    assert render_report(run, data=data, strips=[]).read_bytes() == first


def test_the_best_is_bold_whoever_it_is() -> None:
    table = dict(metrics_table(MODELS, ("warm", "cold"), ("hr@10", "popularity@10")))
    assert [cell.best for cell in table["popularity"]] == [True, False, False, False]
    assert [cell.best for cell in table["mmrec"]] == [False, False, True, False]
    assert [cell.text for cell in table["mmrec"]] == ["0.4500", "20.0", "0.2000", "20.0"]


def test_the_headline_admits_defeat() -> None:
    sentences = headline(MODELS, {"warm": "", "cold": ""})
    assert "45.0% of users, behind the best baseline, popularity, at 50.0%" in sentences[0]
    assert "20.0% of users, ahead of the best baseline, popularity, at 0.0%" in sentences[1]


def test_a_run_without_test_figures_is_refused_in_one_line(
    tmp_path: Path, data: PreparedData
) -> None:
    with pytest.raises(UserError, match="no metrics-test.json; run `mmrec evaluate"):
        render_report(tmp_path, data=data, strips=[])


def test_names_of_the_knock_outs_stand_clear_of_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(report_plots, "_as_uri", figures.append)
    names = ["all media", *(f"without vector.a_rather_long_name_{n}" for n in range(7))]
    rows = [(name, dict.fromkeys(SLICE_LABELS, 0.05)) for name in names]
    report_plots.knockout_bars(rows, SLICE_LABELS)
    (figure,) = figures
    figure.draw_without_rendering()
    panels = figure.axes
    texts = [*panels[0].get_yticklabels(), *(panel.title for panel in panels)]
    assert [text.get_text() for text in texts[: len(names)]] == names
    texts += [text for panel in panels for text in panel.texts]
    assert len(texts) == len(names) + len(panels) + len(names) * len(panels)
    boxes = [text.get_window_extent() for text in texts]
    for one, other in itertools.combinations(range(len(texts)), 2):
        assert not boxes[one].overlaps(boxes[other]), (texts[one], texts[other])
