"""Vectors of all items and of users, as evaluation, export and service use them.

Legend: N items of the catalogue · R items in training · U users · D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmrec.data.batch import ItemSource, media_to
from mmrec.data.histories import IntArray
from mmrec.data.ragged import Ragged
from mmrec.model import RecommenderModel


@dataclass(frozen=True)
class ItemVectors:
    """Every item of a catalogue in the model's space.

    content: (N, D) unit; None where the model knows no media.
    embedding: (N, D) unit; the content itself where training never met the item, and zeros for
        such an item of a model that knows no media.
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
) -> Tensor:
    """Content of items in their order, on the model's device: (n,) -> (n, D) unit vectors."""
    device = model.counts.device
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, item_index.shape[0], tile):
        media = media_to(source.collate(item_index[start : start + tile]), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(model.content(media).float())
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, model.width, device=device)


@torch.no_grad()
def item_vectors(
    model: RecommenderModel, content: Tensor | None, item_index_of: IntArray, *, num_items: int
) -> ItemVectors:
    """Vectors of all N items.

    Args:
        model: the trained model.
        content: (N, D), or None for a model of ids.
        item_index_of: (R,) catalogue index of each of the model's rows.
        num_items: N.
    """
    was_training = model.training
    model.eval()
    device = model.counts.device
    rows = torch.from_numpy(item_index_of).to(device)
    trained = model.embeddings(None if content is None else content[rows])
    if content is None:
        embedding = torch.zeros(num_items, trained.shape[1], device=device)
    else:
        embedding = content.clone()
    embedding[rows] = trained
    counts = torch.zeros(num_items, device=device)
    counts[rows] = model.counts
    bias = model.bias(counts, content)
    model.train(was_training)
    return ItemVectors(content=content, embedding=embedding, bias=bias)


@torch.no_grad()
def user_vectors(
    model: RecommenderModel,
    embedding: Tensor,
    histories: Ragged,
    *,
    precision: str = "fp32",
    tile: int = 256,
) -> Tensor:
    """Users behind histories of items.

    Args:
        model: the trained model.
        embedding: (N, D) item embeddings.
        histories: U rows of item_index, oldest first; of long ones the last events count.
        precision: `bf16` is autocast.
        tile: histories encoded together, of like length.

    Returns:
        (U, D) unit vectors; zeros for an empty history, whose score is then popularity alone.
    """
    was_training = model.training
    model.eval()
    device = embedding.device
    lengths = np.diff(histories.offsets)
    users = torch.zeros(lengths.shape[0], embedding.shape[1], device=device)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    longest = model.history.max_length
    for start in range(0, order.shape[0], tile):
        chosen = order[start : start + tile]
        ends = histories.offsets[chosen + 1]
        kept = np.minimum(lengths[chosen], longest)
        events = np.concatenate(
            [histories.values[end - n : end] for end, n in zip(ends, kept, strict=True)]
        )
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(kept)])).to(device)
        items = embedding.index_select(0, torch.from_numpy(events).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            users[torch.from_numpy(chosen).to(device)] = model.query(items, offsets)
    model.train(was_training)
    return users


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
