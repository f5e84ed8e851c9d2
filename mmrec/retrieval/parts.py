"""Contents of items by some of their media: by one alone ("looks like"), or without one.

    states or media of a run ─ tokens ─ those kept ─ fusion ─► (N, D)
    parts.safetensors of a bundle ──────────────────────────► the same

They are kept in fp32, as contents are: what a score loses without a medium is the difference of
two, and rounding one of them to fp16 moved it by up to 5e-4.

An item with nothing of what is kept is what fusion makes of no media at all: the average item.

Legend: N items of the catalogue · M modalities · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.tokens import Tokens
from mmrec.data.ahead import TILE, load_ahead
from mmrec.data.media import ItemSource, media_to
from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.kept_tiles import KeptTiles, in_tiles
from mmrec.model import RecommenderModel

if TYPE_CHECKING:
    from mmrec.retrieval.retriever import Retriever

_TILE = 256


class Parts(Protocol):
    """Gives contents by some media."""

    @property
    def num_items(self) -> int:
        """Items that it knows; what a service adds later comes behind them."""

    def content(self, kept: Set[str], rows: IntArray | None = None) -> Tensor:
        """Contents by the media that are kept.

        Args:
            kept: modalities: one, or all but one.
            rows: (n,) item_index; None: all N, which are then held.

        Returns:
            (n, D) unit vectors.
        """

    def contents(self, kept: Sequence[Set[str]], tiles: Sequence[IntArray]) -> Iterator[Tensor]:
        """Contents of the items of each tile (C, n, D) by C choices of media, as `content`."""


class EncodedParts:
    """Contents that are made when they are asked for.

    Args:
        model: that encodes them.
        open_source: opens the media of the items; None for a model of ids.
        num_items: N.
    """

    def __init__(
        self,
        model: RecommenderModel,
        open_source: Callable[[], ItemSource | None],
        num_items: int,
    ) -> None:
        self._model, self._open_source, self.num_items = model, open_source, num_items
        self._source: ItemSource | None = None
        self._held: dict[frozenset[str], Tensor] = {}

    def content(self, kept: Set[str], rows: IntArray | None = None) -> Tensor:
        """See `Parts.content`."""
        name = frozenset(kept)
        if name in self._held:
            whole = self._held[name]
            return whole if rows is None else whole[torch.from_numpy(rows).to(whole.device)]
        everything = np.arange(self.num_items, dtype=np.int64) if rows is None else rows
        tiles = [everything[start : start + _TILE] for start in range(0, len(everything), _TILE)]
        none = torch.zeros(0, self._model.width, device=self._model.counts.device)
        found = torch.cat([none, *(each[0] for each in self.contents([kept], tiles))])
        if rows is None:
            self._held[name] = found
        return found

    @torch.no_grad()
    def contents(self, kept: Sequence[Set[str]], tiles: Sequence[IntArray]) -> Iterator[Tensor]:
        """See `Parts.contents`; each item is encoded once, whatever is kept of it."""
        if self._source is None:
            self._source = self._open_source()
        model, source = self._model, self._source
        assert source is not None and model.fusion is not None
        for media in load_ahead(source.collate, tiles):
            tokens = model.tokens(media_to(media, model.counts.device))
            yield torch.stack([_fuse(model.fusion, tokens, each) for each in kept])


def _fuse(fusion: nn.Module, tokens: Mapping[str, Tokens], kept: Set[str]) -> Tensor:
    """(n, D) of some modalities' tokens; of none, what fusion makes of no media at all."""
    shown = {name: each for name, each in tokens.items() if name in kept}
    if not shown:
        shown = {
            name: Tokens(each.values * 0, torch.zeros_like(each.mask))
            for name, each in tokens.items()
        }
    content: Tensor = fusion(shown)
    return content


class StoredParts:
    """Contents that a bundle holds.

    Args:
        path: that `write_parts` wrote.
        device: of the vectors.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._device = path, device
        self._held: dict[str, Tensor] = {}

    @cached_property
    def num_items(self) -> int:
        """See `Parts.num_items`."""
        with safe_open(self._path, "pt") as file:
            return int(file.get_slice(next(iter(file.keys()))).get_shape()[0])

    def content(self, kept: Set[str], rows: IntArray | None = None) -> Tensor:
        """See `Parts.content`."""
        name = _name(kept)
        if name not in self._held:
            with safe_open(self._path, "pt") as file:
                self._held[name] = file.get_tensor(name).float().to(self._device)
        whole = self._held[name]
        return whole if rows is None else whole[torch.from_numpy(rows).to(whole.device)]

    def contents(self, kept: Sequence[Set[str]], tiles: Sequence[IntArray]) -> Iterator[Tensor]:
        """See `Parts.contents`."""
        for rows in tiles:
            yield torch.stack([self.content(each, rows) for each in kept])


def write_parts(
    parts: Parts, modalities: Sequence[str], path: Path, kept: KeptTiles | None = None
) -> None:
    """Writes what `StoredParts` reads: contents by each modality alone and without each.

    Args:
        parts: of the items.
        modalities: M that the model encodes.
        path: of a new file.
        kept: tiles that an interrupted export has encoded; None: none are kept.
    """
    everything = set(modalities)
    chosen = {_name(each): each for one in modalities for each in ({one}, everything - {one})}
    sets = list(chosen.values())
    tiles = in_tiles(
        kept if isinstance(parts, EncodedParts) else None,
        "parts",
        parts.num_items,
        lambda tiles: parts.contents(sets, tiles),
        tile=TILE,
        noun="items by some of their media",
    )
    whole = torch.cat([each.cpu() for each in tiles], dim=1)
    save_file({name: whole[row].clone() for row, name in enumerate(chosen)}, path)


def content_by(retriever: Retriever, modality: str) -> Tensor:
    """(N, D) contents of all items by one modality alone.

    That of an item that lacks it is void; of one that was added since, all of whose media are one
    vector, it is nought.

    Raises:
        UserError: the model does not encode it, or a bundle holds no such contents.
    """
    _require(retriever, modality)
    if set(retriever.transforms) == {modality}:
        assert retriever.content is not None
        return retriever.content
    found = _parts_of(retriever).content({modality})
    added = len(retriever.items.item_ids) - len(found)
    return torch.cat([found, found.new_zeros(added, found.shape[1])]) if added else found


def content_without(retriever: Retriever, modality: str, rows: IntArray) -> Tensor:
    """(n, D) contents of some items as if they lacked a modality.

    Args:
        retriever: a model that knows media.
        modality: that is left out.
        rows: (n,) item_index below `Parts.num_items`.

    Raises:
        UserError: as `content_by`.
    """
    _require(retriever, modality)
    return _parts_of(retriever).content(set(retriever.transforms) - {modality}, rows)


def _require(retriever: Retriever, modality: str) -> None:
    retriever.require_media(f"by {modality}")
    if modality not in retriever.transforms:
        raise UserError(
            f"by '{modality}': the model in {retriever.path} encodes "
            f"{', '.join(retriever.transforms)}; name one of these"
        )


def _parts_of(retriever: Retriever) -> Parts:
    if retriever.parts is None:
        raise UserError(
            f"{retriever.path}: the bundle holds no contents by single media, which this asks for; "
            "export it again"
        )
    return retriever.parts


def _name(kept: Set[str]) -> str:
    return "+".join(sorted(kept)) or "none"
