"""Every subset of the modalities under every fusion: the cells, and whether fusion improves.

grid of the plan + encoders of the config ─► cells (name, settings)
values of the runs ─► gains over the best modality alone ─► Markdown
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from mmrec.evaluation.metrics import FloatArray, bootstrap_interval

Figure = tuple[str, str, str]  # slice, metric, title


@dataclass(frozen=True)
class Cell:
    """Some of the modalities, fused in one way."""

    modalities: tuple[str, ...]
    fusion: str

    @property
    def name(self) -> str:
        """Such as `text + image, gated`."""
        return f"{' + '.join(self.modalities)}, {self.fusion}"

    def settings(self, encoders: Mapping[str, Any]) -> dict[str, Any]:
        """What `mmrec train` is told, in the config's order of encoders."""
        kept = {name: each for name, each in encoders.items() if name in self.modalities}
        return {"encoders": kept, "model.fusion.kind": self.fusion}


Values = Callable[[Cell, str, str], FloatArray]


@dataclass(frozen=True)
class Grid:
    """Modalities and fusions of a plan.

    Attributes:
        modalities: of the config's encoders.
        fusions: kinds; with all modalities, the first is what the config has.
        alone: kinds for one modality. There `gated` and `late` are `mean`, whose gate is one.
    """

    modalities: tuple[str, ...]
    fusions: tuple[str, ...]
    alone: tuple[str, ...]

    def cells(self) -> list[Cell]:
        """All modalities first, one at a time last."""
        return [
            Cell(chosen, fusion)
            for size in range(len(self.modalities), 0, -1)
            for chosen in combinations(self.modalities, size)
            for fusion in (self.fusions if size > 1 else self.alone)
        ]

    def compared(self) -> list[Cell]:
        """The cells of all modalities and those of one: what the test is about."""
        return [cell for cell in self.cells() if len(cell.modalities) in (1, len(self.modalities))]


@dataclass(frozen=True)
class Gain:
    """What all modalities under one fusion gain over the best modality alone.

    Attributes:
        figure: slice and metric.
        fusion: its kind.
        best_alone: name of the cell it is compared with: of those of one modality (under any
            fusion) the best by this very figure, so that chance is on its side.
        difference: mean over seeds and users.
        low, high: 95 % bootstrap interval over users of the mean over seeds.
        by_seed: the difference of each seed.
    """

    figure: str
    fusion: str
    best_alone: str
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """`improves` or `harms` where the interval and every seed say so; else `not shown`."""
        if self.low > 0 and min(self.by_seed) > 0:
            return "improves"
        if self.high < 0 and max(self.by_seed) < 0:
            return "harms"
        return "not shown"

    def document(self) -> dict[str, Any]:
        """For results.json."""
        return {**asdict(self), "verdict": self.verdict}


def gains(
    grid: Grid, cells: Sequence[Cell], figures: Sequence[Figure], values: Values
) -> list[Gain]:
    """Tests `fusion improves`, figure by figure and fusion by fusion.

    Args:
        grid: of the plan.
        cells: of `grid.compared()` those that have runs.
        figures: which slices and metrics.
        values: (cell, slice, metric) -> (seeds, users), the same of both for every cell.

    Returns:
        A gain a figure and fusion that has runs; none before every modality has some alone.
    """
    alone = [cell for cell in cells if len(cell.modalities) == 1]
    if {cell.modalities[0] for cell in alone} != set(grid.modalities):
        return []
    found = []
    for slice_name, metric, _ in figures:
        singles = {cell: values(cell, slice_name, metric) for cell in alone}
        best = max(singles, key=lambda cell: float(singles[cell].mean()))
        for cell in cells:
            if cell in singles:
                continue
            more = values(cell, slice_name, metric) - singles[best]
            low, high = bootstrap_interval(more.mean(0))
            found.append(
                Gain(
                    figure=f"{slice_name} {metric}",
                    fusion=cell.fusion,
                    best_alone=best.name,
                    difference=float(more.mean()),
                    low=low,
                    high=high,
                    by_seed=tuple(more.mean(1).tolist()),
                )
            )
    return found


def render_gains(found: Sequence[Gain], grid: Grid, figures: Sequence[Figure]) -> str:
    """The test as Markdown: a row a figure, a column a fusion."""
    fusions = list(dict.fromkeys(gain.fusion for gain in found))
    lines = [
        f"Does fusing {', '.join(grid.modalities)} improve on the best of them alone? What is "
        "gained, its 95 % interval over users (mean over seeds, paired by user and seed), and what "
        "follows where every seed agrees. The best alone is chosen by the figure itself; nothing "
        "is corrected for the number of comparisons.",
        "",
        "| | best alone | " + " | ".join(fusions) + " |",
        "|---|---|" + "---|" * len(fusions),
    ]
    for slice_name, metric, title in figures:
        row = [gain for gain in found if gain.figure == f"{slice_name} {metric}"]
        cells = [
            f"{signed(gain.difference)} ({signed(gain.low)} to {signed(gain.high)}): {gain.verdict}"
            for gain in row
        ]
        lines.append(f"| {title} | {row[0].best_alone} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def signed(value: float) -> str:
    """A difference with its sign, without the zero before the point."""
    return f"{value:+.4f}".replace("0.", ".", 1)
