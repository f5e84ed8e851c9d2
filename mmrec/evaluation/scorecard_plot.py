"""RUN/scorecard.png: every facet of a run in one picture, small bars beside the baselines.

    groups of facets ─► bands of a few panels, one panel a facet ─► PNG

Bars start at 0 and carry their value: nothing is normalised, and no two measures share an axis.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmrec.evaluation.report_plots import OTHERS_COLOUR, OURS, OURS_COLOUR, STYLE, settle
from mmrec.evaluation.scorecard import Facet, Group, facet_groups

WIDTH, DOTS = 14.0, 110  # inches, and pixels an inch
MAX_PANELS = 6  # of a band: the names of the rows stand beside the first panel of each group
_ENDS: Any = {"higher": ", longer is better", "lower": ", shorter is better", None: ""}
_INTERVAL_COLOUR = "#111827"
_PANEL_STYLE: Any = {**STYLE, "font.size": 8, "axes.grid.axis": "x"}


def scorecard_png(document: Mapping[str, Any]) -> bytes:
    """The picture; equal documents give equal bytes.

    Args:
        document: of `report_document.report_document`.
    """
    with matplotlib.rc_context(_PANEL_STYLE):
        buffer = io.BytesIO()
        figure = scorecard_figure(document)
        settle(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def scorecard_figure(document: Mapping[str, Any]) -> Figure:
    """The same before it is drawn, a panel a facet; the style is the caller's."""
    groups = facet_groups(document)
    beside, alone = ([g for g in groups if (g.marked == OURS) is ours] for ours in (True, False))
    bands = in_bands(beside) + in_bands(alone)
    depths = [max(len(group.rows) for group in band) for band in bands]
    heights = [0.95 + 0.19 * depth for depth in depths]
    figure = Figure(figsize=(WIDTH, 0.8 + sum(heights)), dpi=DOTS, layout="constrained")
    simulated = " (simulated data)" if document["simulated"] else ""
    figure.suptitle(
        f"{document['name']}{simulated}: scorecard of one run, seed {document['seed']}",
        fontsize=12,
        fontweight="bold",
    )
    bases = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
    for base, band, depth in zip(bases, bands, depths, strict=True):
        # names of rows take about as much room as half a panel
        widths = [len(group.facets) + 0.5 for group in band]
        parts = base.subfigures(1, len(band), width_ratios=widths, squeeze=False)[0]
        for part, group in zip(parts, band, strict=True):
            part.suptitle(group.title, fontsize=10, fontweight="bold")
            panels = part.subplots(1, len(group.facets), sharey=True, squeeze=False)[0]
            for axes, facet in zip(panels, group.facets, strict=True):
                draw_facet(axes, facet, marked=group.marked)
            panels[0].set_ylim(depth - 0.5, -0.5)  # bars of one thickness, the first on top
    figure.legend(handles=_keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def in_bands(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups side by side, each in the first band that has room for its panels.

    One of more panels than a band holds goes over several, a measure each.
    """
    bands: list[list[Group]] = []
    for group in groups:
        for part in _parts(group):
            for band in bands:
                if sum(len(each.facets) for each in [*band, part]) <= MAX_PANELS:
                    band.append(part)
                    break
            else:
                bands.append([part])
    return bands


def _parts(group: Group) -> list[Group]:
    if len(group.facets) <= MAX_PANELS:
        return [group]
    measures = dict.fromkeys(facet.measure for facet in group.facets)
    return [
        Group(
            f"{group.title}: {measure}",
            group.note,
            group.marked,
            [facet for facet in group.facets if facet.measure == measure],
        )
        for measure in measures
    ]


def draw_facet(axes: Axes, facet: Facet, *, marked: str) -> None:
    """Horizontal bars, one a row, with value and interval.

    Args:
        axes: an empty panel.
        facet: what is drawn.
        marked: the row in our colour; all are where it names none: they are ours alone.
    """
    rows = list(facet.values)
    widths = [facet.values[row] or 0.0 for row in rows]
    colours = [OURS_COLOUR if marked in ("", row) else OTHERS_COLOUR for row in rows]
    known = [
        facet.intervals.get(row, (width, width)) for row, width in zip(rows, widths, strict=True)
    ]
    # the mean of a skewed measure can lie outside its percentile interval
    below = [max(width - low, 0.0) for width, (low, _) in zip(widths, known, strict=True)]
    above = [max(high - width, 0.0) for width, (_, high) in zip(widths, known, strict=True)]
    bars = axes.barh(
        rows,
        widths,
        color=colours,
        xerr=(below, above) if facet.intervals else None,
        error_kw={"ecolor": _INTERVAL_COLOUR, "elinewidth": 1.0},
    )
    labels = axes.bar_label(bars, [facet.text(row) for row in rows], padding=2, fontsize=7.5)
    for label, row in zip(labels, rows, strict=True):
        value = facet.values[row]
        if value is not None and value == facet.best():
            label.set_fontweight("bold")
    furthest = max((high for _, high in known), default=0.0)
    axes.set_xlim(0, (furthest or 1.0) * 1.45)
    axes.locator_params(axis="x", nbins=3)
    axes.set_title(facet.title.replace(", ", ",\n"), fontsize=8.5)
    axes.set_xlabel(f"{facet.measure}{_ENDS[facet.better]}", fontsize=7.5)


def _keys() -> list[Any]:
    return [
        Patch(color=OURS_COLOUR, label=f"{OURS} as trained"),
        Patch(color=OTHERS_COLOUR, label=f"baselines, or {OURS} with something taken away"),
        Line2D([], [], color=_INTERVAL_COLOUR, label="95 % interval; bold: best of its panel"),
    ]
