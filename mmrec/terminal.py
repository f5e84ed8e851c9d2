"""What a terminal shows: JSON documents, tables, a progress bar, and one line for each fault.

Results go to standard output; progress and faults to standard error.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mmrec.describe import Description
    from mmrec.training.dry_run import Forecast
    from mmrec.training.find_rate import RatePoint

PARAMETER_KINDS = ("trainable", "frozen")
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Libraries in Rust and C++ (polars, safetensors, faiss) keep the text of the system's error only.
_NO_SPACE_TEXTS = ("No space left on device", "os error 28", "StorageFull")


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses as objects, paths as strings, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def print_json(document: Any) -> None:
    """Print one JSON document, and nothing else, on standard output."""
    print(json.dumps(plain(document), ensure_ascii=False, allow_nan=False, indent=2))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as aligned columns under their names."""
    if not rows:
        return
    cells = [list(rows[0]), *([_cell(row[key]) for key in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def spoken_seconds(seconds: float) -> str:
    """A time as a person says it: `41 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_description(found: Description) -> None:
    """A model without its data: parameters and memory."""
    _print_parameters(found.parameters)
    print(
        f"with {found.num_items:,} items a device that has everything holds "
        f"{found.held_bytes / 2**30:.2f} GiB: parameters, gradients, optimiser and bank"
    )
    _print_shared(found.shared_bytes)
    if found.left_out:
        print(f"not counted, since the catalogue decides: {', '.join(found.left_out)}")


def _print_parameters(parameters: Mapping[str, Mapping[Any, int]]) -> None:
    total = {kind: sum(each[kind] for each in parameters.values()) for kind in PARAMETER_KINDS}
    print_table(
        [
            {"part": name, **{kind: f"{counts[kind]:,}" for kind in PARAMETER_KINDS}}
            for name, counts in [*parameters.items(), ("in all", total)]
        ]
    )


def _print_shared(shared_bytes: Mapping[int, int]) -> None:
    if shared_bytes:
        shares = ", ".join(
            f"{size / 2**30:.2f} on each of {ranks}" for ranks, size in shared_bytes.items()
        )
        print(f"with training.sharding=full: {shares} GiB")


def print_forecast(found: Forecast) -> None:
    """What a run would cost: parameters, caches, time and memory."""
    _print_parameters(found.parameters)
    print_table(
        [
            {
                "cache": name,
                "states": f"{each.tokens} x {each.width} {each.dtype}",
                "an item": f"{each.bytes_an_item / 1e3:.1f} kB",
                "all items": f"{each.size_bytes / 1e6:.1f} MB",
                "to fill": spoken_seconds(each.fill_seconds),
            }
            for name, each in found.caches.items()
        ]
    )
    steps = f"{found.steps} steps, {found.steps_an_epoch} an epoch"
    print(f"a step takes {found.step_seconds:.3f} s, of reading its batch too; {steps}")
    if found.frozen_step_seconds is not None:
        print(f"while contents stand still: {found.frozen_step_seconds:.3f} s")
    print(
        f"memory: {found.held_bytes / 2**30:.2f} GiB held, {found.peak_bytes / 2**30:.2f} GiB at "
        f"most in the steps tried, of {found.available_bytes / 2**30:.1f} GiB"
    )
    _print_shared(found.shared_bytes)
    print(f"in all {spoken_seconds(found.total_seconds)}, looks at validation on top")


def print_rates(points: Sequence[RatePoint], steepest: float | None) -> None:
    """A range test of the learning rate: about twenty of its steps, and what it says."""
    every = max(1, len(points) // 20)
    print_table(
        [
            {
                "learning_rate": f"{each.rate:.2e}",
                "loss": f"{each.loss:.4f}",
                "running": f"{each.smoothed:.4f}",
            }
            for each in points[::every]
        ]
    )
    if steepest is None:
        print("the loss never falls: try a lower rate by hand, or look at the data")
        return
    print(
        f"it falls fastest at training.learning_rate={steepest:.1e}, and had its least at "
        f"{min(points, key=lambda each: each.smoothed).rate:.1e}"
    )


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a slice and model of a metrics file, best NDCG@10 first within a slice."""
    rows = [
        {"slice": slice_name, "model": model, "users": values["num_users"]}
        | {name: values.get(name) for name in ("hr@10", "ndcg@10", "recall@50", "mrr")}
        for model, slices in metrics["models"].items()
        for slice_name, values in slices.items()
        if values
    ]
    order = list(dict.fromkeys(row["slice"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["slice"]), -(row["ndcg@10"] or 0.0)))


def perturbation_rows(stability: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a perturbation of stability.json; deviations over draws behind ±."""
    return [
        {
            "perturbation": each["name"],
            "items": each["num_items"],
            "broken": each["num_broken"],
            "rbo@10": _with_deviation(each["overlap"]["mean"], each["overlap"]["over_repetitions"]),
            "over users": each["overlap"]["over_users"],
            "cosine": each["cosine"],
            "ndcg@10": stability["ndcg"]["all"],
            "change": _with_deviation(
                each["ndcg_change"]["all"], each["ndcg_deviation"]["all"], sign="+"
            ),
        }
        for each in stability["perturbations"]
    ]


def seed_rows(stability: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for all runs of stability.json that differ in their seed; none without such."""
    seeds = stability["seeds"]
    if seeds is None:
        return []
    return [
        {
            "seeds": [each["seed"] for each in seeds["runs"]],
            "rbo@10": _with_deviation(
                seeds["overlap"]["mean"], seeds["overlap"]["over_repetitions"]
            ),
            "over users": seeds["overlap"]["over_users"],
            "ndcg@10": _with_deviation(seeds["ndcg"]["all"], seeds["ndcg_deviation"]["all"]),
        }
    ]


def _with_deviation(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


class Report(Protocol):
    """What a progress bar is told; `note` stands beside the name of the stage."""

    def __call__(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` steps of a stage are behind us."""
        ...


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar for each stage, with the time left, on standard error.

    Nothing is drawn where standard error is no terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(
                tasks[stage], completed=done, total=total, description=f"{stage} {note}".rstrip()
            )

        yield report


def print_fault(message: str) -> None:
    """Print one line on standard error."""
    print(f"mmrec: {' '.join(message.split())}", file=sys.stderr)


def machine_fault(error: Exception) -> str | None:
    """One line for a full disk or a path that may not be used; None for anything else.

    A full disk is looked for in the causes too, since libraries wrap the system's error.
    """
    if isinstance(error, OSError) and error.errno in _NO_PERMISSION:
        return f"permission denied{_where(error)}: change its permissions, or name another path"
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _NO_SPACE or any(text in str(cause) for text in _NO_SPACE_TEXTS):
            return f"disk full{_where(cause)}: free some space, or write to another folder"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _where(error: BaseException) -> str:
    filename = getattr(error, "filename", None)
    return f" ({filename})" if filename else ""
