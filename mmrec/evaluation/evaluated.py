"""Evaluated runs read back, named side by side, and checked to have answered the same questions.

RUN/metrics-WHICH.json, ranks-WHICH.parquet, config.yaml, report.json ─► EvaluatedRun
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from mmrec.config import dotted_settings
from mmrec.errors import CheckpointMismatch, UserError
from mmrec.evaluation.evaluate import RANK_COLUMNS, SCHEMA
from mmrec.evaluation.protocol import Which
from mmrec.evaluation.report_plots import OURS
from mmrec.run_config import load_run_config

BETWEEN = "vs"


@dataclass(frozen=True)
class EvaluatedRun:
    """What a comparison reads of a run.

    Attributes:
        path: its folder.
        metrics: content of metrics-WHICH.json.
        ranks: our model's rows of ranks-WHICH.parquet.
        settings: of config.yaml, by dotted name.
        costs: of report.json; None where the run has none.
    """

    path: Path
    metrics: dict[str, Any]
    ranks: pl.DataFrame
    settings: dict[str, Any]
    costs: dict[str, Any] | None


@dataclass(frozen=True)
class Side:
    """One run, or several whose values are averaged user by user.

    Attributes:
        name: a letter.
        runs: of one model.
    """

    name: str
    runs: list[EvaluatedRun]


def sides_of(words: Sequence[str]) -> list[list[Path]]:
    """Runs as the command line names them: each a side, or sides parted by the word `vs`.

    Raises:
        UserError: there are fewer than two sides, one is empty, or a run is named twice.
    """
    if BETWEEN in words:
        parts = itertools.groupby(words, key=lambda word: word == BETWEEN)
        sides = [[Path(word) for word in own] for is_between, own in parts if not is_between]
        if len(sides) != list(words).count(BETWEEN) + 1:
            raise UserError(f"a side of '{BETWEEN}' names no run: mmrec compare A0 A1 vs B0 B1")
    else:
        sides = [[Path(word)] for word in words]
    if len(sides) < 2:
        raise UserError(
            f"{len(sides)} run given, two are the least: mmrec compare RUN_A RUN_B, or "
            "mmrec compare A0 A1 vs B0 B1 for several seeds a side"
        )
    seen: set[Path] = set()
    for run in itertools.chain(*sides):
        if not run.is_dir():
            raise UserError(f"Directory '{run}' does not exist; name folders of evaluated runs")
        if run.resolve() in seen:
            raise UserError(f"{run}: named twice; a run is on one side, once")
        seen.add(run.resolve())
    return sides


def read_run(run: Path, which: Which) -> EvaluatedRun:
    """Reads what an evaluation wrote.

    Raises:
        UserError: there is no such evaluation, or a file of it cannot be read.
    """
    again = f"run `mmrec evaluate {run}{' --split validation' * (which == 'validation')}`"
    metrics_path, ranks_path = run / f"metrics-{which}.json", run / f"ranks-{which}.parquet"
    for path in (metrics_path, ranks_path):
        if not path.is_file():
            raise UserError(f"{run}: no {path.name}, it was not evaluated; {again} first")
    metrics = _read_json(metrics_path, again)
    if metrics.get("schema") != SCHEMA:
        raise UserError(f"{metrics_path}: schema {metrics.get('schema')} is not {SCHEMA}; {again}")
    try:
        ranks = pl.read_parquet(ranks_path, columns=list(RANK_COLUMNS))
    except (PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{ranks_path}: cannot be read ({reason}); {again}") from None
    own = ranks.filter(pl.col("model") == OURS)
    if own.is_empty() or OURS not in metrics["models"]:
        raise UserError(f"{run}: no model {OURS!r} among its figures; {again}")
    report = run / "report.json"
    costs = _read_json(report, again).get("costs") if report.is_file() else None
    settings = dotted_settings(load_run_config(run / "config.yaml"))
    settings["data_hash"] = metrics["data_hash"]
    return EvaluatedRun(run, metrics, own, settings, costs)


def check_alike(first: EvaluatedRun, second: EvaluatedRun, which: Which) -> None:
    """Refuses runs whose figures answer different questions.

    Raises:
        CheckpointMismatch: names what differs.
    """
    ours, theirs = first.metrics["protocol"], second.metrics["protocol"]
    if ours.get("hash") != theirs.get("hash"):
        key = next((k for k in ours if ours[k] != theirs.get(k) and k != "hash"), "hash")
        raise CheckpointMismatch(
            f"{first.path} and {second.path} were evaluated by different protocols: {key} is "
            f"{_brief(ours.get(key))} and {_brief(theirs.get(key))}; compare runs of one split"
        )
    keys = ["user_id", "item_id", "slice"]
    if not first.ranks.select(keys).sort(keys).equals(second.ranks.select(keys).sort(keys)):
        raise CheckpointMismatch(
            f"{first.path} and {second.path}: their ranks-{which}.parquet hold other targets "
            f"({first.ranks.height:,} and {second.ranks.height:,} rows); evaluate both on one "
            "prepared folder"
        )


def _brief(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else repr(value)


def _read_json(path: Path, again: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); {again}") from None
    return document
