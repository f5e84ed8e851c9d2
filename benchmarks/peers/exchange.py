"""What a peer is given and what it gives back: plain files, read with numpy alone.

    TASK/task.npz, TASK/content.npy ─► peer_NAME.py TASK OUT SETTINGS ─► OUT/scores.npy, result.json

Both sides import this file: the runner, and each peer inside an environment of its own, which has
numpy and not us. No file holds a test target. Items and users are numbers, from 0.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """What a peer may know of one evaluation. Histories are oldest first.

    Attributes:
        num_users: users are 0 .. num_users - 1.
        num_items: N.
        candidates: (C,) the items to score, ascending.
        train_user: (R,) user of each training history.
        train: R training histories; what a model of sequences learns from.
        fit_user: (F,) user of each row to fit.
        fit: F rows, one a user; what a model with a vector a user learns from.
        stop_user: (V,) user of each validation target.
        stop: V histories before it.
        stop_target: (V,) validation targets of warm items, for a peer's own early stopping.
        case_user: (U,) user of each case.
        case: U histories, the input of each case to score.
        content: (N, W) frozen content vectors, zeros where an item has none; None without media.
    """

    num_users: int
    num_items: int
    candidates: np.ndarray
    train_user: np.ndarray
    train: list[np.ndarray]
    fit_user: np.ndarray
    fit: list[np.ndarray]
    stop_user: np.ndarray
    stop: list[np.ndarray]
    stop_target: np.ndarray
    case_user: np.ndarray
    case: list[np.ndarray]
    content: np.ndarray | None = None

    def fitted_row(self) -> np.ndarray:
        """(U,) the row of `fit` that holds each case's user."""
        row_of = np.full(self.num_users, -1)
        row_of[self.fit_user] = np.arange(len(self.fit_user))
        return row_of[self.case_user]


ROWS = ("train", "fit", "stop", "case")
ARRAYS = ("candidates", "train_user", "fit_user", "stop_user", "stop_target", "case_user")


def write_task(task: Task, folder: Path) -> None:
    """Write a task as arrays; histories as one array and the lengths of its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(task, name) for name in ARRAYS}
    for name in ROWS:
        rows = getattr(task, name)
        arrays[f"{name}_lengths"] = np.array([len(row) for row in rows], dtype=np.int64)
        arrays[f"{name}_values"] = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
    np.savez(folder / "task.npz", sizes=np.array([task.num_users, task.num_items]), **arrays)
    if task.content is not None:
        np.save(folder / "content.npy", task.content)


def read_task(folder: Path) -> Task:
    """Read what `write_task` wrote."""
    with np.load(folder / "task.npz") as kept:
        num_users, num_items = (int(size) for size in kept["sizes"])
        arrays: dict[str, Any] = {name: kept[name] for name in ARRAYS}
        for name in ROWS:
            ends = np.cumsum(kept[f"{name}_lengths"])
            arrays[name] = np.split(kept[f"{name}_values"], ends[:-1]) if len(ends) else []
    content = folder / "content.npy"
    return Task(
        num_users=num_users,
        num_items=num_items,
        content=np.load(content) if content.is_file() else None,
        **arrays,
    )


@dataclass(frozen=True)
class Fitted:
    """What a peer's `fit` gives back.

    Attributes:
        score: rows of cases -> (b, C) scores, higher is better, nan for a candidate it does not
            know; such candidates share the last place.
        notes: what the table should say of the run: `epochs` trained, `best_epoch` of them by
            validation, `limit` true where the budget ended it.
    """

    score: Callable[[np.ndarray], np.ndarray]
    notes: dict[str, Any]


class CoreBudget:
    """Ends a peer's training by the processor time it took, threads together.

    Seconds on the clock would give less training on a busy machine, or with fewer threads.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.process_time()

    def spent(self) -> bool:
        """Whether no further epoch should begin."""
        return time.process_time() - self.started >= self.seconds


def run_peer(
    fit: Callable[[Task, dict[str, Any]], Fitted], versions: Callable[[], dict[str, str]]
) -> None:
    """The main of every peer: read the task, fit, score in tiles of 512 cases, write.

    The settings are a JSON file: those of the arm, and `seed`, `threads`, `limit_core_s`.
    """
    task_folder, out, settings_file = (Path(argument) for argument in sys.argv[1:4])
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    task = read_task(task_folder)
    started = time.perf_counter()
    fitted = fit(task, settings)
    fit_s = time.perf_counter() - started
    shape = (len(task.case), len(task.candidates))
    scores = np.lib.format.open_memmap(out / "scores.npy", "w+", dtype=np.float32, shape=shape)
    for start in range(0, shape[0], 512):
        rows = np.arange(start, min(start + 512, shape[0]))
        scores[rows] = fitted.score(rows)
    scores.flush()
    result = {
        "fit_s": fit_s,
        "score_s": time.perf_counter() - started - fit_s,
        "versions": versions(),
        "notes": fitted.notes,
    }
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def installed(*names: str) -> Callable[[], dict[str, str]]:
    """Looks up versions of distributions once the peer is done."""
    from importlib.metadata import version

    return lambda: {name: version(name) for name in names}
