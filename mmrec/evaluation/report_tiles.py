"""Tiles of the report: an item's picture, title and sound as data URIs, whatever it lacks."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.media import decode_image
from data_prep.shards import PreparedData

TILE_SIDE = 96  # pixels; drawn at this size, so that a strip of many stays small
_MAX_SOUND_BYTES = 120_000


@dataclass(frozen=True)
class Tile:
    """One item as shown.

    `words` are all its texts, shown under the pointer; `picture` and `sound` are data URIs or None;
    `hit` is a test target.
    """

    item_id: str
    title: str
    words: str
    picture: str | None
    sound: str | None
    hit: bool


def make_tile(data: PreparedData, item_index: int, *, with_sound: bool, hit: bool) -> Tile:
    """Builds the tile of an item from its shards.

    Args:
        data: the prepared folder.
        item_index: the item.
        with_sound: embed its first sound where it is not long.
        hit: whether the user met it next.
    """
    texts = data.items.text(item_index)
    item_id = data.items.item_ids[item_index]
    images = data.items.media(item_index, "image")
    sounds = data.items.media(item_index, "audio") if with_sound else []
    sound = None
    if sounds and sounds[0].size <= _MAX_SOUND_BYTES:
        sound = _uri("audio/flac", data.items.read(sounds[0]))
    return Tile(
        item_id=item_id,
        title=next(iter(texts.values()), "") or item_id,
        words=" · ".join([*texts.values(), item_id]),
        picture=_thumbnail(data.items.read(images[0])) if images else None,
        sound=sound,
        hit=hit,
    )


def _thumbnail(data: bytes) -> str:
    pixels: np.ndarray = decode_image(data)
    image = Image.fromarray(pixels)
    image.thumbnail((2 * TILE_SIDE, TILE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
