"""Items' media as the encoders' inputs: read by offset, decoded, transformed, collated.

    PreparedData (shards) ──┐
                            ├─ load: texts, pixels, sound ─ transform ─ collate ─► inputs
    NewItems (table, files) ┘

Both ways give the same bytes to the same decoder: a file in use is put through `normalise` as
`prepare` does. A medium that cannot be decoded is named and counted, and its item is treated as
lacking it; a shard that is damaged is an error, since the rest of it is not to be trusted either.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_prep.build_items import (
    convert_attributes,
    is_silent_clip,
    media_slots,
    resolve_medium,
)
from data_prep.errors import BrokenMedium, DataError
from data_prep.interactions import read_items
from data_prep.media import IMAGE_SIDE, MediumKind, decode_image, normalise
from data_prep.new_items import column_names, keep_columns
from data_prep.shards import PreparedData, decode_attributes, decode_text, decode_vector
from data_prep.sound import Sound
from data_prep.video import Clip
from encoders.encoder import Inputs, Transform
from encoders.pictures import PicturesTransform
from mmrec.errors import UserError

if TYPE_CHECKING:
    from data_prep.catalogue import Catalogue
    from data_prep.shards import ItemTable, Member

VECTOR_PREFIX = "vector."

_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "image": decode_image,
    "audio": Sound,  # whose stretches, as a clip's frames, are decoded when the transform asks
    "video": Clip,
}
MEDIA: dict[str, MediumKind] = {"image": "image", "audio": "audio", "video": "video"}


class Media(Protocol):
    """Where the media of numbered items come from."""

    def __len__(self) -> int:
        """Number of items."""

    @property
    def state(self) -> str | None:
        """Changes when any medium may have; None where that is not known."""

    def item_id(self, item_index: int) -> str:
        """External id."""

    def digest(self, item_index: int, modality: str) -> str | None:
        """sha256 of the medium as the decoder would get it; None where the item has none."""

    def load(self, item_index: int, modality: str) -> Any | None:
        """The decoded medium, of several the first of use; None where the item has none.

        Raises:
            BrokenMedium: it is there and cannot be used.
        """

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """All media of a modality that are of use, in order; empty where the item has none.

        Raises:
            BrokenMedium: there are some and none can be used.
        """

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """sha256 over all of them; None where the item has none."""


@dataclass(frozen=True)
class Broken:
    """A medium that cannot be used."""

    item_index: int
    item_id: str
    modality: str
    reason: str


class PreparedMedia:
    """The media of a prepared folder, by offset."""

    def __init__(self, data: PreparedData) -> None:
        self._data = data
        self._items: ItemTable = data.items

    def __len__(self) -> int:
        return len(self._items)

    @property
    def state(self) -> str | None:
        """The folder's hash: while it stays, so does every digest."""
        return self._data.data_hash

    def item_id(self, item_index: int) -> str:
        """External id."""
        return self._items.item_ids[item_index]

    def digest(self, item_index: int, modality: str) -> str | None:
        """sha256 of the medium from the index: no shard is opened to see that nothing changed."""
        member = self._member(item_index, modality)
        return None if member is None else member.sha256.hex()

    def load(self, item_index: int, modality: str) -> Any | None:
        """The decoded medium: text or attributes by field, pixels, sound or a vector.

        Raises:
            BrokenMedium: its bytes do not decode.
            ShardError: the shard does not hold what its index says.
        """
        member = self._member(item_index, modality)
        return None if member is None else self._decode(member, modality)

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """All media of a modality, in the order of the catalogue's columns.

        Raises:
            BrokenMedium: the bytes of one do not decode.
            ShardError: the shard does not hold what its index says.
        """
        return [self._decode(each, modality) for each in self._members(item_index, modality)]

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """sha256 over all of them, from the index; None where there is none."""
        digests = [each.sha256 for each in self._members(item_index, modality)]
        return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None

    def _decode(self, member: Member, modality: str) -> Any:
        data = self._items.read(member)
        if modality == "text":
            return decode_text(data)
        if modality == "attributes":
            return decode_attributes(data) or None
        if modality.startswith(VECTOR_PREFIX):
            return decode_vector(data)
        return _DECODERS[modality](data)

    def _member(self, item_index: int, modality: str) -> Member | None:
        """The file that stands for the modality; of several pictures or sounds the first."""
        return next(iter(self._members(item_index, modality)), None)

    def _members(self, item_index: int, modality: str) -> list[Member]:
        """Its files of a modality; none of an item that was withdrawn."""
        if self._items.is_deleted(item_index):
            return []
        members = self._items.members(item_index)
        if modality in MEDIA:
            return [each for each in members if each.name.startswith(modality)]
        names = {"text": "text.json", "attributes": "json"}
        name = names.get(modality, f"{modality}.npy")
        return [each for each in members if each.name == name]


class NewItems:
    """Items that no prepared folder holds: rows of a user's table and files beside it.

    Args:
        table: one row an item, as `read_items` gives it; columns of the catalogue may be absent.
        catalogue: says what the columns are.
        source: folder that the paths in the table are relative to and stay under.
        image_side: pixels of the short side above which `prepare` made images smaller.
    """

    def __init__(
        self,
        table: pl.DataFrame,
        catalogue: Catalogue,
        source: Path,
        *,
        image_side: int = IMAGE_SIDE,
    ) -> None:
        self._table = table
        self._catalogue = keep_columns(catalogue, table.columns)
        self._source = os.path.realpath(source)
        self._image_side = image_side

    @classmethod
    def from_file(
        cls, path: Path, catalogue: Catalogue, source: Path, *, image_side: int = IMAGE_SIDE
    ) -> NewItems:
        """Reads a table of csv, jsonl or parquet with the catalogue's columns of items.

        Columns of media may be absent, since a new item may have any subset of them; the id may
        not, nor may all of them. The catalogue's filter `where` is not applied.

        Raises:
            DataError: no such file or id, a duplicate id, a value of a wrong type.
            UserError: the table has none of the catalogue's columns of media.
        """
        found = column_names(path)
        kept = keep_columns(catalogue, found)
        if not kept.modalities:
            raise UserError(
                f"{path}: no column of media or attributes: it has {', '.join(found)}; "
                f"give at least one of {', '.join(_media_columns(catalogue))}"
            )
        table = read_items(kept, source, table=path)
        return cls(table, kept, source, image_side=image_side)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def state(self) -> str | None:
        """None: files of a user may change under us."""
        return None

    def item_id(self, item_index: int) -> str:
        """External id."""
        return str(self._table["item_id"][item_index])

    def digest(self, item_index: int, modality: str) -> str | None:
        """sha256 of the medium as it comes through the one door; None where there is none."""
        if modality in MEDIA:
            data = self._bytes(item_index, modality)
            return None if data is None else hashlib.sha256(data).hexdigest()
        return _digest(self.load(item_index, modality))

    def load(self, item_index: int, modality: str) -> Any | None:
        """The decoded medium; of several pictures or sounds the first of use.

        Raises:
            BrokenMedium: no such file, or it does not pass the door.
        """
        if modality in MEDIA:
            data = self._bytes(item_index, modality)
            return None if data is None else _DECODERS[modality](data)
        row = self._table.row(item_index, named=True)
        items = self._catalogue.items
        if modality == "text":
            return {name: row[name] for name in items.text if row[name]} or None
        if modality == "attributes":
            return convert_attributes(row, items.attributes) or None
        column = items.vectors.get(modality.removeprefix(VECTOR_PREFIX))
        if column is None or row[column] is None:
            return None
        vector = np.asarray(row[column], dtype=np.float32)
        if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
            raise BrokenMedium("broken vector: not a list of finite numbers")
        return vector

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """All media of a modality that pass the door, in the order of the catalogue's columns.

        Raises:
            BrokenMedium: there are some and none does.
        """
        return [_DECODERS[modality](data) for data in self._all_bytes(item_index, modality)]

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """sha256 over all of them; None where there is none."""
        digests = [hashlib.sha256(data).digest() for data in self._all_bytes(item_index, modality)]
        return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None

    def _bytes(self, item_index: int, modality: str) -> bytes | None:
        """Bytes as a shard would hold them; a second picture stands in for a broken first."""
        return next(self._all_bytes(item_index, modality), None)

    def _all_bytes(self, item_index: int, modality: str) -> Iterator[bytes]:
        """Bytes of each medium that can be used; refuses where there are some and none can."""
        reason, found = None, False
        for slot in media_slots(self._catalogue, self._table.row(item_index, named=True)):
            if slot.kind != modality:
                continue
            path = resolve_medium(self._source, slot.path)
            if path is None:
                reason = reason or f"{slot.path}: path outside the source folder"
                continue
            try:
                yield normalise(path, kind=slot.kind, image_side=self._image_side).data
                found = True
            except OSError as error:
                reason = reason or f"{slot.path}: {error.strerror}"
            except BrokenMedium as error:
                if not is_silent_clip(self._catalogue, slot.kind, slot.column, str(error)):
                    reason = reason or f"{slot.path}: {error}"
        if reason is not None and not found:
            raise BrokenMedium(reason)


class ItemInputs:
    """Turns item numbers into the encoders' inputs.

    Args:
        data: a prepared folder, or new items, or media of any other place.
        transforms: the encoder's transform by modality.

    Raises:
        UserError: a modality that nothing here decodes.
    """

    def __init__(self, data: PreparedData | Media, transforms: Mapping[str, Transform]) -> None:
        self.media: Media = PreparedMedia(data) if isinstance(data, PreparedData) else data
        for modality in transforms:
            known = ("text", "attributes", *_DECODERS)
            if modality not in known and not modality.startswith(VECTOR_PREFIX):
                raise UserError(
                    f"encoders.{modality}: there is no decoder for it; allowed are "
                    f"{', '.join(known)} and vector.NAME: drop it from the config"
                )
        self.transforms = dict(transforms)
        self._broken: dict[tuple[int, str], Broken] = {}

    @property
    def broken(self) -> list[Broken]:
        """Media that could not be used, by item and modality."""
        return [self._broken[key] for key in sorted(self._broken)]

    def __len__(self) -> int:
        return len(self.media)

    def digest(self, item_index: int, modality: str) -> str | None:
        """sha256 of what a sample is made of; None where the item has no such medium."""
        if _takes_several(self.transforms[modality]):
            return self.media.digest_all(item_index, modality)
        return self.media.digest(item_index, modality)

    def collate(self, item_index: NDArray[np.int64]) -> dict[str, Inputs]:
        """Inputs of every modality for M items; `present` (M,) says which have the medium.

        Args:
            item_index: (M,) rows of the item table.

        Raises:
            ShardError: a shard does not hold what its index says.
        """
        return {
            modality: transform.collate(self.samples(item_index, modality))
            for modality, transform in self.transforms.items()
        }

    def samples(self, item_index: NDArray[np.int64], modality: str) -> list[Any | None]:
        """One transformed sample an item, None where the medium is missing or broken."""
        samples = (self.sample(int(row), modality) for row in item_index)
        return [None if isinstance(sample, Broken) else sample for sample in samples]

    def sample(self, item_index: int, modality: str) -> Any | Broken | None:
        """One item's transformed sample; None is a missing medium, `Broken` one of no use."""
        transform = self.transforms[modality]
        try:
            if _takes_several(transform):
                media = self.media.load_all(item_index, modality)
                return transform(media) if media else None
            medium = self.media.load(item_index, modality)
            return None if medium is None else transform(medium)
        except BrokenMedium as error:
            return self._set_aside(item_index, modality, str(error))
        except DataError:
            raise
        except ValueError as error:
            # a number that its scale has no place for is one item's fault; what else a transform
            # refuses, such as the width of a vector, is the whole column's
            if modality != "attributes":
                raise
            return self._set_aside(item_index, modality, str(error))

    def _set_aside(self, item_index: int, modality: str, reason: str) -> Broken:
        broken = Broken(item_index, self.media.item_id(item_index), modality, reason)
        self._broken[item_index, modality] = broken
        return broken


def _takes_several(transform: Transform) -> bool:
    """Whether a transform is given all media of an item's modality, not the first."""
    return isinstance(transform, PicturesTransform) and transform.most > 1


def _media_columns(catalogue: Catalogue) -> list[str]:
    items = catalogue.items
    media = [*items.text, *items.image, *items.audio, *items.video, *items.vectors.values()]
    return [*media, *items.attributes]


def _digest(medium: dict[str, Any] | NDArray[np.float32] | None) -> str | None:
    if medium is None:
        return None
    data = json.dumps(medium).encode() if isinstance(medium, dict) else medium.tobytes()
    return hashlib.sha256(data).hexdigest()
