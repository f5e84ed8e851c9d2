"""Turns the table of items and its media into item shards, their index and near-duplicate groups.

rows of items ─► media pool ─► KEY.json, KEY.text.json, KEY.image0.jpg, … ─► items-*.tar
└► quarantine.jsonl        index.arrow, items.arrow, sources.arrow ◄──┘

With the items that a folder knows already it decodes and writes what is new among them alone.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from data_prep.catalogue import AttributeSpec, Catalogue
from data_prep.errors import DataError
from data_prep.item_writer import ItemChanges, ItemWriter
from data_prep.known_items import KnownItems, KnownMedium, Part
from data_prep.media_pool import LoadedMedium, MediumJob, load_media
from data_prep.quarantine import Quarantine
from data_prep.shard_writer import compact_json
from data_prep.sound import NO_SOUND

MEDIA_KINDS: tuple[Literal["image", "audio", "video"], ...] = ("image", "audio", "video")
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
_FEW_MEDIA = 64
"""Below this a pool costs more to start than it saves."""
MISSING_DIGEST = b"\0" * 32


@dataclass
class ItemsSummary:
    """What the item shards hold.

    `item_ids` has every row, those of `deleted_ids` too; counts are of the others.
    """

    item_ids: list[str] = field(default_factory=list)
    deleted_ids: list[str] = field(default_factory=list)
    changes: ItemChanges = field(default_factory=ItemChanges)
    with_modality: Counter[str] = field(default_factory=Counter)
    with_text_field: Counter[str] = field(default_factory=Counter)
    num_media: int = 0
    num_missing_files: int = 0
    media_bytes: int = 0
    exact_duplicates: int = 0
    near_duplicate_groups: int = 0
    media_sha256: str = ""
    """Over path and sha256 of every source file, in the order of the table."""


@dataclass(frozen=True)
class _Slot:
    """One cell of the table that names a medium."""

    member: str
    kind: Literal["image", "audio", "video"]
    column: str
    path: str


def media_slots(catalogue: Catalogue, row: Mapping[str, Any]) -> list[_Slot]:
    """The media a row names: `image0` is the first column of images, whether others are empty."""
    return [
        _Slot(f"{kind}{number}", kind, column, row[column])
        for kind in MEDIA_KINDS
        for number, column in enumerate(getattr(catalogue.items, kind))
        if row[column]
    ]


def is_silent_clip(catalogue: Catalogue, kind: str, column: str, reason: str) -> bool:
    """Whether a column of clips that is also one of sounds names a clip without a sound track.

    Such a clip lacks a medium, as any item may; nothing about it is broken.
    """
    return kind == "audio" and column in catalogue.items.video and reason == NO_SOUND


def resolve_medium(source: str, path: str) -> Path | None:
    """Where a medium lies; None where the path leaves the (real) source folder."""
    if "\0" in path:
        return None
    full = os.path.realpath(os.path.join(source, path))
    return Path(full) if full.startswith(source.rstrip("/") + "/") else None


def build_items(
    table: pl.DataFrame,
    catalogue: Catalogue,
    *,
    source: Path,
    folder: Path,
    quarantine: Quarantine,
    image_side: int,
    num_workers: int,
    progress: Progress | None = None,
    known: KnownItems | None = None,
) -> ItemsSummary:
    """Write `items-*.tar`, `index.arrow`, `items.arrow` and `sources.arrow` into a folder.

    Args:
        table: items as `read_items` gives them.
        catalogue: says which columns are what.
        source: folder the paths of media start from.
        folder: an empty folder.
        quarantine: takes broken media and items without any modality.
        image_side: pixels; see `media.normalise`.
        num_workers: processes that decode.
        progress: told after each item.
        known: items of the folder that these go on from. They keep their item_index and, where
            nothing changed, their place in its shards; those not in the table count as deleted.

    Raises:
        DataError: more than 5 % of the items or media cannot be used, or none is left.
    """
    real_source = os.path.realpath(source)
    slots = [media_slots(catalogue, row) for row in table.iter_rows(named=True)]
    before = _find_known(slots, table["item_id"].to_list(), real_source, known)
    jobs = [
        MediumJob(path, slot.kind)
        for row_slots, found in zip(slots, before, strict=True)
        for slot, medium in zip(row_slots, found, strict=True)
        if medium is None and (path := resolve_medium(real_source, slot.path)) is not None
    ]
    loaded = load_media(
        iter(jobs),
        image_side=image_side,
        num_workers=num_workers if len(jobs) >= _FEW_MEDIA else 1,
        aside=folder.parent,
    )
    summary = ItemsSummary()
    media_digest = hashlib.sha256()
    with ItemWriter(folder, known) as writer:
        for row_number, row in enumerate(table.iter_rows(named=True)):
            item_id = row["item_id"]
            place = f"{catalogue.items.table} row {row_number + 1}"
            media: list[Part] = []
            signatures = []
            for slot, unchanged in zip(slots[row_number], before[row_number], strict=True):
                outside = resolve_medium(real_source, slot.path) is None
                result = unchanged or (_OUTSIDE if outside else next(loaded))
                writer.add_source(item_id, slot.member, result)
                media_digest.update(slot.path.encode() + b"\0")
                media_digest.update(result.source_sha256 or MISSING_DIGEST)
                if is_silent_clip(catalogue, slot.kind, slot.column, result.reason):
                    continue
                summary.num_media += 1
                summary.num_missing_files += not result.source_sha256
                part = _part_of(slot, result)
                if part is None:
                    quarantine.add(
                        "medium",
                        place=f"{place}, column {slot.column}",
                        id=item_id,
                        reason=result.reason,
                        path=slot.path,
                    )
                    continue
                media.append(part)
                signatures += [result.signature] if result.signature else []
            vectors: list[Part] = list(_read_vectors(row, catalogue, quarantine, place))
            summary.num_media += sum(row[c] is not None for c in catalogue.items.vectors.values())
            texts = {name: row[name] for name in catalogue.items.text if row[name]}
            record = _record(row, catalogue)
            present = _present_modalities(catalogue, texts, media + vectors, record["attributes"])
            if not any(present):
                quarantine.add("item", place=place, id=item_id, reason="no modality at all")
                continue
            parts: list[Part] = [("json", compact_json(record))]
            parts += [("text.json", compact_json(texts))] if texts else []
            writer.add(
                item_id,
                parts + media + vectors,
                modalities=sum(bit << number for number, bit in enumerate(present)),
                texts=texts,
                signatures=signatures,
            )
            summary.media_bytes += sum(
                len(content) if isinstance(content, bytes) else content.size for _, content in media
            )
            summary.with_text_field.update(list(texts))
            summary.with_modality.update(
                name for name, bit in zip(catalogue.modalities, present, strict=True) if bit
            )
            if progress is not None:
                progress("items", row_number + 1, len(table))
    quarantine.check_share("medium", summary.num_media)
    quarantine.check_share("item", len(table))
    if not writer.num_live:
        raise DataError(f"{catalogue.items.table}: no item is left; the table is empty")
    summary.item_ids = writer.finish()
    summary.deleted_ids, summary.changes = writer.deleted_ids, writer.changes
    summary.exact_duplicates = writer.num_exact_duplicates
    summary.near_duplicate_groups = writer.num_near_duplicate_groups
    summary.media_sha256 = media_digest.hexdigest()
    return summary


_OUTSIDE = LoadedMedium(None, "path outside the source folder", b"", b"")


def _find_known(
    slots: Sequence[Sequence[_Slot]],
    item_ids: Sequence[str],
    source: str,
    known: KnownItems | None,
) -> list[list[KnownMedium | None]]:
    """Of each item's slots the medium, where its file has not changed."""
    if known is None:
        return [[None] * len(row_slots) for row_slots in slots]
    found: list[list[KnownMedium | None]] = []
    for item_id, row_slots in zip(item_ids, slots, strict=True):
        paths = [resolve_medium(source, slot.path) for slot in row_slots]
        found.append(
            [
                None if path is None else known.medium(item_id, slot.member, path)
                for slot, path in zip(row_slots, paths, strict=True)
            ]
        )
    return found


def _part_of(slot: _Slot, medium: LoadedMedium | KnownMedium) -> Part | None:
    """The file of a sample that a medium is; None where it is of no use."""
    if isinstance(medium, KnownMedium):
        return None if medium.member is None else (medium.member.name, medium.member)
    if medium.medium is None:
        return None
    return f"{slot.member}.{medium.medium.extension}", medium.medium.data


def convert_attributes(
    row: Mapping[str, Any], attributes: Mapping[str, AttributeSpec]
) -> dict[str, Any]:
    """Typed attributes of an item or user; those not known are left out."""
    values: dict[str, Any] = {}
    for name, spec in attributes.items():
        raw = row[name]
        if raw is None:
            continue
        if spec.type == "number":
            number = float(raw)
            values[name] = int(number) if number.is_integer() else number
        elif spec.type == "set":
            pieces = raw if isinstance(raw, list) else str(raw).split(spec.separator)
            members = [str(piece).strip() for piece in pieces if piece is not None]
            values[name] = [member for member in members if member]
        else:
            values[name] = str(raw)
    return values


def _record(row: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    spec = catalogue.items.available
    record: dict[str, Any] = {
        "id": row["item_id"],
        "attributes": convert_attributes(row, catalogue.items.attributes),
    }
    if spec is not None:
        record["available"] = {
            "from": row.get("available.from"),
            "until": row.get("available.until"),
        }
    return record


def _read_vectors(
    row: Mapping[str, Any], catalogue: Catalogue, quarantine: Quarantine, place: str
) -> Iterator[tuple[str, bytes]]:
    for name, column in catalogue.items.vectors.items():
        if row[column] is None:
            continue
        try:
            vector = np.asarray(row[column], dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty(0, dtype=np.float32)
        if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
            quarantine.add(
                "medium",
                place=f"{place}, column {column}",
                id=row["item_id"],
                reason="broken vector: not a list of finite numbers",
            )
            continue
        buffer = io.BytesIO()
        np.save(buffer, vector, allow_pickle=False)
        yield f"vector.{name}.npy", buffer.getvalue()


def _present_modalities(
    catalogue: Catalogue,
    texts: Mapping[str, str],
    media: Sequence[Part],
    attributes: Mapping[str, Any],
) -> list[bool]:
    # `image0.jpg` -> image, `vector.clip.npy` -> vector.clip
    found = {name.rpartition(".")[0].rstrip("0123456789") for name, _ in media}
    found |= {name.removesuffix(".npy") for name, _ in media}
    found |= {"text"} if texts else set()
    found |= {"attributes"} if attributes else set()
    return [modality in found for modality in catalogue.modalities]
