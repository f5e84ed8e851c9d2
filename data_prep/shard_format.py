"""The format of a prepared folder: schemas, members of shards, manifests, checked reads.

Low level: `data_prep.shards` reads whole folders with it, `data_prep.shard_writer` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_prep.errors import ShardError
from data_prep.remote import fetch, is_mirrored

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "mmrec-prepared/1"
SPLIT_SCHEMA = "mmrec-split/1"
PENDING = ".pending"
"""Folder of an update that was cut short after it counted; see `place`."""
UNKNOWN_TIME = -1
"""`History.time` where the log does not know it."""
_KEY_DIGITS = 9
_MAX_OPEN_SHARDS = 64

INDEX_SCHEMA = pa.schema(
    [
        ("item_index", pa.int64()),
        ("item_id", pa.string()),
        ("member", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
    ]
)
"""`items/index.arrow`, only ever longer: rows of one item lie together, and those of an item that
has changed are there again further down. Offset and size are of the member's own bytes."""
ITEMS_SCHEMA = pa.schema(
    [
        ("item_index", pa.int64()),
        ("item_id", pa.string()),
        ("first_row", pa.int64()),
        ("num_members", pa.int32()),
        ("modalities", pa.int32()),
        ("duplicate_group", pa.int64()),
        ("deleted", pa.bool_()),
    ]
)
"""`items/items.arrow`: rows of the index as a slice; bit k of `modalities` = manifest's k-th."""
SOURCES_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("member", pa.string()),
        ("source_sha256", pa.binary()),
        ("reason", pa.string()),
        ("signature", pa.binary()),
    ]
)
"""`items/sources.arrow`: what each medium that the table names was made from; see `KnownItems`."""
HISTORY_INDEX_SCHEMA = pa.schema(
    [
        ("user_index", pa.int64()),
        ("length", pa.int64()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
    ]
)


@dataclass(frozen=True)
class Member:
    """One file inside a shard: `name` is what follows the key, as `text.json` or `image0.jpg`."""

    name: str
    shard: str
    offset: int
    size: int
    sha256: bytes


def sample_key(index: int) -> str:
    """The WebDataset key of an item or a user: its index, zero-padded."""
    return f"{index:0{_KEY_DIGITS}d}"


class ShardReader:
    """Reads bytes at an offset from the shards of one folder and checks them.

    Positioned reads, so that one reader serves several threads and survives a fork.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _OpenFile] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.folder,)

    def read(self, member: Member, key: str) -> bytes:
        """Bytes of a member.

        Raises:
            ShardError: the shard is absent, ends early, or the bytes are not those written.
        """
        path = self.folder / member.shard
        file = self._open(member.shard, path)
        data = os.pread(file.descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise ShardError(f"{path}: truncated: {key}.{member.name} is not there in full")
        if hashlib.sha256(data).digest() != member.sha256:
            raise ShardError(f"{path}: wrong sha256 of {key}.{member.name}: the shard was changed")
        return data

    def _open(self, shard: str, path: Path) -> _OpenFile:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= _MAX_OPEN_SHARDS:
                self._files.pop(list(self._files)[0], None)
            try:
                if not path.exists():
                    fetch(path)
                file = _OpenFile(os.open(path, os.O_RDONLY))
            except OSError as error:
                raise ShardError(f"{path}: cannot open the shard: {error.strerror}") from error
            self._files[shard] = file
        return file


class _OpenFile:
    """A descriptor that is closed when the last one who reads from it lets go.

    The reader forgets its oldest shard where many are open; another thread may be reading it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def read_manifest(path: Path, schema: str) -> dict[str, Any]:
    """Read a manifest and refuse what this version does not know.

    Raises:
        ShardError: absent, not JSON, or of another schema.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ShardError(
            f"{path}: there is no manifest: not a prepared folder, or preparing was interrupted"
        ) from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: not readable as a manifest: {error}") from error
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != schema:
        raise ShardError(f"{path}: schema {found!r} is not known; this version reads {schema!r}")
    return dict(manifest)


def place(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Where a file of a prepared folder lies.

    It is the name in the folder, or below `.pending` where an update was cut short while it gave
    its files their places: what has not got there yet is read from where it is.
    """
    pending = folder / PENDING / name
    return pending if manifest.get("pending") and pending.exists() else folder / name


def check_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the size of every listed file with the manifest: cheap, and finds truncation.

    Shards of a mirror may still be away, see `data_prep.remote`.

    Raises:
        ShardError: a file is absent or of another size.
    """
    mirrored = is_mirrored(folder)
    for name, expected in manifest["files"].items():
        path = place(folder, manifest, name)
        try:
            size = path.stat().st_size
        except OSError as error:
            if mirrored and path.suffix == ".tar":
                continue
            raise ShardError(f"{path}: the file is missing: {error.strerror}") from error
        if size != expected["size"]:
            state = "truncated" if size < expected["size"] else "changed"
            raise ShardError(f"{path}: {state}: {size} bytes, {expected['size']} were written")


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """sha256 of what a root manifest stands for: items, media, users and the log; no split.

    Counts, the quarantine, the names of tables and where media came from describe the data and are
    left out.
    """
    log = manifest["catalogue"]["interactions"]
    content = {
        "schema": manifest["schema"],
        "modalities": manifest["modalities"],
        "event_types": manifest["event_types"],
        "log": {name: value for name, value in log.items() if name not in ("table", "targets")},
        "log_sha256": manifest["source"]["tables"][log["table"]],
        "files": {
            name: record["sha256"]
            for name, record in manifest["files"].items()
            if name not in ("quarantine.jsonl", "items/sources.arrow")
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def map_arrow(path: Path, schema: pa.Schema) -> pa.Table:
    """Memory-map an index.

    Raises:
        ShardError: not an Arrow file, or of other columns.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardError(f"{path}: not readable as an index: {error}") from error
    if table.schema != schema:
        raise ShardError(f"{path}: has columns {table.schema.names}, not {schema.names}")
    return table


def column_as_numpy(table: pa.Table, column: str, dtype: Any) -> NDArray[Any]:
    """A column as one array; without a copy where it is one chunk of numbers."""
    chunks = table.column(column).chunks
    if len(chunks) == 1:
        array: NDArray[Any] = chunks[0].to_numpy(zero_copy_only=False)
        return array.astype(dtype, copy=False)
    if not chunks:
        return np.empty(0, dtype=dtype)
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks]).astype(
        dtype, copy=False
    )
