"""Runs of `mmrec` that a benchmark makes once and keeps: begun, gone on with, or made again."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.process import child_environment, run_process

ROOT = Path(__file__).resolve().parent.parent


def is_begun(folder: Path, origin: Sequence[Any]) -> bool:
    """Whether the folder holds something made of the same; it is emptied where it does not.

    Args:
        folder: of one run.
        origin: all that its result depends on, as JSON can hold it.
    """
    key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
    kept = folder / "key.txt"
    if kept.is_file() and kept.read_text(encoding="utf-8") == key:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kept.write_text(key, encoding="utf-8")
    return False


def train_command(config: Path, settings: Mapping[str, Any], data: Path, run: Path) -> list[str]:
    """What `mmrec` is told to train a run, or to go on with it."""
    changes = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    resume = ["--resume"] if run.is_dir() else []
    folders = ["--data", str(data), "--run", str(run)]
    return ["train", str(config), *changes, *folders, "--no-summary", *resume]


def run_commands(
    folder: Path, commands: Mapping[str, Sequence[str]], *, limit_s: float, threads: int
) -> str | None:
    """Runs `mmrec` once for each command, with a log of its name; None, or why it is broken."""
    for name, command in commands.items():
        ended = run_process(
            [sys.executable, "-m", "mmrec.cli", *command],
            log=folder / f"{name}.log",
            limit_s=limit_s,
            environment=child_environment(threads=threads, ours=True, root=ROOT),
        )
        if ended.reason is not None:
            return f"{name} broken: {ended.reason} (log: {folder})"
    return None


def install_weights(name: str) -> None:
    """Installs a package's weights unless they are there."""
    from mmrec.weights import folder_of, install

    if folder_of(name) is None:
        install(name)
