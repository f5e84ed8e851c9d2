"""Quality against seconds of training, a line an arm, warm items and new ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mmrec.evaluation.report_document import write_aside
from mmrec.evaluation.report_plots import STYLE

DOTS = 110  # an inch
TITLES = {"warm": "warm items", "cold_among_cold": "new items among new"}


def draw(curves: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], path: Path) -> None:
    """Writes the picture.

    Args:
        curves: arm -> (seconds of training so far, NDCG@10 by slice) after each epoch.
        path: of a PNG.
    """
    style: Any = {**STYLE, "axes.grid": True}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 4.6), dpi=DOTS, layout="constrained")
        panels = figure.subplots(1, len(TITLES))
        for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
            for arm, points in curves.items():
                seconds = [at for at, _ in points]
                panel.plot(seconds, [each[name] for _, each in points], marker="o", label=arm)
            panel.set_xscale("log")
            panel.set_xlabel("seconds of training beyond the cached run (log scale)")
            panel.set_ylabel("NDCG@10, validation")
            panel.set_title(title)
        panels[0].legend(title="blocks and method")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_aside(path, buffer.getvalue())
