"""The report's tables: rows of cells, each with its text and whether it is its column's best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.shards import PreparedData
from mmrec.evaluation.breakdown import Breakdown
from mmrec.evaluation.cost import Costs
from mmrec.evaluation.exposure import Exposure
from mmrec.evaluation.report_plots import OURS
from mmrec.evaluation.report_words import Intervals, Models, size_in_words
from mmrec.evaluation.significance import PairedDifference
from mmrec.evaluation.stability import BySlice, Overlap, Stability
from mmrec.evaluation.sweep import AtCost, Sweep
from mmrec.evaluation.tail import TailPoint
from mmrec.evaluation.variety import VarietyPoint
from mmrec.retrieval.rerank import METHODS

# Of lists, no end is better: novelty and popularity pull against each other, diversity against hits
_NO_BEST = ("popularity", "novelty", "diversity", "behaviour_diversity", "categories")
_LOWEST = ("gini", "miscalibration")
TAIL_FIGURES = {
    "tail_coverage": "tail coverage@10",
    "tail_exposure": "tail's share of places",
    "tail_recall": "tail recall@10",
    "tail_ndcg": "tail NDCG@10",
    "head_ndcg": "head NDCG@10",
    "ndcg": "NDCG@10, all targets",
}

METHOD_NAMES = {"mmr": "MMR", "dpp": "DPP"}


@dataclass(frozen=True)
class Cell:
    """One figure: `note` stands small beneath it."""

    text: str
    best: bool = False
    note: str = ""


Rows = list[tuple[str, list[Cell]]]
T = TypeVar("T")


def metrics_table(
    models: Models,
    slices: Sequence[str],
    metrics: Sequence[str],
    intervals: Intervals | None = None,
) -> Rows:
    """Rows of (model, cells), a cell a slice and metric; the best of a column is marked.

    Popularity, novelty and diversity of what is shown have no better end: nothing is marked there.
    """
    columns = [
        [(scores.get(name) or {}).get(metric) for scores in models.values()]
        for name in slices
        for metric in metrics
    ]
    names = [(name, metric) for name in slices for metric in metrics]
    best = [_best(column, metric) for column, (_, metric) in zip(columns, names, strict=True)]
    rows: Rows = []
    for row, model in enumerate(models):
        cells = []
        for (name, metric), column, top in zip(names, columns, best, strict=True):
            interval = (intervals or {}).get(model, {}).get(name, {}).get(metric)
            note = "" if interval is None else f"{_short(interval[0])}–{_short(interval[1])}"
            is_best = column[row] is not None and column[row] == top
            cells.append(Cell(_number(column[row], metric), is_best, note))
        rows.append((model, cells))
    return rows


def _best(column: Sequence[float | None], metric: str) -> float | None:
    given = [value for value in column if value is not None]
    if not given or metric.startswith(_NO_BEST):
        return None
    return min(given) if metric.startswith(_LOWEST) else max(given)


def breakdown_table(breakdown: Breakdown) -> Rows:
    """HR@10 and NDCG@10 of every model, two columns a group."""
    return metrics_table(breakdown.models, tuple(breakdown.groups), ("hr@10", "ndcg@10"))


def paired_table(differences: Sequence[PairedDifference], slices: Sequence[str]) -> Rows:
    """A row a baseline, a cell a slice: the difference, its interval and p-value beneath."""
    found = {(each.second, each.slice): each for each in differences}
    rows: Rows = []
    for other in dict.fromkeys(each.second for each in differences):
        cells = []
        for name in slices:
            each = found.get((other, name))
            if each is None:
                cells.append(Cell("–"))
                continue
            low, high = each.interval
            note = f"{_signed(low)} to {_signed(high)}, {_p_value(each.p_value)}"
            cells.append(Cell(f"{each.difference:+.4f}", each.p_value < 0.05, note))
        rows.append((other, cells))
    return rows


def sweep_table(sweeps: Sequence[Sweep], warm_cost: float) -> Rows:
    """Each model as it is, and with the offset that pays best for at most `warm_cost` of warm."""
    rows: Rows = []
    for sweep in sweeps:
        cells = []
        for place in (sweep.as_it_is(), sweep.best_within(warm_cost)):
            for values in (sweep.warm_ndcg, sweep.cold_ndcg):
                cells.append(Cell(_number(values[place], "ndcg@10")))
        rows.append((sweep.model, cells))
    return rows


def cost_table(found: Sequence[AtCost], models: Sequence[str]) -> Rows:
    """A row a model: warm NDCG@10, cold HR@10 and NDCG@10 at each cost, the best cold marked."""

    def is_best(figure: float, cost: float, name: str) -> bool:
        return figure == max(getattr(each, name) for each in found if each.warm_cost == cost)

    return [
        (
            model,
            [
                cell
                for each in found
                if each.model == model
                for cell in (
                    Cell(_number(each.warm_ndcg, "ndcg@10")),
                    Cell(
                        _number(each.cold_hr, "hr@10"),
                        is_best(each.cold_hr, each.warm_cost, "cold_hr"),
                    ),
                    Cell(
                        _number(each.cold_ndcg, "ndcg@10"),
                        is_best(each.cold_ndcg, each.warm_cost, "cold_ndcg"),
                    ),
                )
            ],
        )
        for model in models
        if any(each.model == model for each in found)
    ]


def costs_in(found: Sequence[AtCost]) -> list[float]:
    """The costs, in the order of the columns."""
    return list(dict.fromkeys(each.warm_cost for each in found))


def tail_table(curve: Sequence[TailPoint], share: float | None) -> Rows:
    """A row a share of the popularity term, the one that the page's figures have marked."""
    return [
        (
            f"{point.popularity_share:g}" + " (this page)" * (point.popularity_share == share),
            [Cell(_number(getattr(point, name), name)) for name in TAIL_FIGURES],
        )
        for point in curve
    ]


def variety_table(curve: Sequence[VarietyPoint]) -> Rows:
    """A row a strength of re-ranking: NDCG@10 and diversity of each method in `METHODS`."""
    points = {(each.method, each.strength): each for each in curve}
    return [
        (
            f"{strength:g}",
            [
                Cell(text)
                for each in (points[method, strength] for method in METHODS)
                for text in (f"{each.ndcg:.4f}", _number(each.diversity, "diversity"))
            ],
        )
        for strength in sorted({each.strength for each in curve})
    ]


def new_users_table(found: Mapping[str, Any] | None) -> Rows:
    """A row a model: NDCG@10 with its interval, a cell a number of events; the best is marked."""
    if not found:
        return []
    models = found["models"]
    columns = zip(*([point["ndcg@10"] for point in own] for own in models.values()), strict=True)
    best = [max(column) for column in columns]
    return [
        (
            model,
            [
                Cell(
                    _short(point["ndcg@10"]),
                    best=point["ndcg@10"] == top,
                    note="–".join(map(_short, point["interval"])),
                )
                for point, top in zip(own, best, strict=True)
            ],
        )
        for model, own in models.items()
    ]


def stability_table(stability: Stability | None, slices: Iterable[str]) -> Rows:
    """A row a perturbation: overlap, its deviation over users, cosine, change of each NDCG@10."""
    if stability is None:
        return []
    return [
        (
            each.words,
            [
                *_overlap_cells(each.overlap),
                Cell(_number(each.cosine, "cosine")),
                *_slice_cells(each.ndcg_change, each.ndcg_deviation, slices, _signed),
            ],
        )
        for each in stability.perturbations
    ]


def seeds_table(stability: Stability | None, slices: Iterable[str]) -> Rows:
    """One row of all runs that differ in their seed: overlap, then NDCG@10 of each slice."""
    if stability is None or stability.seeds is None:
        return []
    found, slices = stability.seeds, list(slices)
    rows: Rows = [
        (f"seed {each.seed}", [Cell(""), Cell(""), *_slice_cells(each.ndcg, {}, slices, _plain)])
        for each in found.runs
    ]
    means = _slice_cells(found.ndcg, found.ndcg_deviation, slices, _plain)
    return [*rows, ("mean", [*_overlap_cells(found.overlap), *means])]


def _overlap_cells(overlap: Overlap) -> list[Cell]:
    """The mean with its deviation over repetitions, and the deviation over users."""
    cells = _slice_cells({"": overlap.mean}, {"": overlap.over_repetitions}, [""], _plain)
    return [*cells, Cell(_number(overlap.over_users, "overlap"))]


def _slice_cells(
    mean: BySlice, deviation: BySlice, slices: Iterable[str], write: Callable[[float], str]
) -> list[Cell]:
    cells = []
    for name in slices:
        value, spread = mean.get(name), deviation.get(name)
        note = "" if spread is None else f"± {_plain(spread)}"
        cells.append(Cell("–" if value is None else write(value), note=note))
    return cells


def exposure_table(exposure: Exposure, models: Sequence[str]) -> Rows:
    """A row a model, shares of the exposure by group; the last two are what to hold it against."""
    rows = {name: exposure.models[name] for name in models if name in exposure.models}
    rows |= {"of the candidates": exposure.candidates, "of the training events": exposure.events}
    return [
        (name, [Cell(_plain(own[group])) for group in exposure.candidates])
        for name, own in rows.items()
    ]


def cost_rows(costs: Costs) -> list[tuple[str, str]]:
    """What is shown of the costs, in words and units."""
    rows = [
        (
            f"parameters of {part}",
            f"{counts['trainable']:,} trained, {counts['frozen']:,} frozen",
        )
        for part, counts in costs.parameters.items()
    ]
    rows += [
        ("training", f"{costs.training_s:,.0f} s in {costs.steps:,} steps"),
        ("epochs trained", f"{costs.epochs}"),
        ("step of the weights kept", f"{costs.step_of_model:,}"),
    ]
    if costs.peak_memory_bytes is not None:
        rows.append(("peak memory of training", size_in_words(costs.peak_memory_bytes)))
    if costs.peak_device_memory_bytes is not None:
        rows.append(("peak on the accelerator", size_in_words(costs.peak_device_memory_bytes)))
    rows.append(("vectors of the candidates", size_in_words(costs.vector_bytes)))
    if costs.latency is not None:
        each = costs.latency
        threads = f"{each.num_threads} thread{'s' if each.num_threads > 1 else ''}"
        rows += [
            ("one recommendation, median", f"{each.p50_ms:.3g} ms"),
            ("95 % are faster than", f"{each.p95_ms:.3g} ms"),
            (
                "measured over",
                f"{each.num_calls} calls, {each.num_candidates:,} candidates, "
                f"{each.device}, {threads}",
            ),
        ]
    return rows


HEAD_FIGURES = {
    "num": "events",
    "positive_share": "share of yes",
    "auc": "AUC",
    "log_loss": "log-loss",
    "log_loss_of_rate": "log-loss of training's rate",
    "accuracy": "accuracy at .5",
    "accuracy_of_majority": "accuracy of the commoner answer",
    "calibration_error": "calibration error",
    "rmse": "RMSE",
    "mae": "MAE",
    "rmse_of_item_and_user_means": "RMSE of the means of item and user",
    "rmse_of_mean": "RMSE of the mean",
}


def head_rows(
    figures: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each head with its figures in words; nothing of a model without heads."""
    return [(name, _head_rows(found)) for name, found in figures.items()]


def _head_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, label in HEAD_FIGURES.items():
        if found.get(key) is not None:
            value = found[key]
            rows.append((label, f"{value:,}" if isinstance(value, int) else f"{value:.4f}"))
    if "confusion" in found:
        (no, false_yes), (false_no, yes) = found["confusion"]
        rows.append(("no: told no, told yes", f"{no:,}, {false_yes:,}"))
        rows.append(("yes: told no, told yes", f"{false_no:,}, {yes:,}"))
        for name in ("precision", "recall", "f1"):
            rows.append((f"{name} of no, of yes", ", ".join(f"{v:.4f}" for v in found[name])))
    return rows


def data_rows(data: PreparedData) -> list[tuple[str, str]]:
    """Sizes of the catalogue."""
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


def quarantine_rows(data: PreparedData, document: Mapping[str, Any]) -> list[tuple[str, str]]:
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


def run_rows(
    document: Mapping[str, Any], manifest: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """What the figures were made from.

    Args:
        document: metrics-WHICH.json.
        manifest: of the run; its last start is shown.
    """
    protocol = document["protocol"]
    starts = [] if manifest is None else manifest["starts"]
    start = starts[-1] if starts else {}
    changed = " and changes" if start.get("changes") else ""
    rows = {
        "protocol": protocol.get("name"),
        "protocol hash": str(protocol.get("hash"))[:16],
        "data hash": str(document.get("data_hash"))[:16],
        "checkpoint": document.get("checkpoint"),
        "seed": document.get("seed"),
        "share of the events known": document.get("event_share"),
        "share of the users held out": protocol.get("new_users"),
        "share of the popularity term": document.get("popularity_share"),
        "boost of new items (cosine)": document.get("new_boost"),
        "new items last in the first": document.get("new_last"),
        "trained by mmrec": start.get("mmrec"),
        "at commit": start["commit"][:12] + changed if "commit" in start else None,
        "with torch": start.get("packages", {}).get("torch"),
        "on": start.get("processor") if start.get("device") == "cpu" else start.get("device"),
        "started": f"{len(starts)} times" if len(starts) > 1 else None,
    }
    return [(name, str(value)) for name, value in rows.items() if value is not None]


def ours_first(models: Models) -> dict[str, Mapping[str, Mapping[str, float] | None]]:
    """Our model, then the baselines, best NDCG@10 over all targets first."""

    def order(name: str) -> tuple[bool, float]:
        return name != OURS, -(models[name].get("all") or {}).get("ndcg@10", 0.0)

    return {name: models[name] for name in sorted(models, key=order)}


def in_order(by_model: Mapping[str, T], models: Iterable[str]) -> dict[str, T]:
    """What is known of each model, in the order of the main table; others come last."""
    place = {name: number for number, name in enumerate(models)}
    names = sorted(by_model, key=lambda name: place.get(name, len(place)))
    return {name: by_model[name] for name in names}


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.1f}"
        if metric.startswith(("popularity", "novelty", "categories"))
        else f"{value:.4f}"
    )


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _plain(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _p_value(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)
