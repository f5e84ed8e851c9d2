"""The report: what it says, in which words, and that it is one file; read back from its HTML."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from matplotlib.figure import Figure

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from data_prep.simulate import simulate
from mmrec.errors import UserError
from mmrec.evaluation import report_plots
from mmrec.evaluation.ablation import KnockoutRow
from mmrec.evaluation.breakdown import Breakdown
from mmrec.evaluation.confidence import Reliability
from mmrec.evaluation.cost import Costs, Latency
from mmrec.evaluation.data_facts import DataFacts
from mmrec.evaluation.findings import Findings, OffsetPoint
from mmrec.evaluation.gap import Gap
from mmrec.evaluation.report import SLICE_LABELS, render_report
from mmrec.evaluation.report_tables import in_order, metrics_table
from mmrec.evaluation.report_words import headline, zero_shot
from mmrec.evaluation.schemas import ReportDocument
from mmrec.evaluation.scorecard import scorecard_markdown
from mmrec.evaluation.scorecard_plot import scorecard_png
from mmrec.evaluation.stability import Overlap, PerturbationRow, SeedRun, Seeds, Stability
from mmrec.evaluation.strips import UserStrip
from mmrec.evaluation.sweep import AtCost, Sweep
from mmrec.evaluation.variety import VarietyPoint
from mmrec.retrieval.rerank import METHODS

GOLDEN = Path(__file__).parent / "golden"


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
    path = render_report(run, data=data, findings=Findings())
    words = words_of(path.read_text())
    assert "Simulated data." in words
    assert "medium: broken image 1" in words and "medium: broken audio 1" in words
    assert "protocol hash 0123456789abcdef" in words and "seed 5" in words
    assert "had users been shown them" in words
    assert "Nothing here is about users without any history" in words
    for absent in ("Learning", "What each medium is worth", "Cold against warm", "users </h2>"):
        assert absent not in words
    assert "How stable" not in words
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
        UserStrip(
            "u<1>",
            met=list(range(8, 20)),
            num_met=20,
            recommended=[3, no_picture],
            cold=[5],
            targets=[3],
        )
    ]
    path = render_report(
        run,
        data=data,
        findings=Findings(
            strips=strips,
            knockout=[
                KnockoutRow("all media", {"warm": 0.3, "cold": 0.2}),
                KnockoutRow("without audio", {"warm": 0.2, "cold": None}),
            ],
            offset_curve=[OffsetPoint(float(o), 0.3 - o / 20, o / 20, 0.5, 0.2) for o in range(4)],
            chosen_offset=1.0,
            warm_cost=0.05,
            **everything_else(),
        ),
    )
    page = path.read_text()
    words = words_of(page)
    for heading in ("Learning", "What each medium is worth", "Cold against warm", "1 user"):
        assert heading in words
    assert "at most 5 % of the warm NDCG@10: +1.00 logits" in words
    assert "parameters of fusion 312,345 trained, 7 frozen" in words
    assert "training 12 s in 40 steps" in words and "peak memory of training 1.5 GB" in words
    assert "one recommendation, median 2.5 ms 95 % are faster than 4 ms" in words
    assert "Met, oldest to newest (last 12 of 20)" in words
    assert "minus All targets Warm items" in words
    assert "+0.2220 +0.0938 to +0.4033, p = .123" in words
    assert "By training events of the target item, all targets" in words
    assert "head: 1 item, 30 events" in words
    assert "0.0625 for the first item (40 cases" in words
    assert "Before: the same network at its first step" in words
    assert "of the same 50 users, a gap of +0.0500 (+0.0400 to +0.0625)" in words
    assert "best for cold, at most 5 % of its best warm lost" in words
    assert "Best cases" in words and "User u2: warm target at rank 1 of 48" in words
    assert "53% of the events in the histories asked with carry the same time" in words
    assert "2000-04-25" in words and "60 of 100 users of the catalogue" in words
    assert "one letter &lt;wrong&gt; 0.8125 ± 0.0123 0.1234 0.9375 -0.0625 ± 0.0011" in words
    assert "The media of 45 of 48 candidates were changed" in words
    assert "3 text media could not be used and were left out" in words
    assert "seed 1 0.3750" in words and "mean 0.4375 0.2000 0.3125 ± 0.0884" in words
    assert "u&lt;1&gt;" in page and "&lt;demo&gt; &amp; more" in page
    # shown and met; not again in the row of what was really met next
    assert page.count('class="tile hit"') == 2 and 'class="blank"' in page
    assert page.count('src="data:image/svg+xml') == 8 and 'src="data:audio/flac' in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def everything_else() -> dict[str, Any]:
    """Findings that the first part of the test does not spell out."""
    scores_of = {"num_users": 4, "num_targets": 4, "hr@10": 0.5, "ndcg@10": 0.25}
    return {
        "best": [UserStrip("u2", [1], [2], [], [2], 1, "warm target at rank 1 of 48")],
        "variety_curve": [
            VarietyPoint(method, strength, 0.25 - strength / 8, 0.5, diversity)
            for method in METHODS
            for strength, diversity in ((0.0, 0.625), (1.0, None))
        ],
        "before": {"warm": {**scores_of, "hr@10": 0.125}, "cold": None},
        "breakdowns": [
            Breakdown(
                "item",
                "all",
                {"head": "head: 1 item, 30 events"},
                {"mmrec": {"head": dict(scores_of)}, "popularity": {"head": dict(scores_of)}},
            )
        ],
        "sweeps": [Sweep("mmrec", [-1.0, 0.0], [0.4, 0.3], [0.1, 0.2], [0.5, 0.4], [0.2, 0.3])],
        "at_costs": [
            AtCost("mmrec", 0.05, 0.5, 0.375, 0.1875, 0.3125),
            AtCost("popularity", 0.05, -1.0, 0.25, 0.0625, 0.125),
        ],
        "reliability": [Reliability(1, "warm", 40, 0.0625, [0.1, 0.2], [0.15, 0.3], [20, 20])],
        "costs": Costs(
            parameters={"fusion": {"trainable": 312_345, "frozen": 7}},
            training_s=12.4,
            steps=40,
            epochs=2,
            step_of_model=30,
            peak_memory_bytes=1_500_000_000,
            peak_device_memory_bytes=None,
            vector_bytes=4096,
            latency=Latency(2.5, 4.0, 200, 48, 1, "cpu"),
        ),
        "facts": DataFacts(100, 60, 48, 30, 7.0, "order", 0.53, 956_700_000, 1_046_454_590),
        "stability": stability(),
        "gap": Gap(50, 0.25, 0.2, 0.05, (0.04, 0.0625)),
        "diversity_by": "content vectors",
        "miscalibration_by": "genres",
    }


def stability() -> Stability:
    """Typos and two seeds."""
    row = PerturbationRow(
        name="typos",
        modality="text",
        words="one letter <wrong>",
        num_items=44,
        num_broken=3,
        overlap=Overlap(0.8125, 0.1234, 0.0123),
        cosine=0.9375,
        ndcg_change={"all": -0.0625, "warm": -0.0624, "cold": None},
        ndcg_deviation={"all": 0.0011, "warm": None, "cold": None},
    )
    runs = [SeedRun(f"run-{seed}", seed, {"all": 0.25 + seed / 8}) for seed in (0, 1)]
    return Stability(
        schema=1,
        data_hash="d",
        model_hash="m",
        checkpoint="step 4",
        seed=0,
        list_length=10,
        persistence=0.9,
        num_draws=5,
        num_users=60,
        num_items=45,
        num_candidates=48,
        ndcg={"all": 0.25},
        perturbations=[row],
        seeds=Seeds(runs, Overlap(0.4375, 0.2, None), {"all": 0.3125}, {"all": 0.0884}),
    )


def test_the_same_figures_as_json(run: Path, data: PreparedData) -> None:
    render_report(run, data=data, findings=Findings(strips=[UserStrip("u", [0], [1], [2], [1])]))
    document = json.loads((run / "report.json").read_text())
    golden = json.loads((GOLDEN / "report.json").read_text())
    # of the data and of the seed that made them: not the report's to keep
    for each in (document, golden):
        each.pop("data"), each.pop("data_hash"), each.pop("quarantine")
    assert document == golden


def test_json_holds_what_the_page_shows(run: Path, data: PreparedData) -> None:
    render_report(run, data=data, findings=Findings(**everything_else()))
    document = json.loads((run / "report.json").read_text())
    assert document["schema"] == 1 and document["models"] == MODELS
    assert document["before"]["warm"]["hr@10"] == 0.125
    assert document["breakdowns"][0]["models"]["mmrec"]["head"]["num_targets"] == 4
    assert document["sweeps"][0]["cold_ndcg"] == [0.1, 0.2]
    assert document["at_costs"][0]["cold_hr"] == 0.3125
    assert [each["diversity"] for each in document["variety"]] == [0.625, None] * 2
    assert document["reliability"][0]["error"] == 0.0625
    assert document["costs"]["latency"]["p95_ms"] == 4.0
    assert document["facts"]["tied_share"] == 0.53
    assert document["stability"]["perturbations"][0]["overlap"]["mean"] == 0.8125
    assert document["learning"]["gap"]["interval"] == [0.04, 0.0625]
    assert document["best"][0]["targets"] == [data.items.item_ids[2]]
    page = words_of((run / "report.html").read_text()).replace("&#39;", "'")
    assert "5 % of warm lost on validation" in page and "mmrec 0.3750 0.3125" in page
    assert "0 0.2500 0.6250 0.2500 0.6250 1 0.1250 – 0.1250 –" in page
    for sentence in [*document["sentences"], *document["limits"]]:
        assert sentence in page
    ReportDocument.model_validate_json((run / "report.json").read_text())
    assert (run / "report.md").read_text() == scorecard_markdown(document)
    assert (run / "scorecard.png").read_bytes() == scorecard_png(document)


def test_equal_inputs_give_equal_bytes(run: Path, data: PreparedData) -> None:
    first = render_report(run, data=data, findings=Findings()).read_bytes()
    assert render_report(run, data=data, findings=Findings()).read_bytes() == first


def test_the_best_is_bold_whoever_it_is() -> None:
    table = dict(metrics_table(MODELS, ("warm", "cold"), ("hr@10", "popularity@10")))
    assert [cell.best for cell in table["popularity"]] == [True, False, False, False]
    assert [cell.best for cell in table["mmrec"]] == [False, False, True, False]
    assert [cell.text for cell in table["mmrec"]] == ["0.4500", "20.0", "0.2000", "20.0"]


def test_the_headline_admits_defeat() -> None:
    sentences = headline(MODELS, {"warm": "", "cold": ""})
    assert "45.0% of users, behind the best baseline, popularity, at 50.0%" in sentences[0]
    assert "20.0% of users, ahead of the best baseline, popularity, at 0.0%" in sentences[1]


def test_the_report_says_what_zero_shot_gives() -> None:
    slices = {"warm": scores(0.3, 0.2), "cold": scores(0.1, 0.05), "new_users": None}
    labels = {"warm": "Warm items", "cold": "Cold items", "new_users": "New users"}
    (sentence,) = zero_shot({**MODELS, "content_knn": slices}, labels)
    assert sentence.startswith("Zero-shot, without any training on the log: content_knn")
    assert sentence.endswith("in its first ten for Warm items: 30.0%, Cold items: 10.0%.")
    assert zero_shot(MODELS, labels) == []  # a run of ids


def test_a_run_without_test_figures_is_refused_in_one_line(
    tmp_path: Path, data: PreparedData
) -> None:
    with pytest.raises(UserError, match="no metrics-test.json; run `mmrec evaluate"):
        render_report(tmp_path, data=data, findings=Findings())


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


def test_models_stand_in_the_order_of_the_main_table() -> None:
    found = in_order({"ease": 1, "new": 2, "mmrec": 3, "markov": 4}, ["mmrec", "markov", "ease"])
    assert list(found.items()) == [("mmrec", 3), ("markov", 4), ("ease", 1), ("new", 2)]
