"""Vectors of all items and of users, as evaluation, export and service use them.

Legend: N items of the catalogue · R items in training · U users · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.modes import evaluating
from fusion.signals import Signals
from mmrec.data.histories import IntArray
from mmrec.data.media import ItemSource, ModalityInput, media_to
from mmrec.data.ragged import Ragged
from mmrec.data.told import Told
from mmrec.model import RecommenderModel


@dataclass(frozen=True)
class ItemVectors:
    """Every item of a catalogue in the model's space.

    content: (N, D) unit; None where the model knows no media.
    embedding: (N, D) unit; the content itself where training never met the item, and zeros for
        such an item of a model that knows no media. Where such an item lacks media that nearly all
        items of training have, what they let expect.
    bias: (N,) what the score gets beside <u, e> / tau.
    """

    content: Tensor | None
    embedding: Tensor
    bias: Tensor


@torch.no_grad()
def encode_content(
    model: RecommenderModel,
    source: ItemSource,
    item_index: IntArray,
    *,
    precision: str = "fp32",
    tile: int = 256,
    had: npt.NDArray[np.bool_] | None = None,
) -> Tensor:
    """Content of items in their order, on the model's device: (n,) -> (n, D) unit vectors.

    Args:
        model: that encodes them.
        source: their media.
        item_index: (n,).
        precision: of the products.
        tile: items encoded together.
        had: (n, M) modalities, in the order of `model.completion`, that training met the items
            with: what they have lost since is made up for; None: nothing is.
    """
    starts = range(0, item_index.shape[0], tile)
    media = (source.collate(item_index[start : start + tile]) for start in starts)
    before = None if had is None else (had[start : start + tile] for start in starts)
    parts = list(encode_media(model, media, before, precision=precision))
    return torch.cat(parts) if parts else torch.zeros(0, model.width, device=model.counts.device)


@torch.no_grad()
def encode_media(
    model: RecommenderModel,
    media: Iterable[Mapping[str, ModalityInput]],
    had: Iterable[npt.NDArray[np.bool_]] | None = None,
    *,
    precision: str = "fp32",
) -> Iterator[Tensor]:
    """Content of items whose media come a tile at a time.

    Args:
        model: that encodes them.
        media: of the items of each tile, asked for once the tile before was encoded.
        had: of each tile, as in `encode_content`; None: nothing is made up for.
        precision: of the products.

    Yields:
        (n, D) unit vectors on the model's device, a tile.
    """
    device = model.counts.device
    met = repeat(None) if had is None else map(torch.from_numpy, had)
    with evaluating(model):
        for each, before in zip(media, met, strict=False):
            on_device = media_to(each, device)
            known = None if before is None else before.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                content = model.content(on_device, known).float()
            yield content


def modalities_of(
    model: RecommenderModel, has: Callable[[str], npt.NDArray[np.bool_]]
) -> Tensor | None:
    """What items have, in the order of `model.completion`, on the model's device.

    Args:
        model: that reads them.
        has: gives (N,) bool of a modality.

    Returns:
        (N, M) bool; None for a model of ids.
    """
    if model.completion is None:
        return None
    columns = [has(name) for name in model.completion.modalities]
    return torch.from_numpy(np.stack(columns, axis=1)).to(model.counts.device)


@torch.no_grad()
def content_for_users(
    model: RecommenderModel, content: Tensor, item_index_of: IntArray, has: Tensor | None
) -> Tensor:
    """Contents with what items lack that training never met made up for.

    Args:
        model: the trained model.
        content: (N, D).
        item_index_of: (R,) catalogue index of each of the model's rows.
        has: (N, M) as `modalities_of` gives it; None: nothing is made up for.

    Returns:
        (N, D), a copy; of items that training met as they were.
    """
    result = content.clone()
    if has is not None:
        new = torch.ones(len(content), dtype=torch.bool, device=content.device)
        new[torch.from_numpy(item_index_of).to(content.device)] = False
        result[new] = model.embeddings_of_new(content[new], has[new])
    return result


@torch.no_grad()
def item_vectors(
    model: RecommenderModel,
    content: Tensor | None,
    item_index_of: IntArray,
    *,
    num_items: int,
    has: Tensor | None = None,
) -> ItemVectors:
    """Vectors of all N items.

    Args:
        model: the trained model.
        content: (N, D), or None for a model of ids.
        item_index_of: (R,) catalogue index of each of the model's rows.
        num_items: N.
        has: (N, M) as `modalities_of` gives it: what items lack that training never met is made up
            for in their embeddings; None: nothing is.
    """
    device = model.counts.device
    rows = torch.from_numpy(item_index_of).to(device)
    with evaluating(model):
        trained = model.embeddings(None if content is None else content[rows])
        if content is None:
            embedding = torch.zeros(num_items, trained.shape[1], device=device)
        else:
            embedding = content_for_users(model, content, item_index_of, has)
        counts = torch.zeros(num_items, device=device)
        counts[rows] = model.counts
        # popularity of new items is told from what stands in for their content
        bias = model.bias(counts, None if content is None else embedding)
        embedding[rows] = trained
    return ItemVectors(content=content, embedding=embedding, bias=bias)


@torch.no_grad()
def user_vectors(
    model: RecommenderModel,
    embedding: Tensor,
    histories: Ragged,
    told: Told | None = None,
    *,
    precision: str = "fp32",
    tile: int = 256,
) -> Tensor:
    """Users behind histories of items.

    Args:
        model: the trained model.
        embedding: (N, D) item embeddings.
        histories: U rows of item_index, oldest first; of long ones the last events count.
        told: what is known of their events, requests and users, for a model that reads signals;
            None: nothing.
        precision: `bf16` is autocast.
        tile: histories encoded together, of like length.

    Returns:
        (U, D) unit vectors; zeros for an empty history, whose score is then popularity alone, where
        the model knows no start of one.
    """
    device = embedding.device
    lengths = np.diff(histories.offsets)
    users = torch.zeros(lengths.shape[0], embedding.shape[1], device=device)
    order = np.argsort(lengths, kind="stable")
    if model.history.start is None:
        order = order[lengths[order] > 0]
    with evaluating(model):
        for begin in range(0, order.shape[0], tile):
            chosen = order[begin : begin + tile]
            items, offsets, signals = pack_histories(model, embedding, histories, told, chosen)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                users[torch.from_numpy(chosen).to(device)] = model.query(items, offsets, signals)
    return users


def pack_histories(
    model: RecommenderModel,
    embedding: Tensor,
    histories: Ragged,
    told: Told | None,
    chosen: IntArray,
) -> tuple[Tensor, Tensor, Signals | None]:
    """What the history encoder reads of some histories; of long ones the last events.

    Args:
        model: the trained model.
        embedding: (N, D) item embeddings.
        histories: U rows of item_index, oldest first.
        told: as in `user_vectors`.
        chosen: (b,) rows of the histories.

    Returns:
        Items (P, D) with the start of a history where the model knows one, offsets (b + 1,), and
        signals of P events, b requests and b users; None where the model reads none.
    """
    device, longest = embedding.device, model.history.max_length
    starts = model.history.start is not None
    places = []
    for at, n in zip(histories.offsets[chosen], histories.lengths[chosen], strict=True):
        # -1 stands for the start, which is shown where the whole history is
        first = np.full(int(starts and n <= longest), -1)
        places.append(np.concatenate([first, np.arange(at + max(n - longest, 0), at + n)]))
    kept = np.array([len(each) for each in places])
    events = np.concatenate(places)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(kept)])).to(device)
    rows = np.full(len(events), len(embedding))
    rows[events >= 0] = histories.values[events[events >= 0]]
    items = model.shown(embedding, torch.from_numpy(rows).to(device))
    signals = None
    if model.reader is not None:
        signals = (
            model.reader.unknown(num_events=len(events), num_users=len(chosen))
            if told is None
            else model.reader.signals(told.take(chosen, events))
        ).to(device)
    return items, offsets, signals


def score_vectors(
    model: RecommenderModel, users: Tensor, items: ItemVectors
) -> tuple[Tensor, Tensor]:
    """Vectors whose inner product is the score, in units of cosine.

    The popularity term is one more dimension: [u, 1] and [e, tau * beta].

    Returns:
        users (U, D + 1) and items (N, D + 1).
    """
    tau = model.temperature.detach()
    one = users.new_ones(users.shape[0], 1)
    return (
        torch.cat([users, one], dim=1),
        torch.cat([items.embedding, (items.bias * tau)[:, None]], dim=1),
    )
