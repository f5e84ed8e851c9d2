"""Writes the samples of items: shards, `index.arrow`, `items.arrow`, `sources.arrow`.

parts of each item ─► new or changed: next shard, further rows of the index
                   └► as it was: its old rows        (nothing is written)
at the end ─► a row an item, near-duplicate groups, deleted ones marked
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from data_prep.duplicates import DuplicateFinder, text_digest
from data_prep.known_items import KnownItems, KnownMedium, Part, digest_of
from data_prep.media_pool import LoadedMedium
from data_prep.shard_format import ITEMS_SCHEMA, SOURCES_SCHEMA, Member, sample_key
from data_prep.shard_writer import IndexWriter, ShardWriter, open_item_index, write_item_index

_TOLD = ("json", "text.json")
"""Members that no file of media or vector stands behind."""


@dataclass
class ItemChanges:
    """What became of the items of a table beside those that the folder knew; counts.

    `decoded` counts source files of media that were decoded.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    untouched: int = 0
    decoded: int = 0

    def line(self) -> str:
        """All of them in one line."""
        return (
            f"{self.added:,} items added, {self.changed:,} changed, {self.deleted:,} deleted, "
            f"{self.untouched:,} untouched; {self.decoded:,} media decoded"
        )


@dataclass(frozen=True)
class _Row:
    """One item: its row of items.arrow, and what it may share with near-duplicates."""

    item_id: str
    first_row: int
    num_members: int
    modalities: int
    digests: list[bytes]
    signatures: list[bytes]


class ItemWriter:
    """Writes items one after another; use as a context, then `finish`.

    Args:
        folder: takes the files.
        known: items that these go on from: shards and index are continued, an item that is as it
            was is not written again. None: there are none.
    """

    def __init__(self, folder: Path, known: KnownItems | None) -> None:
        self._folder, self._known = folder, known
        self._rows: dict[int, _Row] = {}
        self._index = open_item_index(folder / "index.arrow")
        self._sources = IndexWriter(folder / "sources.arrow", SOURCES_SCHEMA)
        self._num_items = self._num_rows = 0
        if known is not None:
            self._index.extend(known.items.index)
            self._num_items, self._num_rows = len(known), known.items.index.num_rows
        first = 0 if known is None else known.num_shards
        self._shards = ShardWriter(folder, "items", first=first)
        self.changes = ItemChanges()
        self.deleted_ids: list[str] = []
        self.num_exact_duplicates = self.num_near_duplicate_groups = 0

    def __enter__(self) -> ItemWriter:
        self._shards.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shards.__exit__(kind, error, trace)

    @property
    def num_live(self) -> int:
        """Items written or found as they were."""
        return len(self._rows)

    def add_source(self, item_id: str, member: str, medium: LoadedMedium | KnownMedium) -> None:
        """Note what a medium that the table names was made from, usable or not."""
        self.changes.decoded += isinstance(medium, LoadedMedium) and bool(medium.source_sha256)
        self._sources.append(item_id, member, medium.source_sha256, medium.reason, medium.signature)

    def add(
        self,
        item_id: str,
        parts: Sequence[Part],
        *,
        modalities: int,
        texts: Mapping[str, str],
        signatures: Sequence[bytes],
    ) -> None:
        """Write an item unless it is there as it is.

        Args:
            item_id: not met before.
            parts: files of its sample, in order.
            modalities: as in `items.arrow`.
            texts: by field name.
            signatures: what its images look like.
        """
        known = self._known
        item_index = None if known is None else known.index_of(item_id)
        if item_index is None:
            item_index, self._num_items = self._num_items, self._num_items + 1
            self.changes.added += 1
            span = self._write(item_index, item_id, parts)
        else:
            assert known is not None
            if known.holds(item_index, parts):
                self.changes.untouched += 1
                span = known.items.rows_of(item_index)
            else:
                was_live = known.is_live(item_index)
                self.changes.changed += was_live
                self.changes.added += not was_live  # it was deleted and is back
                span = self._write(item_index, item_id, parts)
        digests = [digest_of(content) for name, content in parts if name not in _TOLD]
        digests += [text_digest(texts)] if texts else []
        self._rows[item_index] = _Row(item_id, *span, modalities, digests, list(signatures))

    def finish(self) -> list[str]:
        """Close the files and write `items.arrow`.

        Returns:
            The id of every row, those of deleted items too.
        """
        self._index.close()
        self._sources.close()
        finder = DuplicateFinder()
        for item_index in sorted(self._rows):
            row = self._rows[item_index]
            finder.add(item_index, row.digests, row.signatures)
        groups = finder.groups(self._num_items)
        writer = IndexWriter(self._folder / "items.arrow", ITEMS_SCHEMA)
        item_ids = []
        for item_index, group in enumerate(groups.tolist()):
            item = self._rows.get(item_index)
            if item is None:
                item_ids.append(self._withdraw(writer, item_index, group))
                continue
            span = (item.first_row, item.num_members)
            writer.append(item_index, item.item_id, *span, item.modalities, group, False)
            item_ids.append(item.item_id)
        writer.close()
        self.num_exact_duplicates = finder.num_exact_duplicates()
        self.num_near_duplicate_groups = int((np.unique(groups, return_counts=True)[1] > 1).sum())
        return item_ids

    def _write(self, item_index: int, item_id: str, parts: Sequence[Part]) -> tuple[int, int]:
        """A sample in the next place of a shard: its first row of the index, and how many."""
        content = [
            (name, each if isinstance(each, bytes) else self._read_known(each))
            for name, each in parts
        ]
        members = self._shards.write(sample_key(item_index), content)
        for member in members:
            write_item_index(self._index, item_index, item_id, member)
        first, self._num_rows = self._num_rows, self._num_rows + len(members)
        return first, len(members)

    def _read_known(self, member: Member) -> bytes:
        assert self._known is not None
        return self._known.items.read(member)

    def _withdraw(self, writer: IndexWriter, item_index: int, group: int) -> str:
        """The row of an item that is no longer there: its members stay, it has no modality."""
        known = self._known
        assert known is not None
        item_id = known.items.item_ids[item_index]
        self.deleted_ids.append(item_id)
        self.changes.deleted += known.is_live(item_index)
        writer.append(item_index, item_id, *known.items.rows_of(item_index), 0, group, True)
        return item_id
