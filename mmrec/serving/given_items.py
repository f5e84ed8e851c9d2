"""A new item as an upload brings it: fields by the catalogue's columns, checked before decoding.

    fields, files ─ checks of headers ─ normalise ─► StoredItem ─► GivenMedia ─► ĉ

The column says what a file is, its bytes say the rest; its name is for messages alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.build_items import convert_attributes
from data_prep.catalogue import Catalogue
from data_prep.errors import BrokenMedium
from data_prep.media import MediumKind, decode_image, normalise
from data_prep.sound import NO_SOUND, Sound
from data_prep.video import Clip
from mmrec.data.items import VECTOR_PREFIX
from mmrec.serving.database import StoredItem, StoredMedium
from mmrec.serving.faults import Fault
from mmrec.serving.headers import check_header
from mmrec.serving.refused_media import refused_medium, shown_name
from mmrec.serving.settings import Limits

KINDS: tuple[MediumKind, ...] = ("image", "audio", "video")


@dataclass(frozen=True)
class Upload:
    """A new item as it came: nothing is decoded yet.

    Attributes:
        item_id: external id.
        fields: texts, attributes and vectors (JSON lists) by the catalogue's names.
        files: bytes by the catalogue's columns.
        names: of files as they were uploaded, by column.
    """

    item_id: str
    fields: Mapping[str, str]
    files: Mapping[str, bytes]
    names: Mapping[str, str] = field(default_factory=dict)


def check_names(catalogue: Catalogue, upload: Upload) -> None:
    """Refuses what the catalogue has no column for.

    Raises:
        Fault: names the columns that there are.
    """
    items = catalogue.items
    texts = [*items.text, *items.attributes, *(f"vector.{name}" for name in items.vectors)]
    media = list(dict.fromkeys(column for kind in KINDS for column in getattr(items, kind)))
    for given, known, what in ((upload.fields, texts, "field"), (upload.files, media, "file")):
        stray = sorted(set(given) - set(known))
        if stray:
            allowed = ", ".join(known) or "none"
            named = f" ({shown_name(upload.names.get(stray[0]))})" if what == "file" else ""
            raise Fault(
                422, "unknown_field",
                f"{stray[0][:60]!r}{named} is no {what} of an item, allowed are {allowed}",
                field=stray[0][:60],
            )  # fmt: skip


def stored_item(
    upload: Upload, catalogue: Catalogue, *, image_side: int, limits: Limits
) -> StoredItem:
    """Brings an upload through the door, as `prepare` does with the files of a table.

    Raises:
        Fault: a field has no value of its type, or a medium is empty, damaged, too large or not
            what its column holds.
    """
    items = catalogue.items
    texts = {name: upload.fields[name] for name in items.text if upload.fields.get(name)}
    attributes = _attributes(upload.fields, catalogue)
    media = []
    for kind in KINDS:
        for number, column in enumerate(getattr(items, kind)):
            if column in upload.files:
                medium = _medium(upload, kind, column, catalogue, image_side, limits)
                media += [] if medium is None else [StoredMedium(f"{kind}{number}", *medium)]
    vectors = {
        name: _vector(name, upload.fields[f"vector.{name}"])
        for name in items.vectors
        if upload.fields.get(f"vector.{name}")
    }
    return StoredItem(
        upload.item_id, texts, attributes, media, vectors,
        _digest(texts, attributes, vectors, media),
    )  # fmt: skip


def _attributes(fields: Mapping[str, str], catalogue: Catalogue) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, spec in catalogue.items.attributes.items():
        text = fields.get(name) or None
        try:
            attributes |= convert_attributes({name: text}, {name: spec})
        except (ValueError, OverflowError):  # of infinity, which is no integer either
            attributes[name] = math.nan
        value = attributes.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise Fault(
                422, "invalid", f"{name[:60]} is {str(text)[:60]!r}: not a number", field=name[:60]
            )
    return attributes


class GivenMedia:
    """Media of items that were given, as `mmrec.data.items.Media`."""

    state = None

    def __init__(self, items: Sequence[StoredItem]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def item_id(self, item_index: int) -> str:
        """External id."""
        return self._items[item_index].item_id

    def digest(self, item_index: int, modality: str) -> str | None:
        """None: what is given is not cached."""
        return None

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """None: what is given is not cached."""
        return None

    def load(self, item_index: int, modality: str) -> Any | None:
        """The decoded medium, of several the first."""
        return next(iter(self.load_all(item_index, modality)), None)

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """All media of a modality, in the order of the catalogue's columns."""
        item = self._items[item_index]
        if modality == "text":
            return [dict(item.texts)] if item.texts else []
        if modality == "attributes":
            return [dict(item.attributes)] if item.attributes else []
        if modality.startswith(VECTOR_PREFIX):
            vector = item.vectors.get(modality.removeprefix(VECTOR_PREFIX))
            return [] if vector is None else [np.asarray(vector, np.float32)]
        decode = {"image": decode_image, "audio": Sound, "video": Clip}[modality]
        return [decode(each.data) for each in item.media if each.kind == modality]


def _medium(
    upload: Upload, kind: MediumKind, column: str, catalogue: Catalogue, image_side: int,
    limits: Limits,
) -> tuple[str, str, bytes] | None:  # fmt: skip
    """Kind, extension and bytes as a shard keeps them; None of a clip without a sound track."""
    data = upload.files[column]
    try:
        check_header(data, kind, limits)
        medium = normalise(data, kind=kind, image_side=image_side)
    except BrokenMedium as error:
        if kind == "audio" and column in catalogue.items.video and str(error) == NO_SOUND:
            return None
        raise refused_medium(column, upload.names.get(column), kind, error, limits) from None
    return medium.kind, medium.extension, medium.data


def _vector(name: str, text: str) -> list[float]:
    try:
        vector = np.asarray(json.loads(text), np.float32)
    except (ValueError, TypeError, RecursionError):
        vector = np.zeros(0, np.float32)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        field = f"vector.{name}"
        raise Fault(422, "invalid", f"{field}: not a JSON list of finite numbers", field=field)
    numbers: list[float] = vector.tolist()
    return numbers


def _digest(
    texts: Mapping[str, str],
    attributes: Mapping[str, Any],
    vectors: Mapping[str, Sequence[float]],
    media: Sequence[StoredMedium],
) -> str:
    document = json.dumps([texts, attributes, vectors, [each.slot for each in media]])
    digest = hashlib.sha256(document.encode())
    for medium in media:
        digest.update(hashlib.sha256(medium.data).digest())
    return digest.hexdigest()
