"""Reads a prepared folder: items by offset in shards, histories a user at a time, splits.

    manifest.json ─ items/items.arrow (a row an item) ─ items/index.arrow (a row a member)
                  │                                       └► items/items-000000.tar at offset
                  └ splits/NAME/manifest.json ─ histories-*.index.arrow ► histories-*.tar

Opening reads the manifest only. Indexes are memory-mapped, so that memory does not grow with the
catalogue, and every byte taken from a shard is checked against its sha256. Nothing is trusted:
an unknown schema, a missing or truncated file or a wrong hash is a `ShardError` of one line.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from data_prep.catalogue import Catalogue, parse_catalogue
from data_prep.errors import DataError, ShardError
from data_prep.remote import fetch
from data_prep.shard_format import (
    HISTORY_INDEX_SCHEMA,
    INDEX_SCHEMA,
    ITEMS_SCHEMA,
    SCHEMA,
    SPLIT_SCHEMA,
    UNKNOWN_TIME,
    Member,
    ShardReader,
    check_sizes,
    column_as_numpy,
    hash_manifest,
    map_arrow,
    read_manifest,
    sample_key,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SCHEMA",
    "SPLIT_SCHEMA",
    "UNKNOWN_TIME",
    "History",
    "HistoryIndex",
    "ItemTable",
    "Member",
    "PreparedData",
    "Split",
]


@dataclass(frozen=True)
class History:
    """One user's events, oldest first; arrays of one length n.

    `item_index` (n,) int64; `time` (n,) int64 Unix seconds, `UNKNOWN_TIME` where not known;
    `event` (n,) int16, index into the manifest's `event_types`, -1 where not known; `value` (n,)
    float32, NaN where not known; `context` a list a column. None where the log has no such column.
    `shown_items` (m,) int64 and `shown_before` (m,) int64: what was shown and nothing more, and how
    many of the events came before; empty where the catalogue names no such type.
    """

    user_index: int
    item_index: NDArray[np.int64]
    time: NDArray[np.int64] | None
    event: NDArray[np.int16] | None
    value: NDArray[np.float32] | None
    context: dict[str, list[Any]] | None
    shown_items: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    shown_before: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class ItemTable:
    """The items of a prepared folder, found by item_index.

    Args:
        folder: the `items/` folder.
        modalities: the manifest's, in order.
    """

    def __init__(self, folder: Path, modalities: tuple[str, ...]) -> None:
        self.modalities = modalities
        self._folder = folder
        self._shards = ShardReader(folder)
        self._items = map_arrow(folder / "items.arrow", ITEMS_SCHEMA)
        self._index = map_arrow(folder / "index.arrow", INDEX_SCHEMA)
        self._first_row = column_as_numpy(self._items, "first_row", np.int64)
        self._num_members = column_as_numpy(self._items, "num_members", np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemTable, (self._folder, self.modalities)

    def __len__(self) -> int:
        return int(self._items.num_rows)

    @cached_property
    def item_ids(self) -> list[str]:
        """External ids by item_index."""
        ids: list[str] = self._items.column("item_id").to_pylist()
        return ids

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def index_of(self, item_id: str) -> int | None:
        """Row of an id, None where it is not known."""
        return self._index_of.get(item_id)

    @property
    def deleted(self) -> NDArray[np.bool_]:
        """(N,) bool: True = the item was withdrawn."""
        return column_as_numpy(self._items, "deleted", np.bool_)

    def is_deleted(self, item_index: int) -> bool:
        """Whether one item was withdrawn, without reading the column of all."""
        return bool(self._items.column("deleted")[item_index].as_py())

    @property
    def duplicate_groups(self) -> NDArray[np.int64]:
        """(N,) int64: near-duplicates share a number, the smallest item_index among them."""
        return column_as_numpy(self._items, "duplicate_group", np.int64)

    def has(self, modality: str) -> NDArray[np.bool_]:
        """(N,) bool: True = the item has at least one medium of the modality.

        Raises:
            DataError: the catalogue has no such modality.
        """
        if modality not in self.modalities:
            raise DataError(
                f"modality {modality!r} is not in the data; it has {', '.join(self.modalities)}"
            )
        bit = self.modalities.index(modality)
        return (column_as_numpy(self._items, "modalities", np.int32) >> bit & 1).astype(np.bool_)

    def members(self, item_index: int) -> list[Member]:
        """All files of an item, in the order of the shard.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= item_index < len(self):
            raise IndexError(f"item_index {item_index} is not in 0..{len(self) - 1}")
        first, count = int(self._first_row[item_index]), int(self._num_members[item_index])
        rows = self._index.slice(first, count).select(INDEX_SCHEMA.names[2:]).to_pydict()
        return [Member(*row) for row in zip(*rows.values(), strict=True)]

    def read(self, member: Member) -> bytes:
        """Bytes of a member, checked against its sha256.

        Raises:
            ShardError: the shard is absent, ends early, or the bytes are not those written.
        """
        return self._shards.read(member, f"offset {member.offset}")

    def record(self, item_index: int) -> dict[str, Any]:
        """KEY.json of an item: `id`, `attributes`, `available`."""
        value: dict[str, Any] = json.loads(self._read_named(item_index, "json") or b"{}")
        return value

    def text(self, item_index: int) -> dict[str, str]:
        """Texts of an item by field name, in the catalogue's order; empty where there is none."""
        return decode_text(self._read_named(item_index, "text.json") or b"{}")

    def media(self, item_index: int, kind: Literal["image", "audio", "video"]) -> list[Member]:
        """Members of one kind, first column of the catalogue first."""
        return [member for member in self.members(item_index) if member.name.startswith(kind)]

    def vector(self, item_index: int, name: str) -> NDArray[np.float32] | None:
        """A ready-made vector (D,) float32, None where the item has none of that name."""
        data = self._read_named(item_index, f"vector.{name}.npy")
        return None if data is None else decode_vector(data)

    def _read_named(self, item_index: int, name: str) -> bytes | None:
        for member in self.members(item_index):
            if member.name == name:
                return self._shards.read(member, sample_key(item_index))
        return None


def decode_text(data: bytes) -> dict[str, str]:
    """Bytes of KEY.text.json -> texts by field name."""
    texts: dict[str, str] = json.loads(data)
    return texts


def decode_attributes(data: bytes) -> dict[str, Any]:
    """Bytes of KEY.json -> attributes that are known, by field name."""
    attributes: dict[str, Any] = json.loads(data)["attributes"]
    return attributes


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """Bytes of KEY.vector.NAME.npy -> (D,) float32."""
    vector: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    return vector


class UserAttributes(Sequence[dict[str, Any]]):
    """Attributes of users, a mapping each, read from users.parquet when first asked for.

    Args:
        path: a table with user_id, user_index and a column an attribute.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return UserAttributes, (self._path,)

    @cached_property
    def _table(self) -> pl.DataFrame:
        return pl.read_parquet(self._path).drop("user_id", "user_index", strict=False)

    def __len__(self) -> int:
        return self._table.height

    def __getitem__(self, user_index: Any) -> Any:
        if not 0 <= user_index < len(self):
            raise IndexError(f"user_index {user_index} is not in 0..{len(self) - 1}")
        row = self._table.row(int(user_index), named=True)
        return {name: value for name, value in row.items() if value is not None}


class HistoryIndex:
    """Histories of a split, found by row; a row a user, ascending user_index.

    Args:
        folder: the split's folder.
        prefix: `histories-train` or `histories-full`.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._shards = ShardReader(folder)
        table = map_arrow(folder / f"{prefix}.index.arrow", HISTORY_INDEX_SCHEMA)
        self.user_index = column_as_numpy(table, "user_index", np.int64)
        self.lengths = column_as_numpy(table, "length", np.int64)
        self.shard_of = column_as_numpy(table, "shard", np.int32)
        self._offset = column_as_numpy(table, "offset", np.int64)
        self._size = column_as_numpy(table, "size", np.int64)
        self._sha256 = table.column("sha256")
        num_shards = int(self.shard_of.max(initial=-1)) + 1
        self.shards = [f"{prefix}-{number:06d}.tar" for number in range(num_shards)]

    def __reduce__(self) -> tuple[Any, ...]:
        return HistoryIndex, (self._folder, self._prefix)

    def __len__(self) -> int:
        return len(self.user_index)

    def read(self, row: int) -> History:
        """The history in a row (not the user_index).

        Raises:
            ShardError: the shard is absent, ends early, or the bytes are not those written.
        """
        user_index = int(self.user_index[row])
        member = Member(
            "json",
            self.shards[self.shard_of[row]],
            int(self._offset[row]),
            int(self._size[row]),
            self._sha256[row].as_py(),
        )
        arrays = json.loads(self._shards.read(member, sample_key(user_index)))
        return History(
            user_index=user_index,
            item_index=np.array(arrays["item_index"], dtype=np.int64),
            time=_optional(arrays.get("time"), UNKNOWN_TIME, np.int64),
            event=_optional(arrays.get("event"), -1, np.int16),
            value=_optional(arrays.get("value"), np.nan, np.float32),
            context=arrays.get("context"),
            shown_items=np.array(arrays.get("shown", {}).get("item_index", []), np.int64),
            shown_before=np.array(arrays.get("shown", {}).get("before", []), np.int64),
        )


class Split:
    """One split of a prepared folder: who trains on what, and the fixed targets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.manifest = read_manifest(folder / "manifest.json", SPLIT_SCHEMA)
        check_sizes(folder, self.manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, (self.path,)

    @property
    def name(self) -> str:
        """Name of the split, that of its folder."""
        return str(self.manifest["name"])

    @property
    def hash(self) -> str:
        """sha256 over the protocol, the cold sets and every target."""
        return str(self.manifest["hash"])

    @cached_property
    def items(self) -> pl.DataFrame:
        """item_index, role (warm, cold_validation, cold_test, no_events) and event counts."""
        return pl.read_parquet(self.path / "items.parquet")

    @cached_property
    def train(self) -> HistoryIndex:
        """Training histories: warm events before the earliest target of the user."""
        return HistoryIndex(self.path, "histories-train")

    @cached_property
    def full(self) -> HistoryIndex:
        """Complete histories, cold items included: for model inputs and the filter of seen items.

        Positions of targets count events of these.
        """
        return HistoryIndex(self.path, "histories-full")

    def targets(self, which: str) -> pl.DataFrame:
        """Targets of `validation` or `test`: user_index, item_index, position, slice."""
        if which not in ("validation", "test"):
            raise DataError(f"targets {which!r} are not known; allowed are validation and test")
        return pl.read_parquet(self.path / f"targets-{which}.parquet")


class PreparedData:
    """A prepared folder, opened with `PreparedData.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedData.open, (self.path,)

    @classmethod
    def open(cls, path: Path) -> PreparedData:
        """Open a folder written by `prepare`; reads the manifest and the sizes of files only.

        Raises:
            ShardError: there is no manifest (an interrupted run leaves none), its schema is not
                known, or a file is absent or truncated.
        """
        path = Path(path)
        manifest = read_manifest(path / "manifest.json", SCHEMA)
        check_sizes(path, manifest)
        return cls(path, manifest)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue file the data were prepared with."""
        return parse_catalogue(self.manifest["catalogue"])

    @cached_property
    def data_hash(self) -> str:
        """sha256 that says which items, media, users and log these are; no split is in it."""
        return hash_manifest(self.manifest)

    @cached_property
    def items(self) -> ItemTable:
        """The items and their media."""
        return ItemTable(self.path / "items", tuple(self.manifest["modalities"]))

    @cached_property
    def user_ids(self) -> list[str]:
        """External ids by user_index."""
        return pl.read_parquet(self.path / "users.parquet", columns=["user_id"])[
            "user_id"
        ].to_list()

    @cached_property
    def user_attributes(self) -> UserAttributes:
        """Typed attributes of users by user_index; what is not known is left out."""
        return UserAttributes(self.path / "users.parquet")

    @cached_property
    def _user_index_of(self) -> dict[str, int]:
        return {user_id: index for index, user_id in enumerate(self.user_ids)}

    def user_index_of(self, user_id: str) -> int | None:
        """Row of a user id, None where it is not known."""
        return self._user_index_of.get(user_id)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are, in order of the alphabet."""
        found = (self.path / "splits").glob("*/manifest.json")
        return tuple(sorted(path.parent.name for path in found))

    def split(self, name: str | None = None) -> Split:
        """A split by name; without one, the only one there is.

        Raises:
            DataError: there is no such split, or several and no name.
        """
        names = self.splits
        if name is None and len(names) == 1:
            name = names[0]
        if name is None or name not in names:
            asked = "no split was named" if name is None else f"there is no split {name!r}"
            raise DataError(f"{self.path}: {asked}; it has {', '.join(names) or 'none'}")
        return Split(self.path / "splits" / name)

    def verify_tables(self) -> None:
        """Hash every file that is no shard: indexes, users, targets; some bytes an item.

        Members of shards are checked one by one as they are read, rows of tables are not.

        Raises:
            ShardError: a file is not the one that was written.
        """
        for path, sha256 in self._files():
            if path.suffix != ".tar":
                _check_hash(path, sha256)

    def verify(self) -> None:
        """Hash every file listed in the manifests, splits included; a mirror's are all fetched.

        Raises:
            ShardError: a file is not the one that was written.
        """
        for path, sha256 in self._files():
            if not path.exists():
                fetch(path)
            _check_hash(path, sha256)

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Every file of the manifests with its sha256."""
        folders = [(self.path, self.manifest)]
        folders += [(self.path / "splits" / n, self.split(n).manifest) for n in self.splits]
        for folder, manifest in folders:
            for name, expected in manifest["files"].items():
                yield folder / name, expected["sha256"]


def _check_hash(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ShardError(
            f"{path}: wrong sha256: the file was changed; copy the folder again, or delete it and "
            "run mmrec prepare"
        )


def _optional(values: list[Any] | None, missing: Any, dtype: Any) -> Any:
    if values is None:
        return None
    return np.array([missing if value is None else value for value in values], dtype=dtype)
