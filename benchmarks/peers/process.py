"""Runs a command to its end: seconds, peak memory of its whole tree, and a log of what it said."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
# glibc gives a large buffer back to the system at each free and takes its pages anew at the next
# allocation, which costs a training on a CPU up to a third of its time. Every arm is told to keep
# them.
KEEP_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


class Interrupted(Exception):
    """The benchmark is to end: a command was ended, or was not begun."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        seconds: wall time.
        peak_gb: largest resident memory of the process and its children together, sampled; pages
            that they share count for each, so this is an upper bound.
        cpu_s: processor time of the same, sampled; says more than `seconds` on a busy machine.
        reason: None where it ended well, else one line.
    """

    seconds: float
    peak_gb: float
    cpu_s: float
    reason: str | None


def run_process(
    command: Sequence[str | Path],
    *,
    log: Path,
    limit_s: float,
    environment: Mapping[str, str],
    stop: threading.Event | None = None,
) -> Ended:
    """Run a command, its output in `log`; end it, with its children, after `limit_s`.

    It runs in the log's folder: RecBole and Lightning leave files where they run.

    Raises:
        Interrupted: `stop` was set; the command is ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started, peak, cpu_s, ended_by_limit = time.monotonic(), 0, 0.0, False
    with log.open("wb") as file:
        process = psutil.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,
            env=dict(environment),
        )
        try:
            while process.poll() is None:
                if stop is not None and stop.is_set():
                    raise Interrupted
                resident, used = _use_of(process)
                peak, cpu_s = max(peak, resident), max(cpu_s, used)
                if time.monotonic() - started > limit_s:
                    ended_by_limit = True
                    break
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                _end(process)
    reason = None
    if ended_by_limit:
        reason = f"ended after {limit_s / 60:.0f} minutes"
    elif process.returncode:
        reason = last_line(log) or f"exit status {process.returncode} without a word"
    return Ended(time.monotonic() - started, peak / 1e9, cpu_s, reason)


def child_environment(
    *, threads: int, ours: bool, root: Path, keep_buffers: bool = True
) -> dict[str, str]:
    """Variables of a run: how many threads; our packages are found by our own arms only."""
    environment = dict(os.environ) | {name: str(threads) for name in THREADS}
    environment |= KEEP_BUFFERS if keep_buffers else {}
    environment.pop("PYTHONPATH", None)
    if ours:
        return environment | {"PYTHONPATH": str(root)}
    # an environment is built without bytecode: its first run keeps what it compiles for the others
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def last_line(log: Path) -> str:
    """The last line that says something, at most 200 characters of it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _use_of(process: psutil.Process) -> tuple[int, float]:
    """Resident bytes and processor seconds of a tree, those of children that ended included."""
    resident, cpu_s = 0, 0.0
    for each in _tree(process):
        try:
            resident += each.memory_info().rss
            cpu_s += sum(each.cpu_times()[:4])  # own and ended children's, user and system
        except psutil.NoSuchProcess:
            continue
    return resident, cpu_s


def _end(process: psutil.Process) -> None:
    for each in _tree(process):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
