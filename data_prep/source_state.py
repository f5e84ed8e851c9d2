"""Tells whether the sources of a prepared folder have changed since it was written.

First by time, as `make` does, which costs one look at each file; where that leaves doubt, by
content. The folder itself keeps hashes only, no times: the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data_prep.build_items import MISSING_DIGEST, media_slots, resolve_medium
from data_prep.catalogue import Catalogue
from data_prep.errors import DataError

_CLOCK_STEP_NS = 20_000_000
"""File times come from a clock that ticks in milliseconds and may lag behind ours."""
_STAMPED = ("manifest.json", "quarantine.jsonl")


@dataclass(frozen=True)
class SourceFiles:
    """Files a catalogue is made from: (path as given, where it lies or None if outside)."""

    paths: list[tuple[str, Path | None]]
    missing: frozenset[str]
    newest_ns: int
    """Latest modification or change of status (which also sees a file moved into place)."""

    @classmethod
    def of_tables(cls, catalogue: Catalogue, source: Path) -> SourceFiles:
        """The tables."""
        return cls._look([(name, source / name) for name in _table_names(catalogue)])

    @classmethod
    def of_media(cls, catalogue: Catalogue, source: Path, items: pl.DataFrame) -> SourceFiles:
        """The media that rows of the table of items name, in order."""
        real = os.path.realpath(source)
        return cls._look(
            [
                (slot.path, resolve_medium(real, slot.path))
                for row in items.iter_rows(named=True)
                for slot in media_slots(catalogue, row)
            ]
        )

    @classmethod
    def _look(cls, paths: list[tuple[str, Path | None]]) -> SourceFiles:
        newest = 0
        missing = set()
        for given, path in paths:
            try:
                status = os.stat(path) if path is not None else None
            except OSError:
                status = None
            if status is None:
                missing.add(given)
            else:
                newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        return cls(paths, frozenset(missing), newest)


def mark_as_current(out: Path, started_ns: int) -> None:
    """Note in two files' times when the sources were read.

    Two files with one time: a plain copy of the folder gives each its own, and then content
    decides.
    """
    stamp = started_ns - _CLOCK_STEP_NS
    for name in _STAMPED:
        os.utime(out / name, ns=(stamp, stamp))


def source_is_older(out: Path, files: SourceFiles) -> bool:
    """Whether no file was touched since the folder was marked."""
    stamps = {(out / name).stat().st_mtime_ns for name in _STAMPED}
    return len(stamps) == 1 and files.newest_ns < stamps.pop()


def table_hashes(catalogue: Catalogue, source: Path) -> dict[str, str]:
    """sha256 of each table's file.

    Raises:
        DataError: a table cannot be read.
    """
    hashes = {}
    for name in _table_names(catalogue):
        try:
            with open(source / name, "rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"table {name!r}: cannot read {source / name}: {error.strerror}; "
                "check the catalogue file and --source"
            ) from error
    return hashes


def hash_source(files: SourceFiles) -> str:
    """sha256 over path and sha256 of each medium, as the manifest records it."""
    digest = hashlib.sha256()
    for given, path in files.paths:
        digest.update(given.encode() + b"\0")
        try:
            if path is None:
                raise FileNotFoundError
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            digest.update(MISSING_DIGEST)
    return digest.hexdigest()


def _table_names(catalogue: Catalogue) -> list[str]:
    names = [catalogue.items.table, catalogue.interactions.table]
    return names + ([catalogue.users.table] if catalogue.users is not None else [])
