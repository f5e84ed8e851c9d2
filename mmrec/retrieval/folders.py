"""Folders that take their name once they are whole, and whose manifest knows the hash of each file.

What is written lies beside its place until it is complete, so that whoever reads or is interrupted
finds the old folder or the new one, nothing in between. No torch is needed here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmrec.errors import CheckpointMismatch


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place, an older one's too, when all went well.

    Args:
        out: resolved; what it holds is replaced.
    """
    aside, old = out.with_name(f".{out.name}.partial"), _old(out)
    if old.exists() and not out.exists():
        os.replace(old, out)  # killed after it had taken the old one away
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left behind
    aside.mkdir(parents=True)
    try:
        yield aside
        _install(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _install(aside: Path, out: Path) -> None:
    old = _old(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(aside, out)
    shutil.rmtree(old, ignore_errors=True)


def file_record(path: Path) -> dict[str, str | int]:
    """Size and sha256 of a file, for a manifest."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def check_files(
    folder: Path, files: Mapping[str, Mapping[str, str | int]], *, remedy: str = "export again"
) -> None:
    """Compares files with their records.

    Args:
        folder: where they lie.
        files: name -> what `file_record` gave.
        remedy: what to do about one that differs.

    Raises:
        CheckpointMismatch: one is absent or was changed.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointMismatch(f"{path}: the file is missing; {remedy}")
        if file_record(path) != expected:
            raise CheckpointMismatch(f"{path}: was changed since it was written; {remedy}")
