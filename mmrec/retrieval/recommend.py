"""Exact lists for one question: the next items of a user, the items most like something.

An item is listed within its availability alone, at the instant that is asked about. Every candidate
is scored and none is approximated; see `mmrec.retrieval.index` for an index.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.retrieval.lists import Basis, Recommendation, Scored, check_k, make_list
from mmrec.retrieval.retriever import Asked, Retriever
from mmrec.retrieval.wishes import NO_WISHES, Wishes

logger = logging.getLogger(__name__)

__all__ = ["Basis", "Recommendation", "basis_of", "most_similar", "recommend_next"]


def recommend_next(
    retriever: Retriever,
    asked: Asked,
    k: int,
    *,
    at: float | None = None,
    wishes: Wishes = NO_WISHES,
    user: Tensor | None = None,
) -> list[Recommendation]:
    """The K best candidates of a user, without what he has met where repeats are forbidden.

    A user without a usable history, of whom the model knows nothing either, is given the items with
    most training events, and is told so.

    Args:
        retriever: the model and its candidates.
        asked: the user.
        k: how many.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is asked to be like.
        user: (D,) his vector, where those of several users were computed together; None: it is
            computed here.

    Raises:
        UserError: k is below 1, a half-life is not above 0 or of a catalogue without instants, or
            a wish names no attribute of the catalogue.
    """
    check_k(k)
    now = time.time() if at is None else at
    rows = _all_with_a_vector(retriever) if wishes.unmet else retriever.items.candidates
    basis = basis_of(retriever, asked)
    if basis != "popularity":
        if user is None:
            user = retriever.user_vectors([asked])[0]
        side = retriever.candidate_side
        if wishes.unmet:
            side = retriever.item_side[torch.from_numpy(rows).to(retriever.device)]
        scores = side @ torch.cat([user, user.new_ones(1)])
    else:
        logger.warning("no usable history: the most popular items are listed")
        counts = torch.from_numpy(retriever.counts[rows])
        scores = counts.float().to(retriever.device)
    if retriever.repeats_forbidden:
        seen = np.zeros(len(retriever.counts), np.bool_)
        seen[asked.seen] = True
        scores = scores.masked_fill(torch.from_numpy(seen[rows]).to(scores.device), -torch.inf)
    found = make_list(retriever, Scored(rows, scores, basis), k, now=now, wishes=wishes)
    if wishes.num_similar:
        found = [replace(each, similar=_beside(retriever, each, now, wishes)) for each in found]
    return found


def _all_with_a_vector(retriever: Retriever) -> IntArray:
    """(C,) item_index of what can be compared with a user, met or not."""
    items = retriever.items
    usable = items.any_medium if retriever.knows_media else retriever.has_vector
    return np.flatnonzero((items.is_candidate | usable) & ~items.deleted).astype(np.int64)


def basis_of(retriever: Retriever, asked: Asked) -> Basis:
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
    retriever: Retriever,
    query: Tensor,
    k: int,
    *,
    contents: Tensor | None = None,
    without: int | None = None,
    at: float | None = None,
    wishes: Wishes = NO_WISHES,
) -> list[Recommendation]:
    """The K items whose content is nearest to a query's, over the whole catalogue.

    Args:
        retriever: a model that knows media.
        query: (D,) unit content.
        k: how many.
        contents: (N, D) that it is compared with, zeros where an item has none; None: content of
            all media.
        without: item_index that is not listed: the item that is asked about.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is asked to be like.

    Raises:
        UserError: k is below 1, the model knows no media, or as `recommend_next`.
    """
    check_k(k)
    retriever.require_media("similar items")
    assert retriever.content is not None
    hidden = retriever.items.deleted | ~retriever.items.any_medium
    if contents is not None:
        hidden = hidden | ~(contents != 0).any(1).cpu().numpy()
    if without is not None:
        hidden[without] = True
    scores = (retriever.content if contents is None else contents) @ query
    scores = scores.masked_fill(torch.from_numpy(hidden).to(scores.device), -torch.inf)
    scored = Scored(np.arange(len(hidden)), scores, "content")
    return make_list(retriever, scored, k, now=time.time() if at is None else at, wishes=wishes)


def _beside(
    retriever: Retriever, listed: Recommendation, now: float, wishes: Wishes
) -> tuple[Recommendation, ...]:
    """Items most like one that is listed; what the list may not show, these may not either."""
    retriever.require_media("similar items")
    assert retriever.content is not None
    row = retriever.items.rows[listed.item_id]
    hard = Wishes(where=wishes.where, without=wishes.without)
    content = retriever.content[row]
    return tuple(
        most_similar(retriever, content, wishes.num_similar, without=row, at=now, wishes=hard)
    )
