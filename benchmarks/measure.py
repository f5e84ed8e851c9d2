"""What every benchmark shares: rounds, memory, and the one JSON line of a figure.

A figure is {name, value, unit, bar, ok, values, small, config, skipped, machine}. `value` is the
median of `values`; `ok` is null where nothing was judged: no bar, a reduced size, or input that is
absent, when `value` is null as well, `values` is empty and `skipped` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
ROUNDS = 5
GB = 1e9


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every benchmark: --small for a quick look, --rounds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="reduced sizes; no bar is judged")
    parser.add_argument("--rounds", type=int, default=None, help=f"default {ROUNDS}, small: 1")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.small else ROUNDS)
    return given


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def report(
    name: str,
    values: Sequence[float],
    *,
    unit: str,
    bar: float | None = None,
    better: Literal["lower", "higher"] = "lower",
    small: bool = False,
    config: Mapping[str, Any],
) -> None:
    """Print the line of a figure.

    Args:
        name: of the figure, unique among the benchmarks.
        values: one a round; the median is judged.
        unit: of the values; "ratio" for none.
        bar: the value to reach, None where the figure is printed only.
        better: on which side of the bar is good.
        small: measured at a reduced size, so that the bar says nothing.
        config: sizes and settings, whatever the value depends on.
    """
    value = statistics.median(values)
    good = bar is None or (value <= bar if better == "lower" else value >= bar)
    _print_line(
        name,
        value=_rounded(value),
        unit=unit,
        bar=_bar(bar, better),
        ok=None if bar is None or small else good,
        values=[_rounded(one) for one in values],
        small=small,
        config=config,
        skipped=None,
    )


def skip(
    name: str,
    reason: str,
    *,
    unit: str,
    bar: float | None = None,
    better: Literal["lower", "higher"] = "lower",
    small: bool = False,
    config: Mapping[str, Any],
) -> None:
    """Print the line of a figure that cannot be had here, with the keys of any other.

    Args:
        name: of the figure.
        reason: what is absent.
        unit: as of `report`, and so are the others.
        bar: which is not judged.
        better: on which side of the bar is good.
        small: asked for at a reduced size.
        config: what it would have been measured on.
    """
    _print_line(
        name,
        value=None,
        unit=unit,
        bar=_bar(bar, better),
        ok=None,
        values=[],
        small=small,
        config=config,
        skipped=reason,
    )


def _bar(bar: float | None, better: str) -> dict[str, float] | None:
    return None if bar is None else {"at_most" if better == "lower" else "at_least": bar}


def _print_line(
    name: str,
    *,
    value: float | None,
    unit: str,
    bar: Mapping[str, float] | None,
    ok: bool | None,
    values: Sequence[float],
    small: bool,
    config: Mapping[str, Any],
    skipped: str | None,
) -> None:
    """The one place that knows the keys of a line."""
    line = {
        "name": name,
        "value": value,
        "unit": unit,
        "bar": bar,
        "ok": ok,
        "values": values,
        "small": small,
        "config": dict(config),
        "skipped": skipped,
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions that a time depends on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def peak_gb(action: Callable[[], object], *, beyond: bool) -> float:
    """Peak resident memory of this process and its children while a call runs, by sampling.

    Pages that processes share are counted once for each, so this is an upper bound.

    Args:
        action: the call.
        beyond: leave out what is resident before the call (the input, the libraries).
    """
    process = psutil.Process()
    before = _resident(process) if beyond else 0
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _resident(process))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return (max(peak, _resident(process)) - before) / GB


def _resident(process: psutil.Process) -> int:
    total: int = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
