"""Holds a prepared folder for one writer, and gives what he has built its place there.

whole    manifest away ─► parts moved ─► manifest      cut short: no folder
update   new shards ─► .pending ─► manifest ─► parts moved ─► manifest without `pending`
                                     └ from here on the folder is the new one, from wherever
                                       its files lie (`shard_format.place`)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.errors import DataError
from data_prep.shard_format import PENDING, SCHEMA, read_manifest
from data_prep.shard_writer import write_json

STAGING = ".staging"
_PARTS = ("items", "users.parquet", "quarantine.jsonl", "splits")
# What else may lie in a prepared folder: training keeps encoder states there, by content.
_KEPT = ("manifest.json", STAGING, PENDING, "cache")


@contextlib.contextmanager
def one_writer(out: Path) -> Iterator[Path]:
    """Hold the output folder alone, with an empty staging folder in it; clear it up on failure.

    What an update that was cut short left behind is settled first.

    Raises:
        DataError: the folder is something else, another run writes there, or the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted({p.name for p in out.iterdir()} - {*_PARTS, *_KEPT})
        if strangers:
            raise DataError(
                f"--out {out}: holds {strangers[0]!r}, which no prepared folder has; "
                "give an empty folder or an earlier prepared one"
            )
        descriptor = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}") from error
    staging = out / STAGING
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"--out {out}: another run is writing there") from error
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            settle(out)
            yield staging
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _explain_write_error(error, out) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _explain_write_error(error: Exception, out: Path) -> Exception:
    """What the system refuses is the user's to mend: one line; anything else goes on as it is."""
    number = error.errno if isinstance(error, OSError) else None
    # polars keeps the text of the system's error only
    if number in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
        return DataError(f"--out {out}: the disk is full; make room and run again")
    if isinstance(error, OSError) and number is not None:
        return DataError(f"--out {out}: {error.strerror}: {error.filename or 'while writing'}")
    return error


def install(staging: Path, out: Path) -> None:
    """Move a whole build into place, its manifest last."""
    (out / "manifest.json").unlink(missing_ok=True)
    for name in _PARTS:
        old = out / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (staging / name).rename(old)
    (staging / "manifest.json").rename(out / "manifest.json")
    staging.rmdir()


def install_update(staging: Path, out: Path) -> None:
    """Put an update in place of the state it was made from.

    One renaming of the manifest decides: before it the folder is what it was, for no reader looks
    at files that its manifest does not name, and after it the update is whole.
    """
    for shard in sorted((staging / "items").glob("*.tar")):
        shard.replace(out / "items" / shard.name)
    shutil.rmtree(out / PENDING, ignore_errors=True)
    manifest = read_manifest(staging / "manifest.json", SCHEMA)
    staging.rename(out / PENDING)
    _write_manifest(out, {**manifest, "pending": True})
    settle(out)


def settle(out: Path) -> None:
    """Finish what an update that was cut short had begun, or clear away what never counted."""
    pending, path = out / PENDING, out / "manifest.json"
    if not pending.is_dir():
        return
    manifest = read_manifest(path, SCHEMA) if path.exists() else {}
    if manifest.pop("pending", False):
        for split in sorted((pending / "splits").glob("*")):
            place = out / "splits" / split.name
            shutil.rmtree(place, ignore_errors=True)
            split.rename(place)
        for name in sorted(manifest["files"]):
            if (pending / name).exists():
                (pending / name).replace(out / name)
        _write_manifest(out, manifest)
    for shard in (out / "items").glob("*.tar") if manifest else ():
        if f"items/{shard.name}" not in manifest["files"]:
            shard.unlink()
    shutil.rmtree(pending)


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest aside, where a run that is cut short leaves nothing strange."""
    aside = out / PENDING / "manifest.json"
    write_json(aside, manifest)
    aside.replace(out / "manifest.json")
