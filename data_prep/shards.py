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
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from data_prep.catalogue import Catalogue, parse_catalogue
from data_prep.errors import DataError, ShardError
from data_prep.item_table import ItemTable, decode_attributes, decode_text, decode_vector
from data_prep.remote import fetch
from data_prep.shard_format import (
    HISTORY_INDEX_SCHEMA,
    PENDING,
    SCHEMA,
    SPLIT_SCHEMA,
    UNKNOWN_TIME,
    Member,
    ShardReader,
    check_sizes,
    column_as_numpy,
    hash_manifest,
    map_arrow,
    place,
    read_manifest,
    sample_key,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SCHEMA",
    "SPLIT_SCHEMA",
    "UNKNOWN_TIME",
    "EarlierState",
    "History",
    "HistoryIndex",
    "ItemTable",
    "Member",
    "PreparedData",
    "Split",
    "decode_attributes",
    "decode_text",
    "decode_vector",
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


@dataclass(frozen=True)
class EarlierState:
    """What a prepared folder was before an update.

    Attributes:
        data_hash: of then.
        num_items: that it had, those deleted included.
        num_index_rows: rows of its index: what stands further down was added or changed since.
        splits: hash of each split.
    """

    data_hash: str
    num_items: int
    num_index_rows: int
    splits: dict[str, str]


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

    @property
    def past_hashes(self) -> list[str]:
        """`data_hash` of now and of before each update."""
        earlier = self.manifest.get("earlier", [])
        return [self.data_hash, *(each["data_hash"] for each in earlier)]

    @cached_property
    def items(self) -> ItemTable:
        """The items and their media."""
        return ItemTable(
            self.path / "items",
            tuple(self.manifest["modalities"]),
            items=self.place("items/items.arrow"),
            index=self.place("items/index.arrow"),
        )

    def place(self, name: str) -> Path:
        """Where a file or a split's folder lies."""
        return place(self.path, self.manifest, name)

    @cached_property
    def user_ids(self) -> list[str]:
        """External ids by user_index."""
        return pl.read_parquet(self.place("users.parquet"), columns=["user_id"])[
            "user_id"
        ].to_list()

    @cached_property
    def user_attributes(self) -> UserAttributes:
        """Typed attributes of users by user_index; what is not known is left out."""
        return UserAttributes(self.place("users.parquet"))

    @cached_property
    def _user_index_of(self) -> dict[str, int]:
        return {user_id: index for index, user_id in enumerate(self.user_ids)}

    def user_index_of(self, user_id: str) -> int | None:
        """Row of a user id, None where it is not known."""
        return self._user_index_of.get(user_id)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are, in order of the alphabet."""
        roots = [self.path, *([self.path / PENDING] if self.manifest.get("pending") else [])]
        found = {path.parent.name for root in roots for path in root.glob("splits/*/manifest.json")}
        return tuple(sorted(found))

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
        return Split(self.place(f"splits/{name}"))

    def state_at(self, data_hash: str, split: str, split_hash: str) -> EarlierState | None:
        """The state before some update in which data and a split had these hashes; None: never."""
        for each in reversed(self.manifest.get("earlier", [])):
            if each["data_hash"] == data_hash and each["splits"].get(split) == split_hash:
                return EarlierState(**each)
        return None

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
        for name, expected in self.manifest["files"].items():
            yield self.place(name), expected["sha256"]
        for split in map(self.split, self.splits):
            for name, expected in split.manifest["files"].items():
                yield split.path / name, expected["sha256"]


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
