"""What a prepared folder knows of its items, so that an update redoes what is new alone.

same id ─────────────────► same item_index, for ever
same bytes of a source ──► same medium: copied from its shard, not decoded (sources.arrow)
same files of a sample ──► same rows of the index: nothing is written
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.shard_format import SOURCES_SCHEMA, Member, map_arrow
from data_prep.shards import PreparedData

Part = tuple[str, bytes | Member]
"""One file of a sample: its name behind the key, and its bytes or where they lie already."""


@dataclass(frozen=True)
class KnownMedium:
    """What became of a source file before: a member of a shard, or the reason why there is none.

    `source_sha256` and `signature` are those of `media_pool.LoadedMedium`.
    """

    member: Member | None
    reason: str
    source_sha256: bytes
    signature: bytes


class KnownItems:
    """The items of a prepared folder as an update asks for them.

    A folder without `sources.arrow`, of an older version, knows no medium: all are decoded, and
    what they give is compared.

    Args:
        data: the folder.

    Raises:
        ShardError: its tables were changed.
    """

    def __init__(self, data: PreparedData) -> None:
        data.verify_tables()
        self.items = data.items
        shards = [name for name in data.manifest["files"] if name.endswith(".tar")]
        self.num_shards = 1 + max(int(Path(name).stem.rpartition("-")[2]) for name in shards)
        self._deleted = self.items.deleted
        self._sources: dict[tuple[str, str], tuple[bytes, str, bytes]] = {}
        if "items/sources.arrow" in data.manifest["files"]:
            table = map_arrow(data.place("items/sources.arrow"), SOURCES_SCHEMA)
            for row in _rows(table):
                self._sources[row[0], row[1]] = (row[2], row[3], row[4])

    def __len__(self) -> int:
        return len(self.items)

    def index_of(self, item_id: str) -> int | None:
        """The item's row, that of one that was deleted too; None: never seen."""
        return self.items.index_of(item_id)

    def is_live(self, item_index: int) -> bool:
        """Whether an item is there and was not deleted."""
        return not self._deleted[item_index]

    def medium(self, item_id: str, member: str, path: Path) -> KnownMedium | None:
        """What became of a file before; None where it is new, has changed or is not there.

        Args:
            item_id: whose.
            member: its place, as `image0`.
            path: where the file lies now. It is read as a whole: a size and a time can lie.
        """
        found = self._sources.get((item_id, member))
        if found is None or not found[0] or found[0] != _sha256_of(path):
            return None
        source_sha256, reason, signature = found
        if reason:
            return KnownMedium(None, reason, source_sha256, signature)
        item_index = self.index_of(item_id)
        if item_index is None:
            return None
        for each in self.items.members(item_index):
            if each.name.rpartition(".")[0] == member:
                return KnownMedium(each, "", source_sha256, signature)
        return None

    def holds(self, item_index: int, parts: Sequence[Part]) -> bool:
        """Whether an item is there with exactly these files."""
        if not self.is_live(item_index):
            return False
        members = [(each.name, each.sha256) for each in self.items.members(item_index)]
        return members == [(name, digest_of(content)) for name, content in parts]


def digest_of(content: bytes | Member) -> bytes:
    """sha256 of a file of a sample."""
    return content.sha256 if isinstance(content, Member) else hashlib.sha256(content).digest()


def _sha256_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


def _rows(table: pa.Table) -> Any:
    for batch in table.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
