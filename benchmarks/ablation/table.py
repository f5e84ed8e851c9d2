"""From the ranks of all runs to results.json and results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from benchmarks.ablation.grid import Cell, Figure, Gain, Grid, gains, render_gains, signed
from benchmarks.ablation.left_out import losses, render_losses
from benchmarks.ablation.plan import COMPLETE, FIGURES, Part, Plan
from data_prep.shards import PreparedData
from mmrec.evaluation.breakdown import GROUPS, thirds
from mmrec.evaluation.evaluate import user_values
from mmrec.evaluation.metrics import FloatArray, bootstrap_interval
from mmrec.evaluation.protocol import training_popularity
from mmrec.evaluation.report_document import write_aside

Groups = Mapping[str, Sequence[str]]
NO_GROUPS: Groups = MappingProxyType({})


def run_folder(out: Path, part: Part, seed: int) -> Path:
    """Where a run lies."""
    return out / "runs" / part.slug / f"seed-{seed}"


def item_groups(data: PreparedData, split_name: str | None) -> dict[str, list[str]]:
    """Ids of the items of head, middle and tail, which hold a third of the training events each."""
    counts = training_popularity(data.split(split_name))
    part = thirds(counts, counts)
    return {
        name: [data.items.item_ids[row] for row in np.flatnonzero(part == number)]
        for number, name in GROUPS
        if number >= 0
    }


def write_results(
    plan: Plan,
    parts: Sequence[Part],
    seeds: Sequence[int],
    out: Path,
    groups: Groups,
) -> None:
    """The table of what there is so far, as Markdown and JSON."""
    found = [row_of(part, seeds, out, figures=plan.figures, groups=groups) for part in parts]
    rows = [row for row in found if row is not None]
    document = {"schema": 1, "config": plan.config, "settings": dict(plan.settings), "rows": rows}
    text = render(rows, figures=plan.figures, grid=plan.grid)
    if plan.grid is not None:
        tested = _gains(plan, plan.grid, seeds, out, groups)
        document |= {"users": dict(plan.users or {}), "gains": [each.document() for each in tested]}
        if tested:
            text += "\n" + render_gains(tested, plan.grid, plan.figures)
        if plan.left_out:
            lost = losses(plan.grid, seeds, out)
            document |= {"left_out": [each.document() for each in lost]}
            text += "\n" + render_losses(lost)
    content = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    write_aside(out / "results.json", content.encode())
    write_aside(out / "results.md", text.encode())


def _gains(
    plan: Plan,
    grid: Grid,
    seeds: Sequence[int],
    out: Path,
    groups: Groups,
) -> list[Gain]:
    """What fusion gains, from the cells that have runs and the seeds that these share."""
    whole = grid.cells()[0]

    def seeds_of(cell: Cell) -> set[int]:
        return {seed for seed in seeds if _ranks_file(out, part_of(cell), seed).is_file()}

    def part_of(cell: Cell) -> Part:
        return Part(COMPLETE if cell == whole else cell.name, {})

    cells = [cell for cell in grid.compared() if seeds_of(cell)]
    shared = sorted(set.intersection(*map(seeds_of, cells))) if cells else []

    def values(cell: Cell, slice_name: str, metric: str) -> FloatArray:
        return values_of(out, part_of(cell), shared, slice_name, metric, groups)

    return gains(grid, cells, plan.figures, values) if shared else []


def row_of(
    part: Part,
    seeds: Sequence[int],
    out: Path,
    *,
    figures: Sequence[Figure] = FIGURES,
    groups: Groups = NO_GROUPS,
) -> dict[str, Any] | None:
    """One part's figures, and how they differ from the complete model's with the same seeds."""
    whole = Part(COMPLETE, {})
    done = [
        seed
        for seed in seeds
        if all(_ranks_file(out, each, seed).is_file() for each in (part, whole))
    ]
    if not done:
        return None
    row: dict[str, Any] = {"name": part.name, "seeds": done, "figures": {}}
    for slice_name, metric, _ in figures:
        own = values_of(out, part, done, slice_name, metric, groups)
        less = own - values_of(out, whole, done, slice_name, metric, groups)
        low, high = bootstrap_interval(less.mean(0))
        row["figures"][f"{slice_name} {metric}"] = {
            "mean": float(own.mean()),
            "deviation": float(own.mean(1).std(ddof=1)) if len(done) > 1 else None,
            "difference": float(less.mean()),
            "low": low,
            "high": high,
            "by_seed": less.mean(1).tolist(),
        }
    return row


def _ranks_file(out: Path, part: Part, seed: int) -> Path:
    return run_folder(out, part, seed) / "run" / "ranks-validation.parquet"


def values_of(
    out: Path,
    part: Part,
    seeds: Sequence[int],
    slice_name: str,
    metric: str,
    groups: Groups = NO_GROUPS,
) -> FloatArray:
    """(seeds, users) values of our model; of a group, those of its warm targets."""
    tables = []
    for seed in seeds:
        ranks, asked = pl.read_parquet(_ranks_file(out, part, seed)), slice_name
        if slice_name in groups:
            ranks, asked = ranks.filter(pl.col("item_id").is_in(groups[slice_name])), "warm"
        tables.append(user_values(ranks, model="mmrec", slice_name=asked, metric=metric))
    return np.stack([table["value"].to_numpy() for table in tables])


def render(
    rows: Sequence[Mapping[str, Any]],
    *,
    figures: Sequence[Figure] = FIGURES,
    grid: Grid | None = None,
) -> str:
    """The table: mean and deviation over seeds.

    Without a grid, of each part's absence the 95 % interval of what it changes instead.
    """
    lines = [
        f"| {'without' if grid is None else ''} | seeds | "
        + " | ".join(title for _, _, title in figures)
        + " |",
        "|---|---|" + "---|" * len(figures),
    ]
    complete = "*nothing: the complete model*" if grid is None else grid.cells()[0].name
    for row in rows:
        cells = []
        for slice_name, metric, _ in figures:
            figure = row["figures"][f"{slice_name} {metric}"]
            cell = _number(figure["mean"])
            if grid is None and row["name"] != COMPLETE:
                cell += (
                    f" ({signed(figure['difference'])}: {signed(figure['low'])} to "
                    f"{signed(figure['high'])})"
                )
            elif figure["deviation"] is not None:
                cell += f" ± {_number(figure['deviation'])}"
            cells.append(cell)
        name = complete if row["name"] == COMPLETE else row["name"]
        lines.append(f"| {name} | {len(row['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
