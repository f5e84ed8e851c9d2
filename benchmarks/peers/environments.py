"""An environment for each peer, kept in a cache and built once for each list of versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from benchmarks.peers.process import child_environment, run_process

LIMIT_S = 3600


class EnvironmentFailed(Exception):
    """An environment could not be built; one line."""


def cache_root() -> Path:
    """Where environments are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmrec-peers"


def environment_folder(requirements: Path, root: Path) -> Path:
    """The folder of an environment, by its requirements and the interpreter's version."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    content = requirements.read_bytes() + python.encode()
    return root / f"{requirements.stem}-{hashlib.sha256(content).hexdigest()[:12]}"


def build_environment(requirements: Path, root: Path, *, threads: int) -> Path:
    """The interpreter of an environment with exactly these requirements, built if it is not there.

    Raises:
        EnvironmentFailed: it cannot be built; the log lies beside it.
    """
    folder = environment_folder(requirements, root)
    python, done = folder / "bin" / "python", folder / ".complete"
    if done.is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    commands = (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--requirement", requirements],
    )
    for command in commands:
        ended = run_process(
            command,
            log=log,
            limit_s=LIMIT_S,
            environment=child_environment(threads=threads, ours=False, root=folder),
        )
        if ended.reason is not None:
            raise EnvironmentFailed(f"no environment for {requirements.stem}: {ended.reason}")
    done.touch()
    return python
