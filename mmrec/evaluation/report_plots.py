"""The report's plots, each one figure as a data URI of SVG; axes, units and legends named.

Figures are made without pyplot, so that no window system and no global state is touched, and with
a fixed salt and a settled layout, so that equal figures give equal bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure, FigureBase

from mmrec.evaluation.confidence import Reliability
from mmrec.evaluation.new_last import NEW_LAST
from mmrec.evaluation.sweep import Sweep

OURS = "mmrec"
OURS_COLOUR, OTHERS_COLOUR = "#c2410c", "#94a3b8"
_SLICE_COLOURS = {
    "all": "#64748b",
    "warm": "#c2410c",
    "cold": "#2563eb",
    "cold_among_cold": "#7db3f5",
    "new_users": "#0f766e",
}
_MODEL_COLOURS = {
    OURS: OURS_COLOUR,
    "random": "#9ca3af",
    "popularity": "#a16207",
    "item_knn": "#15803d",
    "ease": "#7c3aed",
    "als": "#c026d3",
    "markov": "#0891b2",
    "content_knn": "#db2777",
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "mmrec",
}
# of a place, in parts of the figure: under a pixel, and far above the noise of a layout's solver
_DECIMALS = 4
_DOTS: Any = {"marker": "o", "markersize": 3, "linewidth": 1.4}


def learning_curves(records: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str | None:
    """Training loss, and validation NDCG@10 of every slice, by step.

    Args:
        records: lines of metrics.jsonl.
        labels: slice -> its name in words, in the order of the legend.

    Returns:
        A data URI; None where no step was logged.
    """
    losses = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    looks = [(r["step"], r["validation"]) for r in records if r.get("validation")]
    if not losses:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*zip(*losses, strict=True), color=OURS_COLOUR, linewidth=1.2)
        left.set(xlabel="step", ylabel="training loss (nats a target)")
        for name, label in labels.items():
            points = [(s, m[name]["ndcg@10"]) for s, m in looks if m.get(name)]
            if points:
                style = {
                    "marker": "o",
                    "markersize": 3,
                    "linewidth": 1.4,
                    "color": _SLICE_COLOURS[name],
                }
                right.plot(*zip(*points, strict=True), label=label, **style)
        right.set(xlabel="step", ylabel="validation NDCG@10")
        right.set_ylim(bottom=0)
        if looks:
            right.legend(fontsize=8)
        return _as_uri(figure)


def model_bars(
    models: Mapping[str, Mapping[str, Mapping[str, float] | None]], labels: Mapping[str, str]
) -> str:
    """NDCG@10 of every model, a panel a slice.

    Args:
        models: name -> slice -> metrics, in the order drawn.
        labels: the slices drawn -> their names in words.
    """
    rows = [
        (model, {name: (slices[name] or {}).get("ndcg@10") for name in labels})
        for model, slices in models.items()
    ]
    return _panels(rows, labels, marked=OURS)


def knockout_bars(
    rows: Sequence[tuple[str, Mapping[str, float | None]]], labels: Mapping[str, str]
) -> str:
    """NDCG@10 with media left out, a panel a slice.

    Args:
        rows: (what was left out, slice -> NDCG@10), the whole model first.
        labels: the slices drawn -> their names in words.
    """
    return _panels(rows, labels, marked=rows[0][0])


def _panels(
    rows: Sequence[tuple[str, Mapping[str, float | None]]],
    labels: Mapping[str, str],
    *,
    marked: str,
) -> str:
    """Horizontal bars, so that names of any length and number stand clear of each other.

    Args:
        rows: (name, slice -> NDCG@10 or None), from top to bottom.
        labels: the slices drawn, a panel each -> their names in words.
        marked: the row in our colour.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.0, 1.0 + 0.24 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
        names = [name for name, _ in rows]
        colours = [OURS_COLOUR if name == marked else OTHERS_COLOUR for name in names]
        for axes, (slice_name, label) in zip(panels, labels.items(), strict=True):
            given = [values.get(slice_name) for _, values in rows]
            widths = [value or 0.0 for value in given]
            bars = axes.barh(names, widths, color=colours)
            texts = ["–" if value is None else _short(value) for value in given]
            axes.bar_label(bars, texts, padding=2, fontsize=8)
            axes.set_xlim(0, (max(widths, default=0.0) or 1.0) * 1.28)
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(label.replace(", ", ",\n"), fontsize=9)
            axes.set_xlabel("NDCG@10")
        panels[0].invert_yaxis()
        return _as_uri(figure)


def offset_plot(
    points: Sequence[tuple[float, float, float]],
    *,
    chosen: float | None,
    warm_cost: float | None = None,
) -> str:
    """Cold against warm as the cold items' offset grows.

    Args:
        points: (offset in logits, warm NDCG@10, cold NDCG@10), any order.
        chosen: the model's offset.
        warm_cost: share of the warm figure that may be lost.
    """
    ordered = sorted(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        offsets, warm, cold = zip(*ordered, strict=True)
        left.plot(
            offsets, warm, color=_SLICE_COLOURS["warm"], marker="o", markersize=3, label="warm"
        )
        left.plot(
            offsets, cold, color=_SLICE_COLOURS["cold"], marker="o", markersize=3, label="cold"
        )
        left.set(xlabel="offset added to cold items (logits)", ylabel="NDCG@10, all candidates")
        right.plot(warm, cold, color="#64748b", label="one offset each", **_DOTS)
        right.set(xlabel="warm NDCG@10", ylabel="cold NDCG@10")
        if chosen is not None:
            _, at_warm, at_cold = min(ordered, key=lambda point: abs(point[0] - chosen))
            left.axvline(chosen, color="#111827", linewidth=1, linestyle=":", label="chosen")
            right.plot(at_warm, at_cold, "o", color=OURS_COLOUR, markersize=7, label="chosen")
        if warm_cost is not None:
            base = min(ordered, key=lambda point: abs(point[0]))[1]
            limit = f"{warm_cost:.0%} of warm lost"
            right.axvline(base * (1 - warm_cost), color="#9ca3af", linestyle="--", label=limit)
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        return _as_uri(figure)


def sweep_plot(sweeps: Sequence[Sweep]) -> str | None:
    """Cold against warm of every model as one number is added to the items without events.

    Returns:
        A data URI; None where nothing was swept.
    """
    if not sweeps:
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        for sweep in sweeps:
            model, last, _ = sweep.model.partition(NEW_LAST)
            colour = _MODEL_COLOURS.get(model, "#111827")
            width, style = 2.2 if model == OURS else 1.3, "--" if last else "-"
            curves = ((sweep.warm_ndcg, sweep.cold_ndcg), (sweep.warm_hr, sweep.cold_hr))
            for axes, (warm, cold) in zip(panels, curves, strict=True):
                label = sweep.model if axes is panels[0] else None
                axes.plot(warm, cold, color=colour, linewidth=width, linestyle=style, label=label)
                here = sweep.as_it_is()
                axes.plot(warm[here], cold[here], "o", color=colour, markersize=5)
        panels[0].plot([], [], "o", color="#6b7280", markersize=5, label="as the model is")
        for axes, metric in zip(panels, ("NDCG@10", "HR@10"), strict=True):
            axes.set(xlabel=f"warm {metric}", ylabel=f"cold {metric}, all candidates")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        figure.legend(loc="outside right center", fontsize=8)
        return _as_uri(figure)


def reliability_plot(found: Sequence[Reliability]) -> str | None:
    """Predicted probability beside the observed share, a panel an event.

    Returns:
        A data URI; None where nothing was measured.
    """
    if not found:
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, each in zip(panels, found, strict=True):
            top = 1.08 * max(*each.predicted, *each.observed, 1e-6)
            axes.plot([0, top], [0, top], color="#9ca3af", linestyle="--", label="as predicted")
            axes.plot(
                each.predicted,
                each.observed,
                color=OURS_COLOUR,
                label="a tenth of the cases each",
                **_DOTS,
            )
            what = "the first item" if each.k == 1 else f"one of the first {each.k}"
            axes.set_title(f"The next item is {what}", fontsize=9)
            axes.set(xlabel="predicted probability", ylabel="observed share of cases")
            axes.set_xlim(0, top)
            axes.set_ylim(0, top)
            axes.legend(fontsize=8, loc="upper left")
        return _as_uri(figure)


def new_users_plot(found: Mapping[str, Any] | None) -> str | None:
    """NDCG@10 of every model against the number of events known of a new user.

    Args:
        found: as `new_user_figures` gives it; None: nobody was held out.

    Returns:
        A data URI; None where nobody was asked.
    """
    if not found or not found["models"]:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        axes = figure.subplots()
        for model, points in found["models"].items():
            events = [point["events"] for point in points]
            colour = _MODEL_COLOURS.get(model, "#111827")
            axes.plot(
                events, [point["ndcg@10"] for point in points], color=colour, label=model, **_DOTS
            )
            if model == OURS:
                low, high = zip(*(point["interval"] for point in points), strict=True)
                axes.fill_between(
                    events, low, high, color=colour, alpha=0.15, linewidth=0, label="its 95 %"
                )
        axes.set_xticks(found["first_events"])
        axes.set(xlabel="events known of the user (number)", ylabel="NDCG@10 (0 to 1)")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside right center", fontsize=8)
        return _as_uri(figure)


def _short(value: float) -> str:
    """.123 as papers print it: three decimals, no leading zero."""
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 else f"{value:.2f}"


def settle(figure: Figure) -> None:
    """Lay the figure out once, and hold every part at a rounded place.

    The solver of the constrained layout adds its terms in an order of addresses in memory, so the
    same figure comes out some 1e-11 apart from one time to the next: enough to move a letter by a
    pixel where it lies on an edge.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    _round_places(figure)
    for axes in figure.axes:  # those of its parts too
        axes.set_position(np.round(axes.get_position().bounds, _DECIMALS).tolist())


def _round_places(figure: FigureBase) -> None:
    for part in figure.subfigs:
        part.bbox_relative.set_points(np.round(part.bbox_relative.get_points(), _DECIMALS))
        _round_places(part)
    for text in figure.texts:
        text.set_position(tuple(np.round(text.get_position(), _DECIMALS)))


def _as_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    settle(figure)
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
