"""A prepared folder on any path that fsspec knows (s3://, gs://, memory:// …), by a local mirror.

    URL/manifest.json, tables, indexes ─ copied when opened ────► CACHE/NAME-HASH/ + remote.json
    URL/items/items-000000.tar ───────── copied when first read ► CACHE/NAME-HASH/items/…

A mirror is a prepared folder whose shards may still be away: everything that takes a folder takes
it, and several processes may share it. A file is copied aside and renamed, so one that is there is
whole; its bytes are checked as those of any prepared folder. Shards stay until they are deleted,
which costs no more than copying them once again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from data_prep.errors import DataError, ShardError

REMOTE_FILE = "remote.json"
CACHE_VARIABLE = "MMREC_DATA_CACHE"
SCHEMA = 1
_DEEPEST = 3
"""A shard lies in items/ or splits/NAME/ of its prepared folder."""


def is_url(location: str) -> bool:
    """Whether a location is one for fsspec, not a path of this machine's."""
    return "://" in location


def cache_root() -> Path:
    """Where mirrors are kept: $MMREC_DATA_CACHE, else ~/.cache/mmrec/data."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec" / "data"


def mirror(url: str, root: Path | None = None) -> Path:
    """The local mirror of a prepared folder, with all of its files but the shards.

    Other data under the same URL have another mirror; a split that came since is added.

    Args:
        url: the folder's, as fsspec has it. Credentials belong in the environment or in fsspec's
            own configuration.
        root: where mirrors are kept; None: `cache_root()`.

    Returns:
        The mirror's folder.

    Raises:
        DataError: the URL holds a password, its protocol is not known or needs a package.
        ShardError: there is no prepared folder, or it cannot be read.
    """
    if urlsplit(url).password is not None:
        raise DataError(
            f"{_public(url)}: holds a password, which would be kept in runs; give it in the "
            "environment or in fsspec's configuration"
        )
    url = url.rstrip("/")
    system, base = _open(url)
    manifest = _read(system, url, f"{base}/manifest.json")
    digest = hashlib.sha256(url.encode() + b"\0" + manifest).hexdigest()[:12]
    folder = (root or cache_root()) / f"{PurePosixPath(base).name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        for place in sorted(_listed(system, url, f"{base}/splits/*/manifest.json")):
            _copy_tables(system, url, base, folder, str(PurePosixPath(place).parent))
        _copy_tables(system, url, base, folder, base)
        document = {"schema": SCHEMA, "url": url}
        _write(folder / REMOTE_FILE, (json.dumps(document) + "\n").encode())
    return folder


def is_mirrored(folder: Path) -> bool:
    """Whether shards of a folder may still be away: it is a mirror, or lies in one."""
    return _mirror_above(folder) is not None


def fetch(path: Path) -> bool:
    """Copies a file of a mirror that is not there yet.

    Returns:
        False where the path lies in no mirror.

    Raises:
        ShardError: it cannot be copied.
    """
    root = _mirror_above(path.parent)
    if root is None:
        return False
    url = _url_of(root)
    system, base = _open(url)
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # another process may have been first
            _copy(system, url, f"{base}/{path.relative_to(root).as_posix()}", path)
    return True


def _copy_tables(system: Any, url: str, base: str, folder: Path, place: str) -> None:
    """The manifest of one folder and the files it lists, shards left out; the manifest last."""
    manifest = _read(system, url, f"{place}/manifest.json")
    local = folder / PurePosixPath(place).relative_to(base)
    known = local / "manifest.json"
    unchanged = known.is_file() and known.read_bytes() == manifest
    try:
        files = json.loads(manifest)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{_public(url)}: no manifest of a prepared folder: {error}") from error
    for name, expected in files.items():
        if name.endswith(".tar"):
            continue
        path = local / name
        if unchanged and path.is_file() and path.stat().st_size == expected["size"]:
            continue
        _copy(system, url, f"{place}/{name}", path)
    _write(known, manifest)


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package is missing; the protocol is not known
        raise DataError(f"{_public(url)}: {' '.join(str(error).split())}") from None
    return system, base.rstrip("/")


def _listed(system: Any, url: str, pattern: str) -> list[str]:
    try:
        return list(system.glob(pattern))
    except Exception as error:  # every file system has errors of its own
        raise _unreadable(url, pattern, error) from None


def _read(system: Any, url: str, place: str) -> bytes:
    try:
        return bytes(system.cat_file(place))
    except Exception as error:
        raise _unreadable(url, place, error) from None


def _copy(system: Any, url: str, place: str, path: Path) -> None:
    """One file, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        system.get_file(place, str(aside))
        os.replace(aside, path)
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(aside):
            raise  # the disk at hand is at fault, not the remote one
        raise _unreadable(url, place, error) from None
    finally:
        aside.unlink(missing_ok=True)


def _unreadable(url: str, place: str, error: Exception) -> ShardError:
    missing = isinstance(error, FileNotFoundError)
    reason = "there is no such file" if missing else f"{type(error).__name__}: {error}"
    name = PurePosixPath(place).name
    return ShardError(f"{_public(url)}: cannot read {name}: {' '.join(reason.split())}")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_bytes(data)
    os.replace(aside, path)


def _mirror_above(folder: Path) -> Path | None:
    for each in (folder, *folder.parents[: _DEEPEST - 1]):
        if (each / REMOTE_FILE).is_file():
            return each
    return None


def _url_of(root: Path) -> str:
    try:
        document = json.loads((root / REMOTE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise ShardError(f"{root / REMOTE_FILE}: not readable: {error}") from error
    if document.get("schema") != SCHEMA:
        raise ShardError(
            f"{root / REMOTE_FILE}: schema {document.get('schema')} is not known; this version "
            f"reads {SCHEMA}"
        )
    return str(document["url"])


def _public(url: str) -> str:
    """A URL as it may be shown: without a user's name and password, and without a query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
