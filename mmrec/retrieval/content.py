"""Content of items that no prepared folder holds: a table of new items, or one medium in hand.

    files ─ NewItems ─┐
                      ├─ normalise ─ transform ─ below ─ round ─ above ─ fusion ─► content
    QueryMedia ───────┘

It is the way that training and export took, so the same media give the same vector.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import BrokenMedium
from data_prep.media import decode_image, normalise
from data_prep.sound import Sound
from encoders.tokens import Tokens
from mmrec.data.ahead import TILE, load_ahead
from mmrec.data.items import Broken, ItemInputs, Media, NewItems
from mmrec.data.media import ModalityInput
from mmrec.errors import UserError
from mmrec.model_inputs import LiveInputs
from mmrec.retrieval.retriever import Retriever
from mmrec.vectors import encode_media

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewContent:
    """New items as the model sees them.

    Attributes:
        item_ids: n ids.
        content: (n, D) unit vectors, what the media say.
        embedding: (n, D) what users are compared with: the content, completed where an item lacks
            what nearly all items of training have.
        modalities: of each item, those its content is made of.
        refused: ids of items that have no medium the model can use; they are not among the n.
        broken: media that could not be used.
    """

    item_ids: list[str]
    content: Tensor
    embedding: Tensor
    modalities: list[list[str]]
    refused: list[str]
    broken: list[Broken]


class BrokenQuery(BrokenMedium):
    """A file that is asked by cannot be used.

    Args:
        modality: that it was given as.
        query: its path or its bytes.
        reason: what is wrong with it.

    Attributes:
        modality, reason: the same.
    """

    def __init__(self, modality: str, query: Path | str | bytes, reason: str) -> None:
        super().__init__(f"{modality if isinstance(query, bytes) else query}: {reason}")
        self.modality, self.reason = modality, reason


class QueryMedia:
    """Items that have one medium each and nothing else, as `Media`."""

    state = None

    def __init__(self, modality: str, media: Sequence[Any]) -> None:
        self.modality, self.media = modality, media

    def __len__(self) -> int:
        return len(self.media)

    def item_id(self, item_index: int) -> str:
        """Its place, for messages."""
        return str(item_index)

    def digest(self, item_index: int, modality: str) -> str | None:
        """None: a question is not cached."""
        return None

    def load(self, item_index: int, modality: str) -> Any | None:
        """The medium, where its modality is asked for."""
        return self.media[item_index] if modality == self.modality else None

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """The same in a list."""
        return [self.media[item_index]] if modality == self.modality else []

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """None: a question is not cached."""
        return None


def new_items(retriever: Retriever, table: Path, source: Path) -> NewItems:
    """Opens a table of new items with the columns of the run's catalogue; a subset will do.

    Raises:
        DataError: no such table or id column, a duplicate id, a value of a wrong type.
        UserError: the table has no column of media, or the model knows no media.
    """
    retriever.require_media(str(table))
    return NewItems.from_file(table, retriever.catalogue, source, image_side=retriever.image_side)


def encode_new(retriever: Retriever, media: Media) -> NewContent:
    """Encodes new items from whatever media they have.

    Args:
        retriever: a model that knows media.
        media: the items; broken media are named and their items go without them.

    Raises:
        UserError: the model knows no media, or a ready-made vector is of another width.
    """
    retriever.require_media("new items")
    inputs = ItemInputs(media, retriever.transforms)
    live = LiveInputs(inputs, retriever.model, retriever.dtypes)
    noticed = _Noticed()
    rows = np.arange(len(media), dtype=np.int64)
    tiles = [rows[start : start + TILE] for start in range(0, len(rows), TILE)]
    loaded = load_ahead(inputs.collate, tiles)
    at_cut = (noticed.take(live.at_cut(each)) for each in loaded)
    none = torch.zeros(0, retriever.model.width, device=retriever.device)
    try:
        content = torch.cat([none, *encode_media(retriever.model, at_cut)])
    except ValueError as error:  # a transform refuses what no decoder could have judged
        raise UserError(f"new items: {error}; the model was trained on other input") from None
    modalities = noticed.modalities(len(media))
    usable = [row for row, names in enumerate(modalities) if names]
    content = content[torch.tensor(usable, dtype=torch.int64, device=content.device)]
    made_of = [modalities[row] for row in usable]
    return NewContent(
        item_ids=[media.item_id(row) for row in usable],
        content=content,
        embedding=retriever.embeddings_of_new(content, made_of),
        modalities=made_of,
        refused=[media.item_id(row) for row, names in enumerate(modalities) if not names],
        broken=inputs.broken,
    )


def encode_query(retriever: Retriever, modality: str, query: Path | str) -> Tensor:
    """Content (D,) of one medium: a text, or the path of a picture or a sound.

    Raises: as `encode_queries`.
    """
    return encode_queries(retriever, modality, [query])[0]


def encode_queries(
    retriever: Retriever, modality: str, queries: Sequence[Path | str | bytes]
) -> Tensor:
    """Contents (n, D) of several media of one modality: texts, or files of pictures or sounds.

    A file is given by its path or its bytes.

    Raises:
        UserError: the model does not encode this modality, or there is nothing in the text.
        BrokenQuery: the file cannot be used.
        DataError: there is no such file.
    """
    retriever.require_media(f"a query by {modality}")
    if modality not in retriever.transforms:
        raise UserError(
            f"a query by {modality}: the model in {retriever.path} encodes "
            f"{', '.join(retriever.transforms)}; ask with one of these"
        )
    media = [_load_query(modality, query, retriever) for query in queries]
    found = encode_new(retriever, QueryMedia(modality, media))
    if found.refused:
        query = queries[int(found.refused[0])]
        empty = "the file" if isinstance(query, bytes) else str(query)
        raise UserError(f"a query by {modality}: there is nothing in {empty!r} to encode")
    return found.content


def _load_query(modality: str, query: Path | str | bytes, retriever: Retriever) -> Any:
    if modality == "text":
        return {"text": str(query)}
    file = query if isinstance(query, bytes) else Path(query)
    try:
        if modality == "image":
            medium = normalise(file, kind="image", image_side=retriever.image_side)
            return decode_image(medium.data)
        return Sound(normalise(file, kind="audio").data)
    except BrokenMedium as error:
        raise BrokenQuery(modality, query, str(error)) from error
    except OSError as error:
        raise UserError(f"{query!s}: cannot be read: {error.strerror}") from None


class _Noticed:
    """Which modalities each item brought."""

    def __init__(self) -> None:
        self._present: dict[str, list[Tensor]] = {}

    def take(self, media: dict[str, ModalityInput]) -> dict[str, ModalityInput]:
        """Notes those of some items and hands them on."""
        for name, each in media.items():
            there = each.mask.any(1) if isinstance(each, Tokens) else each["present"]
            self._present.setdefault(name, []).append(there.cpu())
        return media

    def modalities(self, num_items: int) -> list[list[str]]:
        """Of each item, in the order they were asked for."""
        present = {name: torch.cat(parts).tolist() for name, parts in self._present.items()}
        return [[name for name, there in present.items() if there[row]] for row in range(num_items)]
