"""Writes the shards of a prepared folder, byte for byte the same for the same samples.

    (key, [(extension, bytes), ...]) -> PREFIX-000000.tar, PREFIX-000001.tar, ... + where each lies

Plain USTAR with fixed owner and time, which WebDataset reads; every file is written aside
(`.part`) and renamed when whole. `data_prep.shards` is the reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from data_prep.shard_format import HISTORY_INDEX_SCHEMA, INDEX_SCHEMA, Member, sample_key

MAX_SHARD_BYTES = 32 * 1024 * 1024
MAX_SHARD_COUNT = 4096
MAX_HISTORIES_PER_SHARD = 1024
_BATCH_ROWS = 65_536
"""Rows of an index kept in memory before they are written."""


class ShardWriter:
    """Appends samples to numbered tar files; a sample never spans two.

    Args:
        folder: where the shards go; it must exist.
        prefix: `items` gives `items-000000.tar`.
        max_bytes: a shard is closed before a sample would make it longer (a single larger sample
            gets a shard of its own).
        max_count: samples a shard.
        first: number of the first shard.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        *,
        max_bytes: int = MAX_SHARD_BYTES,
        max_count: int = MAX_SHARD_COUNT,
        first: int = 0,
    ) -> None:
        self._folder = folder
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._first = first
        self._file: IO[bytes] | None = None
        self._offset = 0
        self._count = 0
        self.shards: list[str] = []

    def write(self, key: str, parts: Sequence[tuple[str, bytes]]) -> list[Member]:
        """Append one sample, parts in the order given.

        Returns:
            One `Member` a part: its shard, the offset of its bytes in that file, size, sha256.
        """
        size = sum(tarfile.BLOCKSIZE + _padded(len(data)) for _, data in parts)
        if self._file is not None and (
            self._offset + size + 2 * tarfile.BLOCKSIZE > self._max_bytes
            or self._count >= self._max_count
        ):
            self._close_shard()
        file = self._file or self._open_shard()
        members = []
        for extension, data in parts:
            file.write(_header(f"{key}.{extension}", len(data)))
            self._offset += tarfile.BLOCKSIZE
            digest = hashlib.sha256(data).digest()
            members.append(Member(extension, self.shards[-1], self._offset, len(data), digest))
            file.write(data)
            file.write(b"\0" * (_padded(len(data)) - len(data)))
            self._offset += _padded(len(data))
        self._count += 1
        return members

    def close(self) -> None:
        """Finish the last shard."""
        if self._file is not None:
            self._close_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
            self._part_path().unlink(missing_ok=True)

    def _part_path(self) -> Path:
        return self._folder / f"{self.shards[-1]}.part"

    def _open_shard(self) -> IO[bytes]:
        self.shards.append(f"{self._prefix}-{self._first + len(self.shards):06d}.tar")
        self._offset = 0
        self._count = 0
        self._file = open(self._part_path(), "wb", buffering=1024 * 1024)  # noqa: SIM115
        return self._file

    def _close_shard(self) -> None:
        assert self._file is not None
        self._file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        flush_to_disk(self._file)
        self._file.close()
        self._file = None
        self._part_path().rename(self._folder / self.shards[-1])


class IndexWriter:
    """Streams rows of one Arrow schema to a file that can be memory-mapped.

    Memory stays at one batch of rows, however many there are.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._part = path.with_name(path.name + ".part")
        self._sink = pa.OSFile(str(self._part), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)
        self._columns: list[list[Any]] = [[] for _ in schema]

    def append(self, *row: Any) -> None:
        """Add one row, values in the order of the schema."""
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        if len(self._columns[0]) >= _BATCH_ROWS:
            self._flush()

    def extend(self, table: pa.Table) -> None:
        """Add all rows of a table of the same schema."""
        if self._columns[0]:
            self._flush()
        for batch in table.to_batches():
            self._writer.write_batch(batch)

    def close(self) -> None:
        """Write what is left and give the file its name."""
        if self._columns[0]:
            self._flush()
        self._writer.close()
        self._sink.close()
        self._part.rename(self._path)

    def _flush(self) -> None:
        arrays = [
            pa.array(values, type=field.type)
            for values, field in zip(self._columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        for column in self._columns:
            column.clear()


def write_item_index(writer: IndexWriter, item_index: int, item_id: str, member: Member) -> None:
    """Append one member of an item to `items/index.arrow`."""
    writer.append(
        item_index, item_id, member.name, member.shard, member.offset, member.size, member.sha256
    )


def open_item_index(path: Path) -> IndexWriter:
    """Start `items/index.arrow`."""
    return IndexWriter(path, INDEX_SCHEMA)


def write_histories(
    folder: Path,
    prefix: str,
    histories: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    max_count: int = MAX_HISTORIES_PER_SHARD,
) -> list[str]:
    """Write histories, a sample a user, and the sidecar index PREFIX.index.arrow.

    Args:
        folder: the split's folder.
        prefix: `histories-train` or `histories-full`.
        histories: (user_index, the arrays of KEY.json) in ascending user_index; `item_index`
            is one of the arrays and gives the length.
        max_count: users a shard.

    Returns:
        Names of the shards.
    """
    index = IndexWriter(folder / f"{prefix}.index.arrow", HISTORY_INDEX_SCHEMA)
    with ShardWriter(folder, prefix, max_count=max_count) as shards:
        for user_index, arrays in histories:
            data = compact_json(arrays)
            (member,) = shards.write(sample_key(user_index), [("json", data)])
            index.append(
                user_index,
                len(arrays["item_index"]),
                len(shards.shards) - 1,
                member.offset,
                member.size,
                member.sha256,
            )
    index.close()
    return shards.shards


def compact_json(value: Any) -> bytes:
    """JSON as every file inside a shard has it: UTF-8, no blanks, keys in the order given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file aside, then rename it."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False).encode())
        file.write(b"\n")
        flush_to_disk(file)
    part.rename(path)


def file_record(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file as manifests list them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def flush_to_disk(file: IO[bytes]) -> None:
    """Make a file durable before it is renamed: else a power cut can leave its name on zeros."""
    file.flush()
    os.fsync(file.fileno())


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
