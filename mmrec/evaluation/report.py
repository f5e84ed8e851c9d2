"""RUN/report.html: one file that says what a run is worth, readable without a network or scripts.

    RUN/metrics-test.json, metrics.jsonl, ranks-test.parquet, config.yaml
    + prepared data (counts, pictures) + Findings ─┬► RUN/report.html
                                                   └► RUN/report.json ─► report.md, scorecard.png

Only the test figures must exist; a section whose input is absent is left out. Figures are shown as
they came out: the best of a column is bold whoever's it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.shards import PreparedData
from mmrec.errors import UserError
from mmrec.evaluation.ablation import KnockoutRow
from mmrec.evaluation.exposure import BY_EVENTS
from mmrec.evaluation.findings import Findings
from mmrec.evaluation.item_labels import label_rows
from mmrec.evaluation.new_last import NEW_LAST
from mmrec.evaluation.report_document import report_document, write_aside, write_document
from mmrec.evaluation.report_plots import (
    OURS,
    knockout_bars,
    learning_curves,
    model_bars,
    new_users_plot,
    offset_plot,
    reliability_plot,
    sweep_plot,
)
from mmrec.evaluation.report_tables import (
    METHOD_NAMES,
    TAIL_FIGURES,
    breakdown_table,
    cost_rows,
    cost_table,
    costs_in,
    data_rows,
    exposure_table,
    head_rows,
    in_order,
    metrics_table,
    new_users_table,
    ours_first,
    paired_table,
    quarantine_rows,
    run_rows,
    seeds_table,
    stability_table,
    sweep_table,
    tail_table,
    variety_table,
)
from mmrec.evaluation.report_tiles import Tile, make_tile
from mmrec.evaluation.report_words import (
    SLICE_LABELS,
    Intervals,
    Models,
    headline,
    limits,
    shown_slices,
    zero_shot,
)
from mmrec.evaluation.scorecard import scorecard_markdown
from mmrec.evaluation.scorecard_plot import scorecard_png
from mmrec.evaluation.significance import PairedDifference, intervals_and_tests
from mmrec.evaluation.strips import UserStrip
from mmrec.retrieval.rerank import METHODS
from mmrec.training.manifest import read_manifest

BREAKDOWN_TITLES = {
    ("item", "all"): "By training events of the target item, all targets",
    ("user", "warm"): "By training events of the user, warm targets",
    ("user", "cold"): "By training events of the user, cold targets among all candidates",
}
TABLE_METRICS = ("hr@10", "ndcg@10")
LIST_METRICS = (
    "mrr",
    "hr@50",
    "coverage@10",
    "gini@10",
    "diversity@10",
    "behaviour_diversity@10",
    "categories@10",
    "miscalibration@10",
    "novelty@10",
    "popularity@10",
)
DEFAULT_WARM_COST = 0.05
POPULARITY = "popularity"
TAIL_COLUMNS = tuple(TAIL_FIGURES.values())


def render_report(run: Path, *, data: PreparedData, findings: Findings) -> Path:
    """Writes RUN/report.html, report.json, report.md and scorecard.png from the files of a run.

    Args:
        run: folder with metrics-test.json.
        data: the prepared folder of the run.
        findings: of the evaluation; what is empty is left out.

    Returns:
        Path of the report.

    Raises:
        UserError: the run has no test figures, or none of ours.
    """
    document = _read_json(run / "metrics-test.json")
    if document is None:
        raise UserError(f"{run}: no metrics-test.json; run `mmrec evaluate {run}` first")
    models = ours_first(document["models"])
    if OURS not in models:
        raise UserError(f"{run / 'metrics-test.json'}: no model {OURS!r} among {', '.join(models)}")
    labels = shown_slices(models[OURS])
    intervals, tests = _significance(run / "ranks-test.parquet", list(models), list(labels))
    simulated = findings.simulated or data.catalogue.kind == "simulated"
    steps = _read_lines(run / "metrics.jsonl")
    swept = [name for model in models for name in (model, model + NEW_LAST)]
    sweeps = list(in_order({each.model: each for each in findings.sweeps}, swept).values())
    sentences = [*headline(models, labels), *zero_shot(models, labels)]
    said = limits(document, findings, intervals, simulated=simulated)
    quarantine = quarantine_rows(data, document)
    page = {
        "title": data.manifest["name"],
        "simulated": simulated,
        "sentences": sentences,
        "labels": labels,
        "table": metrics_table(models, tuple(labels), TABLE_METRICS, intervals),
        "table_metrics": [name.upper() for name in TABLE_METRICS],
        "num_targets": {name: models[OURS][name]["num_targets"] for name in labels},  # type: ignore[index]
        "has_intervals": bool(intervals),
        "has_groups": any("." in each.by for each in findings.breakdowns),
        "bars": model_bars(models, labels),
        "paired": paired_table(tests, tuple(labels)),
        "num_tests": len(tests),
        "breakdowns": [
            {
                "title": BREAKDOWN_TITLES.get((each.by, each.slice), f"By {each.by}, all targets"),
                "groups": each.groups,
                "num_targets": {g: each.models[OURS][g]["num_targets"] for g in each.groups},
                "table": breakdown_table(each),
                "bars": model_bars(each.models, each.groups),
            }
            for found in findings.breakdowns
            for each in [replace(found, models=in_order(found.models, models))]
        ],
        **_lists(models, findings),
        "exposures": [
            (
                "training events" if each.by == BY_EVENTS else each.by,
                list(each.candidates),
                exposure_table(each, list(models)),
            )
            for each in findings.exposures
        ],
        "before": _before(findings, models, labels),
        "curves": learning_curves(steps, SLICE_LABELS),
        "gap": findings.gap,
        "knockout": _knockout_plot(findings.knockout, labels),
        "offsets": _offset_plot(findings),
        "chosen_offset": findings.chosen_offset,
        "warm_cost": findings.warm_cost,
        "sweeps": sweep_plot(sweeps),
        "sweep_cost": findings.warm_cost or DEFAULT_WARM_COST,
        "cost_table": cost_table(findings.at_costs, swept),
        "warm_costs": costs_in(findings.at_costs),
        "new_last_swept": any(each.model == OURS + NEW_LAST for each in findings.at_costs),
        "sweep_table": sweep_table(sweeps, findings.warm_cost or DEFAULT_WARM_COST),
        "tail_table": tail_table(findings.tail_curve, findings.popularity_share),
        "tail_columns": TAIL_COLUMNS,
        "variety_table": variety_table(findings.variety_curve),
        "variety_methods": [METHOD_NAMES[each] for each in METHODS],
        "new_users": document.get("new_users"),
        "new_users_table": new_users_table(document.get("new_users")),
        "new_users_plot": new_users_plot(document.get("new_users")),
        "reliability": findings.reliability,
        "reliability_plot": reliability_plot(findings.reliability),
        "heads": head_rows(document.get("heads", {})),
        "labels_of_items": label_rows(document.get("labels", {})),
        "strips": [_strip(data, strip) for strip in findings.strips],
        "extremes": [
            (title, [_strip(data, strip) for strip in strips])
            for title, strips in (("Best cases", findings.best), ("Worst cases", findings.worst))
            if strips
        ],
        "stability": findings.stability,
        "stability_table": stability_table(findings.stability, labels),
        "seeds_table": seeds_table(findings.stability, labels),
        "data_rows": data_rows(data),
        "quarantine": quarantine,
        "run_rows": run_rows(document, read_manifest(run)),
        "cost_rows": cost_rows(findings.costs) if findings.costs is not None else [],
        "limits": said,
        "config": _read_text(run / "config.yaml"),
    }
    figures = report_document(
        document,
        findings,
        data,
        intervals=intervals,
        tests=tests,
        steps=steps,
        sentences=sentences,
        limits=said,
        quarantine=dict(quarantine),
        simulated=simulated,
        manifest=read_manifest(run),
    )
    write_document(run / "report.json", figures)
    write_aside(run / "report.md", scorecard_markdown(figures).encode())
    write_aside(run / "scorecard.png", scorecard_png(figures))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = run / "report.html"
    write_aside(path, environment.get_template("report.html").render(page).encode())
    return path


def _significance(
    path: Path, models: Sequence[str], slices: Sequence[str]
) -> tuple[Intervals, list[PairedDifference]]:
    """Intervals and paired tests from the ranks; nothing where a run has none."""
    if not path.is_file():
        return {}, []
    ranks = pl.read_parquet(path)
    return intervals_and_tests(
        ranks, models, slices=slices, metrics=TABLE_METRICS, tested="ndcg@10"
    )


def _lists(models: Models, findings: Findings) -> dict[str, Any]:
    """The table of what the lists look like, without the columns that nobody has."""
    shown = [
        name
        for name in LIST_METRICS
        if any(name in (slices.get("all") or {}) for slices in models.values())
    ]
    return {
        "list_table": metrics_table(models, ("all",), shown),
        "list_metrics": shown,
        "diversity_by": findings.diversity_by,
        "miscalibration_by": findings.miscalibration_by,
    }


def _before(findings: Findings, models: Models, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Our figures after training and before it, beside popularity where it was ranked."""
    if findings.before is None:
        return None
    beside = {"after training": models[OURS], "before training": findings.before}
    beside |= {POPULARITY: models[POPULARITY]} if POPULARITY in models else {}
    rows = [
        (name, {s: (slices.get(s) or {}).get("ndcg@10") for s in labels})
        for name, slices in beside.items()
    ]
    return {
        "table": metrics_table(beside, tuple(labels), TABLE_METRICS),
        "bars": knockout_bars(rows, labels),
    }


def _offset_plot(findings: Findings) -> str | None:
    if not findings.offset_curve:
        return None
    figures = [(point.offset, point.warm_ndcg, point.cold_ndcg) for point in findings.offset_curve]
    return offset_plot(figures, chosen=findings.chosen_offset, warm_cost=findings.warm_cost)


def _knockout_plot(rows: Sequence[KnockoutRow], labels: Mapping[str, str]) -> str | None:
    shown = {n: label for n, label in labels.items() if any(row.ndcg.get(n) for row in rows)}
    return knockout_bars([(row.name, row.ndcg) for row in rows], shown) if shown else None


def _strip(data: PreparedData, strip: UserStrip) -> dict[str, Any]:
    def tiles(items: Sequence[int], with_sound: bool, mark: bool = True) -> list[Tile]:
        return [
            make_tile(data, item, with_sound=with_sound, hit=mark and item in strip.targets)
            for item in items
        ]

    num_met = len(strip.met) if strip.num_met is None else strip.num_met
    met = f"Met, oldest to newest (last {len(strip.met)} of {num_met:,})"
    # the sounds of all rows would make the file three times as heavy
    rows = [
        (met, tiles(strip.met, with_sound=False)),
        ("Recommended, best first", tiles(strip.recommended, with_sound=False)),
    ]
    if strip.note:
        rows.append(("Really met next", tiles(strip.targets, with_sound=False, mark=False)))
    elif strip.cold:
        rows.append(("Cold items that score highest", tiles(strip.cold, with_sound=True)))
    return {"user_id": strip.user_id, "note": strip.note, "rows": rows}


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _read_text(path).splitlines() if line]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
