"""Text query -> item: a piece of an item's text finds the item among the fresh ones.

    queries ─ text encoder ─ fusion, text alone ─► (M, D) ─┬─ InfoNCE ─► query loss
    items, all of their media ─────────────────► (M, D) ───┘

Legend: M items of a step over all ranks, each with a query or without · D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.tokens import Tokens
from fusion.modes import dropout_off, mean_held
from mmrec.data.live import live_states
from mmrec.data.queries import Queries
from mmrec.model import RecommenderModel
from mmrec.training.distributed import GatherContents
from mmrec.training.one_modality import MIN_CONTRAST_TEMPERATURE

TILE = 32
"""Queries encoded together, padded to the longest of them."""


def match_queries(
    model: RecommenderModel, queries: Queries, content: Tensor, gather: GatherContents | None
) -> Tensor:
    """The loss of a step's queries, at the model's learned temperature.

    Args:
        model: in training mode.
        queries: of the items that this rank encodes.
        content: (M, D) unit contents of the items of all ranks, as they are used.
        gather: puts the items of all ranks together; None for a process alone.
    """
    assert model.fusion is not None and model.log_query_temperature is not None
    tokens = encode_queries(model.encoder("text"), queries)
    with dropout_off(model.fusion), mean_held(model.fusion):
        asked = model.fusion({"text": tokens})
    answers = queries.answers if gather is None else gather.rows(queries.answers)
    floor = math.log(MIN_CONTRAST_TEMPERATURE)
    scale = torch.exp(-model.log_query_temperature.clamp(min=floor))
    return query_loss(asked * scale, content, answers)


def encode_queries(encoder: Any, queries: Queries) -> Tokens:
    """Tokens of a step's queries, those of like length together: one may be a word, one a plot."""
    lengths = queries.inputs["mask"].sum(1)
    order = lengths.argsort(descending=True, stable=True)
    parts = []
    for rows in order.split(TILE):
        longest = max(int(lengths[rows[0]]), 1)
        inputs = {
            name: each[rows] if each.ndim == 1 else each[rows, :longest]
            for name, each in queries.inputs.items()
        }
        if queries.dtype is None:
            parts.append(encoder(inputs))
        else:
            parts.append(encoder.above(live_states(encoder, inputs, queries.dtype)))
    back = order.argsort()
    return Tokens(
        torch.cat([each.values for each in parts])[back],
        torch.cat([each.mask for each in parts])[back],
    )


def query_loss(queries: Tensor, contents: Tensor, answers: Tensor) -> Tensor:
    """InfoNCE from queries to items.

        loss = mean_i [ logsumexp_j <q_i, c_j> - <q_i, c_i> ],   j = i or j no answer to i

    Positive: the item that a query was drawn from. Negatives: the others at hand, apart from those
    whose text holds all of the query too (every comedy, where "comedy" is asked for): they are as
    right. Items without a query are candidates only. In one direction, since nobody asks for the
    query of an item. Source: van den Oord et al., arXiv 1807.03748, equation 4.

    Args:
        queries: (M, D) unit vectors, divided by the temperature; row i was drawn from item i.
        contents: (M, D) unit vectors.
        answers: (M, M) bool, the items that a query fits; an item without a query fits nothing.

    Returns:
        Scalar; 0 where nothing is asked.
    """
    own = torch.eye(len(contents), dtype=torch.bool, device=contents.device)
    asked = answers.any(1)
    if not bool(asked.any()):
        return queries.sum() * 0.0
    with torch.autocast(queries.device.type, enabled=False):  # a cosine over .01 needs its digits
        logits = queries @ contents.T
    logits = logits.masked_fill(answers & ~own, -torch.inf)
    return F.cross_entropy(logits[asked], torch.arange(len(contents), device=logits.device)[asked])
