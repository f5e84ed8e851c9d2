"""An environment for each peer, kept in a cache and built once for each list of versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from pathlib import Path

from benchmarks.peers.process import child_environment, run_process

LIMIT_S = 3600
# Two arms of a peer may ask for its environment at the same time; those of two peers are built
# side by side.
LOCKS: dict[str, threading.Lock] = {}


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


def build_environment(
    requirements: Path, root: Path, *, threads: int, stop: threading.Event | None = None
) -> Path:
    """The interpreter of an environment with exactly these requirements, built if it is not there.

    Raises:
        EnvironmentFailed: it cannot be built; the log lies beside it.
        Interrupted: `stop` was set.
    """
    folder = environment_folder(requirements, root)
    with LOCKS.setdefault(folder.name, threading.Lock()):
        if not (folder / ".complete").is_file():
            _build(folder, requirements, threads=threads, stop=stop)
    return folder / "bin" / "python"


def _build(folder: Path, requirements: Path, *, threads: int, stop: threading.Event | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    # a library as large as torch takes half a minute to compile, most of it for modules that no arm
    # imports
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    commands = (
        [sys.executable, "-m", "venv", folder],
        [*pip, "--requirement", requirements],
    )
    for command in commands:
        ended = run_process(
            command,
            log=log,
            limit_s=LIMIT_S,
            environment=child_environment(threads=threads, ours=False, root=folder),
            stop=stop,
        )
        if ended.reason is not None:
            raise EnvironmentFailed(f"no environment for {requirements.stem}: {ended.reason}")
    (folder / ".complete").touch()
