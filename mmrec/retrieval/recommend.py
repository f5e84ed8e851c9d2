"""Exact lists for one question: the next items of a user, the items most like something.

Every candidate is scored and none is approximated; see `mmrec.retrieval.index` for an index.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.retriever import Asked, Retriever

logger = logging.getLogger(__name__)

Basis = Literal["history", "taste", "attributes", "request", "popularity", "content"]


@dataclass(frozen=True)
class Recommendation:
    """One item of a list.

    Attributes:
        rank: place in the list, from 1.
        item_id: external id.
        score: in units of cosine; training events of the item where the basis is popularity.
        title: the item's first text, None where it has none.
        basis: what the score was made from. Without a history it is what the user says he likes,
            what is known of him, or of the request, as far as the model reads such things, or
            `popularity`.
    """

    rank: int
    item_id: str
    score: float
    title: str | None
    basis: Basis


def recommend_next(retriever: Retriever, asked: Asked, k: int) -> list[Recommendation]:
    """The K best candidates of a user, without what he has met where repeats are forbidden.

    A user without a usable history, of whom the model knows nothing either, is given the items with
    most training events, and is told so.

    Raises:
        UserError: k is below 1.
    """
    _check_k(k)
    candidates = retriever.items.candidates
    basis = _basis(retriever, asked)
    if basis != "popularity":
        user = retriever.user_vectors([asked])[0]
        scores = retriever.candidate_side @ torch.cat([user, user.new_ones(1)])
    else:
        logger.warning("no usable history: the most popular items are listed")
        counts = torch.from_numpy(retriever.counts[candidates])
        scores = counts.float().to(retriever.device)
    if retriever.repeats_forbidden:
        seen = torch.zeros(len(retriever.counts), dtype=torch.bool)
        seen[torch.from_numpy(asked.seen)] = True
        scores = scores.masked_fill(
            seen[torch.from_numpy(candidates)].to(scores.device), -torch.inf
        )
    return _listed(retriever, candidates, scores, k, basis)


def _basis(retriever: Retriever, asked: Asked) -> Basis:
    """What a user's list can be made from."""
    model = retriever.model
    if len(asked.history):
        return "history"
    if asked.taste is not None:
        return "taste"
    if model.reader is None or model.history.start is None:
        return "popularity"
    if any(asked.attributes.get(field.name) is not None for field in model.reader.spec.users):
        return "attributes"
    if not model.reader.knows_nothing_of(asked.request):
        return "request"
    return "popularity"


def most_similar(
    retriever: Retriever, query: Tensor, k: int, *, without: int | None = None
) -> list[Recommendation]:
    """The K items whose content is nearest to a query's, over the whole catalogue.

    Args:
        retriever: a model that knows media.
        query: (D,) unit content.
        k: how many.
        without: item_index that is not listed: the item that is asked about.

    Raises:
        UserError: k is below 1, or the model knows no media.
    """
    _check_k(k)
    retriever.require_media("similar items")
    assert retriever.content is not None
    scores = retriever.content @ query
    hidden = torch.from_numpy(retriever.items.deleted | ~retriever.items.any_medium)
    scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
    if without is not None:
        scores[without] = -torch.inf
    return _listed(retriever, None, scores, k, "content")


def _listed(
    retriever: Retriever, rows: IntArray | None, scores: Tensor, k: int, basis: Basis
) -> list[Recommendation]:
    """The K best finite scores (C,), ties in the order of the catalogue."""
    values, order = scores.sort(descending=True, stable=True)
    items = retriever.items
    found: list[Recommendation] = []
    for score, place in zip(values[:k].tolist(), order[:k].tolist(), strict=True):
        if score == -torch.inf:
            break
        row = place if rows is None else int(rows[place])
        found.append(
            Recommendation(len(found) + 1, items.item_ids[row], score, items.titles[row], basis)
        )
    return found


def _check_k(k: int) -> None:
    if k < 1:
        raise UserError(f"k is {k}: give how many items to list, 1 at least")
