"""The items of a prepared folder: their rows, and the members of shards that they are made of.

items.arrow (a row an item) ─► index.arrow (a row a member) ─► items-000000.tar at offset
"""

from __future__ import annotations

import io
import json
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from data_prep.errors import DataError
from data_prep.shard_format import (
    INDEX_SCHEMA,
    ITEMS_SCHEMA,
    Member,
    ShardReader,
    column_as_numpy,
    map_arrow,
    sample_key,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ItemTable:
    """The items of a prepared folder, found by item_index.

    Args:
        folder: the `items/` folder.
        modalities: the manifest's, in order.
        items: its table of items; None: `items.arrow`.
        index: its table of members; None: `index.arrow`.
    """

    def __init__(
        self,
        folder: Path,
        modalities: tuple[str, ...],
        *,
        items: Path | None = None,
        index: Path | None = None,
    ) -> None:
        self.modalities = modalities
        self._folder = folder
        self._paths = (items, index)
        self._shards = ShardReader(folder)
        self._items = map_arrow(items or folder / "items.arrow", ITEMS_SCHEMA)
        self._index = map_arrow(index or folder / "index.arrow", INDEX_SCHEMA)
        self._first_row = column_as_numpy(self._items, "first_row", np.int64)
        self._num_members = column_as_numpy(self._items, "num_members", np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        items, index = self._paths
        return partial(ItemTable, items=items, index=index), (self._folder, self.modalities)

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

    @property
    def index(self) -> pa.Table:
        """`items/index.arrow`, mapped."""
        return self._index

    def changed_since(self, num_index_rows: int) -> NDArray[np.int64]:
        """Items that were added or changed since the index had so many rows, ascending."""
        return np.flatnonzero((self._first_row >= num_index_rows) & ~self.deleted).astype(np.int64)

    def rows_of(self, item_index: int) -> tuple[int, int]:
        """Where an item's members begin in the index, and how many they are."""
        return int(self._first_row[item_index]), int(self._num_members[item_index])

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
        first, count = self.rows_of(item_index)
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
