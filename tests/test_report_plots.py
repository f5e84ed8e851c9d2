"""Every plot of the report names its axes with their units, and its curves in a legend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mmrec.evaluation import report_plots
from mmrec.evaluation.confidence import Reliability
from mmrec.evaluation.sweep import Sweep

RECORDS: list[dict[str, Any]] = [
    {"step": 10, "loss": 5.0},
    {"step": 20, "loss": 4.0, "validation": {"warm": {"ndcg@10": 0.1}, "cold": {"ndcg@10": 0.05}}},
    {"step": 30, "loss": 3.5, "validation": {"warm": {"ndcg@10": 0.2}, "cold": None}},
]
LABELS = {"warm": "Warm items", "cold": "Cold items, among all"}
MODELS: dict[str, Any] = {
    name: {"warm": {"ndcg@10": 0.2 - 0.01 * place}, "cold": None}
    for place, name in enumerate(("mmrec", "popularity", "a model of somebody's own"))
}
NEW_USERS: dict[str, Any] = {
    "first_events": [0, 5],
    "models": {
        name: [{"events": n, "ndcg@10": 0.1, "interval": [0.05, 0.2]} for n in (0, 5)]
        for name in ("mmrec", "popularity")
    },
}


def _sweep(model: str) -> Sweep:
    rising, falling = np.linspace(0, 0.2, 5).tolist(), np.linspace(0.3, 0.1, 5).tolist()
    return Sweep(model, np.linspace(-2, 2, 5).tolist(), falling, rising, falling, rising)


PLOTS: dict[str, Callable[[], object]] = {
    "learning": lambda: report_plots.learning_curves(RECORDS, LABELS),
    "models": lambda: report_plots.model_bars(MODELS, LABELS),
    "knock-outs": lambda: report_plots.knockout_bars(
        [("all media", {"warm": 0.2, "cold": 0.1}), ("without text", {"warm": 0.1})], LABELS
    ),
    "offset": lambda: report_plots.offset_plot(
        [(0.0, 0.3, 0.0), (1.0, 0.2, 0.1)], chosen=1.0, warm_cost=0.05
    ),
    "sweep": lambda: report_plots.sweep_plot([_sweep("mmrec"), _sweep("content_knn")]),
    "reliability": lambda: report_plots.reliability_plot(
        [Reliability(k, "warm", 100, 0.1, [0.1, 0.4], [0.2, 0.3], [50, 50]) for k in (1, 10)]
    ),
    "new users": lambda: report_plots.new_users_plot(NEW_USERS),
}


@pytest.mark.parametrize("name", PLOTS)
def test_axes_have_names_and_curves_a_legend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(report_plots, "_as_uri", drawn.append)
    PLOTS[name]()
    (figure,) = drawn
    figure.draw_without_rendering()
    assert figure.axes
    for axes in figure.axes:
        assert axes.get_xlabel(), axes
        # bars name their rows where other plots name their axis; panels share the first's
        rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert axes.get_ylabel() or any(each.isalpha() for each in "".join(rows))
        curves = [line for line in axes.lines if np.size(line.get_xdata()) > 1]
        if len(curves) > 1:
            assert axes.get_legend() is not None or figure.legends, name
    # what is drawn lies within the picture
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1


class NoisyLayout(ConstrainedLayoutEngine):
    """The constrained layout with the noise that its solver can have, at its largest."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._noise = np.random.default_rng(seed)

    def execute(self, fig: Figure) -> None:
        super().execute(fig)
        for part in fig.subfigs:
            points = part.bbox_relative.get_points()
            part.bbox_relative.set_points(points + self._noise.normal(0, 1e-11, (2, 2)))
        for axes in fig.axes:
            bounds = axes.get_position().bounds + self._noise.normal(0, 1e-11, 4)
            axes.set_position(bounds.tolist())


def places(seed: int, *, settled: bool) -> list[tuple[float, ...]]:
    figure = Figure(figsize=(5, 3), layout=NoisyLayout(seed))
    for part in figure.subfigures(1, 2, squeeze=False)[0]:
        part.suptitle("a title")
        for axes in part.subplots(2, 1):
            axes.set_xlabel("steps")
    if settled:
        report_plots.settle(figure)
    figure.draw_without_rendering()
    return [tuple(axes.bbox.bounds) for axes in figure.axes]


def test_a_settled_layout_has_no_noise() -> None:
    assert places(0, settled=False) != places(1, settled=False)
    still = places(0, settled=True)
    assert still == places(1, settled=True)
    # and it lies where the layout put it, to a fraction of a pixel
    assert np.allclose(still, places(0, settled=False), atol=0.5)


def test_every_plot_of_the_page_is_here() -> None:
    """A plot that is added must be looked at by the test above."""
    public = {
        name
        for name, value in vars(report_plots).items()
        if callable(value)
        and getattr(value, "__module__", "") == report_plots.__name__
        and not name.startswith("_")
    } - {"settle"}
    assert len(public) == len(PLOTS), public
