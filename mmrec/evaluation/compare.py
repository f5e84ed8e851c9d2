"""`mmrec compare`: evaluated runs beside each other on the same targets, user by user.

    ranks-WHICH.parquet ─► a value a user, the mean over a side's seeds ─► difference, interval, p
    metrics-WHICH.json  ─► what the lists look like, side by side
    report.json         ─► what the runs cost
    config.yaml         ─► the settings that differ

A side is one run, or several of one model that differ in their seed. The first side is compared
with each of the others. No model is loaded and no target ranked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import polars as pl

from mmrec.evaluation.evaluate import SLICES, user_values
from mmrec.evaluation.evaluated import EvaluatedRun, Side, check_alike, read_run
from mmrec.evaluation.metrics import FloatArray
from mmrec.evaluation.protocol import CASE_SLICES, Which
from mmrec.evaluation.report_plots import OURS
from mmrec.evaluation.significance import PairedDifference, paired_differences

SCHEMA = 1
METRICS = ("hr@10", "ndcg@10", "mrr")
# Not diversity: a run without media measures it with vectors of its own.
LISTS = (
    "coverage@10",
    "gini@10",
    "novelty@10",
    "popularity@10",
    "behaviour_diversity@10",
    "categories@10",
    "miscalibration@10",
)


@dataclass(frozen=True)
class Row:
    """One metric on one slice of two sides.

    Attributes:
        slice: of `evaluate.SLICES`, or `events<N` and `events>=N` by training events of the item.
        metric: such as `ndcg@10`.
        first: name of a side.
        second: name of the other.
        num_users: users compared.
        num_targets: their targets.
        first_by_run: mean over users, a number a run.
        second_by_run: the same of the other side.
        first_mean: mean over users and runs.
        second_mean: the same of the other side.
        difference: first minus second.
        relative: the difference as a share of the second; None where that is 0.
        interval: 95 % bootstrap interval of the difference over users.
        p_value: two-sided, of a paired randomisation test; not corrected for how many are made.
    """

    slice: str
    metric: str
    first: str
    second: str
    num_users: int
    num_targets: int
    first_by_run: list[float]
    second_by_run: list[float]
    first_mean: float
    second_mean: float
    difference: float
    relative: float | None
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Beside:
    """A figure of every side, without a test.

    Attributes:
        name: of the figure.
        values: side -> mean over its runs.
    """

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class DifferingSetting:
    """A setting whose values are not the same on every side.

    Attributes:
        name: dotted.
        values: side -> its values, each once; None for a run that has no such setting.
    """

    name: str
    values: dict[str, list[Any]]


@dataclass(frozen=True)
class RunComparison:
    """What `mmrec compare` prints.

    Attributes:
        targets: `validation` or `test`.
        protocol: the rules, those of metrics-WHICH.json.
        sides: name -> `run`, `seed` and `checkpoint` of each run.
        rows: by other side, slice and metric.
        lists: over all targets.
        costs: empty where a run does not say.
        settings: those in which sides differ.
    """

    targets: str
    protocol: dict[str, Any]
    sides: dict[str, list[dict[str, Any]]]
    rows: list[Row]
    lists: list[Beside]
    costs: list[Beside]
    settings: list[DifferingSetting]

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {"schema": SCHEMA, **asdict(self)}


def compare_runs(
    sides: Sequence[Sequence[Path]],
    *,
    which: Which = "test",
    item_events_below: int | None = None,
    data: Path | None = None,
) -> RunComparison:
    """Compares the first side with each of the others.

    Args:
        sides: folders of evaluated runs, two sides at least.
        which: whose targets.
        item_events_below: also compare on items of fewer and of as many training events; items
            without any are in neither.
        data: the prepared folder where it has moved; read for counts of events only.

    Raises:
        CheckpointMismatch: runs were not evaluated on the same targets by one protocol, or the
            data are not those of the first run.
        UserError: a run was never evaluated, or a file of it cannot be read.
    """
    read = [
        Side(_letter(place), [read_run(path, which) for path in paths])
        for place, paths in enumerate(sides)
    ]
    runs = [run for side in read for run in side.runs]
    for other in runs[1:]:
        check_alike(runs[0], other, which)
    slices = list(_slices(runs))
    if item_events_below is not None:
        slices += _slices_by_events(runs, _item_events(runs[0], data), item_events_below)
    return RunComparison(
        targets=which,
        protocol=runs[0].metrics["protocol"],
        sides={
            side.name: [
                {
                    "run": str(run.path),
                    "seed": run.metrics["seed"],
                    "checkpoint": run.metrics["checkpoint"],
                }
                for run in side.runs
            ]
            for side in read
        },
        rows=[
            row
            for other in read[1:]
            for name, tables in slices
            for row in _rows(read[0], other, name, tables)
        ],
        lists=_lists(read),
        costs=_costs(read),
        settings=_differing(read),
    )


def _letter(place: int) -> str:
    """A, B, …, Z, A1: names of folders can be long, and those of seeds differ in a digit."""
    return f"{ascii_uppercase[place % 26]}{place // 26 or ''}"


def _item_events(run: EvaluatedRun, data_folder: Path | None) -> pl.DataFrame:
    """item_id, events: training events of every item."""
    from mmrec.loaded import open_data  # torch and the encoders, which nothing else here needs

    data, split = open_data(run.path, data_folder)
    items = split.items.sort("item_index")
    ids = [data.items.item_ids[row] for row in items["item_index"].to_list()]
    return pl.DataFrame({"item_id": ids, "events": items["num_train_events"]})


Tables = dict[Path, tuple[pl.DataFrame, str]]


def _slices(runs: Sequence[EvaluatedRun]) -> Iterator[tuple[str, Tables]]:
    """Name of each slice, and of each run the ranks and the slice of these that it is."""
    having = set(runs[0].ranks["slice"].unique())
    names = [name for name in SLICES if name in having]
    if len(having & set(CASE_SLICES)) > 1:  # else it is the other one over again
        names = ["all", *names]
    for name in names:
        yield name, {run.path: (run.ranks, name) for run in runs}


def _slices_by_events(
    runs: Sequence[EvaluatedRun], events: pl.DataFrame, bound: int
) -> Iterator[tuple[str, Tables]]:
    """The same for targets on items of fewer than `bound` training events, and on the others."""
    met = events.filter(pl.col("events") > 0)
    few = pl.col("events") < bound
    for name, wanted in ((f"events<{bound}", few), (f"events>={bound}", ~few)):
        own = met.filter(wanted).select("item_id")
        tables = {run.path: (run.ranks.join(own, on="item_id", how="semi"), "all") for run in runs}
        if not tables[runs[0].path][0].is_empty():
            yield name, tables


def _rows(first: Side, second: Side, name: str, tables: Tables) -> Iterator[Row]:
    ranks, of_slice = tables[first.runs[0].path]
    parts = CASE_SLICES if of_slice == "all" else (of_slice,)
    num_targets = ranks.filter(pl.col("slice").is_in(parts)).height
    for metric in METRICS:
        by_run = [_values(side, tables, metric) for side in (first, second)]
        means = np.stack([values.mean(1) for values in by_run], axis=1)
        (found,) = paired_differences(means, [first.name, second.name], name, metric)
        yield _row(found, by_run, num_targets)


def _values(side: Side, tables: Tables, metric: str) -> FloatArray:
    """(U, S) of each user and run, users in ascending order of id."""
    found = []
    for run in side.runs:
        ranks, of_slice = tables[run.path]
        table = user_values(ranks, model=OURS, slice_name=of_slice, metric=metric)
        found.append(table["value"].to_numpy())
    return np.stack(found, axis=1)


def _row(found: PairedDifference, by_run: Sequence[FloatArray], num_targets: int) -> Row:
    first, second = (float(values.mean()) for values in by_run)
    return Row(
        slice=found.slice,
        metric=found.metric,
        first=found.first,
        second=found.second,
        num_users=found.num_users,
        num_targets=num_targets,
        first_by_run=by_run[0].mean(0).tolist(),
        second_by_run=by_run[1].mean(0).tolist(),
        first_mean=first,
        second_mean=second,
        difference=found.difference,
        relative=found.difference / second if second else None,
        interval=found.interval,
        p_value=found.p_value,
    )


def _lists(sides: Sequence[Side]) -> list[Beside]:
    def of(run: EvaluatedRun, name: str) -> float | None:
        value: float | None = run.metrics["models"][OURS]["all"].get(name)
        return value

    return _beside(sides, {name: partial(of, name=name) for name in LISTS})


def _costs(sides: Sequence[Side]) -> list[Beside]:
    """Figures of report.json, each measured where and when its run was made."""

    def parameters(run: EvaluatedRun) -> float | None:
        if run.costs is None:
            return None
        return float(sum(each["trainable"] for each in run.costs["parameters"].values()))

    def latency(run: EvaluatedRun) -> float | None:
        value: float | None = ((run.costs or {}).get("latency") or {}).get("p50_ms")
        return value

    def seconds(run: EvaluatedRun) -> float | None:
        value: float | None = (run.costs or {}).get("training_s")
        return value

    return _beside(
        sides,
        {
            "training_s": seconds,
            "trained_parameters": parameters,
            "recommendation_p50_ms": latency,
        },
    )


def _beside(
    sides: Sequence[Side], figures: Mapping[str, Callable[[EvaluatedRun], float | None]]
) -> list[Beside]:
    """Means over each side's runs of the figures that all runs have."""
    found = []
    for name, figure in figures.items():
        values = {side.name: [figure(run) for run in side.runs] for side in sides}
        known = {name: [v for v in own if v is not None] for name, own in values.items()}
        if known == values:
            found.append(Beside(name, {side: float(np.mean(own)) for side, own in known.items()}))
    return found


def _differing(sides: Sequence[Side]) -> list[DifferingSetting]:
    """Settings whose values are not the same on every side; one that a run lacks is None there."""
    names = dict.fromkeys(name for side in sides for run in side.runs for name in run.settings)
    found = []
    for name in names:
        values = {
            side.name: _distinct([run.settings.get(name) for run in side.runs]) for side in sides
        }
        if len({json.dumps(own, sort_keys=True) for own in values.values()}) > 1:
            found.append(DifferingSetting(name, values))
    return found


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Each value once, in one order whatever the order of the runs."""
    texts = {json.dumps(value, sort_keys=True): value for value in values}
    return [texts[text] for text in sorted(texts)]
