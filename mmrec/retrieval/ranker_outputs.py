"""What a ranker says of candidates, in training, evaluation and use alike.

Legend: B users · C candidates · T tokens of a candidate · L history length · D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusion.ranker import Ranker
from mmrec.data.ragged import IntArray, Ragged
from mmrec.data.told import Told
from mmrec.model import RecommenderModel
from mmrec.retrieval.ranker_inputs import RankerInputs

# Pairs of a candidate's token and an event that attention lays out at once, of all heads.
MAX_PAIRS = 2**22


def calibrated(logits: Tensor, slope: float, intercept: float) -> Tensor:
    """Platt scaling: sigmoid(slope z + intercept)."""
    return torch.sigmoid(slope * logits + intercept)


def head_values(
    model: RecommenderModel,
    name: str,
    added: Tensor,
    users: Tensor,
    items: Tensor,
    expected: Tensor,
) -> Tensor:
    """Logits or values of a head: what the retriever's says, and what the ranker adds.

    Args:
        model: the retriever's.
        name: of the head.
        added: (B, C) of the ranker, in units of the head's spread.
        users: (B, D).
        items: (B, C, D) embeddings.
        expected: (B, C) beside the head's base.

    Returns:
        (B, C).
    """
    head: Any = model.heads[name]
    B, C, D = items.shape
    pairs = users[:, None].expand(B, C, D).reshape(-1, D), items.reshape(-1, D)
    told: Tensor = head(*pairs, expected.reshape(-1))
    return told.view(B, C) + head.spread * added


@torch.no_grad()
def tell(
    ranker: Ranker,
    inputs: RankerInputs,
    users: Tensor,
    histories: Ragged,
    told: Told | None,
    items: IntArray,
    scores: Tensor,
    *,
    embedding: Tensor | None = None,
) -> Tensor:
    """What a ranker says of B users' candidates, in tiles of them.

    Args:
        ranker: in eval mode.
        inputs: of its retriever.
        users: (B, D) that retrieval asks with.
        histories: B rows.
        told: as in `RankerInputs.past`.
        items: (B, C) item_index, -1 for none.
        scores: (B, C) of retrieval.
        embedding: as in `RankerInputs.past`.

    Returns:
        (B, C, 1 + heads).
    """
    past = inputs.past(users, histories, told, embedding=embedding)
    pairs = inputs.num_tokens * (1 + past.mask.shape[1]) * len(users)
    tile = max(1, MAX_PAIRS // pairs)
    parts = []
    for start in range(0, items.shape[1], tile):
        own = slice(start, start + tile)
        parts.append(ranker(inputs.candidates(items[:, own], scores[:, own]), past))
    return torch.cat(parts, dim=1)
