"""RUN/report.html: one file that says what a run is worth, readable without a network or scripts.

    RUN/metrics-test.json, metrics-validation.json, metrics.jsonl, ranks-test.parquet, config.yaml
    + prepared data (counts, pictures) + strips, knock-outs, offset curve ─► RUN/report.html

Only the test figures must exist; a section whose input is absent is left out. Figures are shown as
they came out: the best of a column is bold whoever's it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.shards import PreparedData
from mmrec.errors import UserError
from mmrec.evaluation.evaluate import compare_models
from mmrec.evaluation.report_plots import (
    OURS,
    knockout_bars,
    learning_curves,
    model_bars,
    offset_plot,
)
from mmrec.evaluation.report_tiles import Tile, make_tile

SLICE_LABELS = {
    "all": "All targets",
    "warm": "Warm items",
    "cold": "Cold items, among all",
    "cold_among_cold": "Cold items, among cold",
    "new_users": "New users",
}
TABLE_METRICS = ("hr@10", "ndcg@10")
LIST_METRICS = ("mrr", "hr@50", "coverage@10", "novelty@10", "popularity@10")
_ROWS_OF_MET = 12  # newest events shown of a history

Models = dict[str, dict[str, dict[str, float] | None]]


@dataclass(frozen=True)
class UserStrip:
    """What one user met (oldest to newest), is recommended, and which cold items score highest.

    All are item_index, best first where ranked; `targets` are the items really met next, marked
    where they are shown.
    """

    user_id: str
    met: Sequence[int]
    recommended: Sequence[int]
    cold: Sequence[int]
    targets: Sequence[int] = ()


@dataclass(frozen=True)
class KnockoutRow:
    """NDCG@10 by slice with some media left out: `name` says which ("all media" for none)."""

    name: str
    ndcg: Mapping[str, float | None]


@dataclass(frozen=True)
class OffsetPoint:
    """Validation figures at one offset (in logits) of the items without events."""

    offset: float
    warm_ndcg: float
    cold_ndcg: float
    warm_hr: float
    cold_hr: float


@dataclass(frozen=True)
class _Cell:
    text: str
    best: bool


def render_report(
    run: Path,
    *,
    data: PreparedData,
    strips: Sequence[UserStrip],
    knockout: Sequence[KnockoutRow] = (),
    offset_curve: Sequence[OffsetPoint] = (),
    chosen_offset: float | None = None,
    warm_cost: float | None = None,
    simulated: bool = False,
    facts: Mapping[str, str | int | float] | None = None,
) -> Path:
    """Writes RUN/report.html from the files of a run.

    Args:
        run: folder with metrics-test.json.
        data: the prepared folder of the run.
        strips: users to show with pictures.
        knockout: figures with media left out, the whole model first.
        offset_curve: warm against cold on validation.
        chosen_offset: the model's offset, in logits.
        warm_cost: share of warm NDCG@10 that the choice was allowed to cost.
        simulated: say so beside the figures; also said where the catalogue's kind is `simulated`.
        facts: further rows of the table of facts, such as parameters and seconds.

    Returns:
        Path of the report.

    Raises:
        UserError: the run has no test figures, or none of ours.
    """
    document = _read_json(run / "metrics-test.json")
    if document is None:
        raise UserError(f"{run}: no metrics-test.json; run `mmrec evaluate {run}` first")
    models = _ours_first(document["models"])
    if OURS not in models:
        raise UserError(f"{run / 'metrics-test.json'}: no model {OURS!r} among {', '.join(models)}")
    labels = {n: label for n, label in SLICE_LABELS.items() if models[OURS].get(n)}
    page = {
        "title": data.manifest["name"],
        "simulated": simulated or data.catalogue.kind == "simulated",
        "sentences": headline(models, labels),
        "labels": labels,
        "table": metrics_table(models, tuple(labels), TABLE_METRICS),
        "table_metrics": [name.upper() for name in TABLE_METRICS],
        "num_targets": {name: models[OURS][name]["num_targets"] for name in labels},  # type: ignore[index]
        "list_table": metrics_table(models, ("all",), LIST_METRICS),
        "list_metrics": LIST_METRICS,
        "comparisons": _comparisons(run / "ranks-test.parquet", models, tuple(labels)),
        "bars": model_bars(models, labels),
        "curves": learning_curves(_read_lines(run / "metrics.jsonl"), SLICE_LABELS),
        "offsets": _offset_plot(offset_curve, chosen_offset, warm_cost),
        "chosen_offset": chosen_offset,
        "warm_cost": warm_cost,
        "knockout": _knockout_plot(knockout, labels),
        "strips": [_strip(data, strip) for strip in strips],
        "data_rows": _data_rows(data),
        "quarantine": _quarantine_rows(data, document),
        "fact_rows": _fact_rows(document, facts or {}),
        "config": _read_text(run / "config.yaml"),
        "has_cold": "cold" in labels,
        "has_new_users": "new_users" in labels,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = run / "report.html"
    aside = run / ".report.html.partial"
    aside.write_text(environment.get_template("report.html").render(page), encoding="utf-8")
    os.replace(aside, path)
    return path


def headline(models: Models, labels: Mapping[str, str]) -> list[str]:
    """One sentence a slice: our HR@10 beside the best baseline's, won or lost."""
    sentences = []
    where = {
        "all": "Over all test targets",
        "warm": "For items met in training",
        "cold": "For items nobody had met, ranked among all candidates",
        "cold_among_cold": "For items nobody had met, ranked among themselves",
        "new_users": "For users without history",
    }
    for name in labels:
        ours = (models[OURS][name] or {})["hr@10"]
        others = {m: s[name]["hr@10"] for m, s in models.items() if m != OURS and s.get(name)}  # type: ignore[index]
        sentence = f"{where[name]}, the right one is in the first ten for {ours:.1%} of users"
        if others:
            best = max(others, key=lambda model: others[model])
            verdict = "ahead of" if ours > others[best] else "behind"
            verdict = "level with" if ours == others[best] else verdict
            sentence += f", {verdict} the best baseline, {best}, at {others[best]:.1%}"
        sentences.append(sentence + ".")
    return sentences


def metrics_table(
    models: Models, slices: Sequence[str], metrics: Sequence[str]
) -> list[tuple[str, list[_Cell]]]:
    """Rows of (model, cells), a cell a slice and metric; the best of a column is marked.

    Popularity and novelty of what is shown have no better end: nothing is marked there.
    """
    columns = [
        [(scores.get(name) or {}).get(metric) for scores in models.values()]
        for name in slices
        for metric in metrics
    ]
    names = [metric for _ in slices for metric in metrics]
    best = [
        None
        if name.startswith(("popularity", "novelty"))
        else max((value for value in column if value is not None), default=None)
        for name, column in zip(names, columns, strict=True)
    ]
    return [
        (
            model,
            [
                _Cell(_number(column[row], name), column[row] is not None and column[row] == top)
                for name, column, top in zip(names, columns, best, strict=True)
            ],
        )
        for row, model in enumerate(models)
    ]


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if metric.startswith(("popularity", "novelty")) else f"{value:.4f}"


def _ours_first(models: Models) -> Models:
    """Our model, then the baselines, best NDCG@10 over all targets first."""

    def order(name: str) -> tuple[bool, float]:
        return name != OURS, -(models[name].get("all") or {}).get("ndcg@10", 0.0)

    return {name: models[name] for name in sorted(models, key=order)}


def _comparisons(path: Path, models: Models, slices: Sequence[str]) -> list[str]:
    """Ours against the best baseline of each slice, user by user, from the ranks."""
    if not path.is_file():
        return []
    ranks = pl.read_parquet(path)
    sentences = []
    for name in slices:
        others = {m: s[name]["ndcg@10"] for m, s in models.items() if m != OURS and s.get(name)}  # type: ignore[index]
        if not others:
            continue
        best = max(others, key=lambda model: others[model])
        found = compare_models(ranks, OURS, best, slice_name=name, metric="ndcg@10")
        low, high = found.interval
        sentences.append(
            f"{SLICE_LABELS[name]}: {found.difference:+.4f} against {best} "
            f"(95 % interval {low:+.4f} to {high:+.4f}, paired {_p_value(found.p_value)}, "
            f"{found.num_users:,} users)"
        )
    return sentences


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _offset_plot(
    points: Sequence[OffsetPoint], chosen: float | None, warm_cost: float | None
) -> str | None:
    if not points:
        return None
    figures = [(point.offset, point.warm_ndcg, point.cold_ndcg) for point in points]
    return offset_plot(figures, chosen=chosen, warm_cost=warm_cost)


def _knockout_plot(rows: Sequence[KnockoutRow], labels: Mapping[str, str]) -> str | None:
    shown = {n: label for n, label in labels.items() if any(row.ndcg.get(n) for row in rows)}
    return knockout_bars([(row.name, row.ndcg) for row in rows], shown) if shown else None


def _strip(data: PreparedData, strip: UserStrip) -> dict[str, Any]:
    def tiles(items: Sequence[int], with_sound: bool) -> list[Tile]:
        return [
            make_tile(data, item, with_sound=with_sound, hit=item in strip.targets)
            for item in items
        ]

    newest = list(strip.met)[-_ROWS_OF_MET:]
    met = f"Met, oldest to newest (last {len(newest)} of {len(strip.met)})"
    return {
        "user_id": strip.user_id,
        "rows": [
            # the sounds of all rows would make the file three times as heavy
            (met, tiles(newest, with_sound=False)),
            ("Recommended, best first", tiles(strip.recommended, with_sound=False)),
            ("Cold items that score highest", tiles(strip.cold, with_sound=True)),
        ],
    }


def _data_rows(data: PreparedData) -> list[tuple[str, str]]:
    counts = data.manifest["counts"]
    num_items = max(1, counts["items"])
    rows = [
        (name, f"{counts[name]:,}")
        for name in ("items", "users", "interactions", "media")
        if name in counts
    ]
    rows += [
        (f"items with {modality}", f"{number:,} ({number / num_items:.0%})")
        for modality, number in counts.get("items_with_modality", {}).items()
    ]
    return rows


def _quarantine_rows(data: PreparedData, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was set aside, by reason, of the data and of the split that was evaluated."""
    found = dict(data.manifest.get("quarantine", {}))
    name = document["protocol"].get("name")
    if name in data.splits:
        found |= data.split(name).manifest.get("quarantine", {})
    return [
        (f"{kind}: {reason}", f"{count:,}")
        for kind, reasons in found.items()
        for reason, count in reasons.items()
    ]


def _fact_rows(
    document: Mapping[str, Any], facts: Mapping[str, str | int | float]
) -> list[tuple[str, str]]:
    protocol = document["protocol"]
    rows: dict[str, str | int | float | None] = {
        "protocol": protocol.get("name"),
        "protocol hash": str(protocol.get("hash"))[:16],
        "data hash": str(document.get("data_hash"))[:16],
        "checkpoint": document.get("checkpoint"),
        "seed": document.get("seed"),
        **facts,
    }
    return [(name, _plain(value)) for name, value in rows.items() if value is not None]


def _plain(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _read_text(path).splitlines() if line]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
