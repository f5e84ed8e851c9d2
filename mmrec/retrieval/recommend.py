"""Exact lists for one question: the next items of a user, the items most like something.

An item is listed within its availability alone, at the instant that is asked about. Every candidate
is scored and none is approximated; see `mmrec.retrieval.indexes` for an index.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.retriever import Asked, Retriever

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
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


def recommend_next(
    retriever: Retriever,
    asked: Asked,
    k: int,
    *,
    at: float | None = None,
    half_life_hours: float | None = None,
    unmet: bool = False,
) -> list[Recommendation]:
    """The K best candidates of a user, without what he has met where repeats are forbidden.

    A user without a usable history, of whom the model knows nothing either, is given the items with
    most training events, and is told so.

    Args:
        retriever: the model and its candidates.
        asked: the user.
        k: how many.
        at: Unix seconds at which items must be available; None: now.
        half_life_hours: age at which the odds of an item have halved; None: age does not count.
        unmet: items that no event of the data names are candidates as well.

    Raises:
        UserError: k is below 1, or a half-life is not above 0 or of a catalogue without instants.
    """
    _check_k(k)
    now = time.time() if at is None else at
    candidates = retriever.items.candidates
    if unmet:
        candidates = _all_with_a_vector(retriever)
    basis = _basis(retriever, asked)
    if basis != "popularity":
        user = retriever.user_vectors([asked])[0]
        side = retriever.candidate_side
        if unmet:
            side = retriever.item_side[torch.from_numpy(candidates).to(retriever.device)]
        scores = side @ torch.cat([user, user.new_ones(1)])
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
    if half_life_hours is not None:
        lives = _half_lives(retriever, now, half_life_hours)[candidates]
        faded = torch.from_numpy(lives).to(scores) * math.log(2)
        if basis == "popularity":
            scores = scores * torch.exp(-faded)
        else:
            scores = scores - faded * retriever.model.temperature.detach()
    scores = _only_available(retriever, scores, candidates, now)
    return _listed(retriever, candidates, scores, k, basis)


def _all_with_a_vector(retriever: Retriever) -> IntArray:
    """(C,) item_index of what can be compared with a user, met or not."""
    items = retriever.items
    usable = items.any_medium if retriever.knows_media else retriever.has_vector
    return np.flatnonzero((items.is_candidate | usable) & ~items.deleted).astype(np.int64)


def _only_available(
    retriever: Retriever, scores: Tensor, rows: IntArray | None, now: float
) -> Tensor:
    """Scores (C,) with those of items that may not be listed at an instant at -inf."""
    available = retriever.items.available
    if available is None:
        return scores
    hidden = ~available.at(now)
    hidden = hidden if rows is None else hidden[rows]
    return scores.masked_fill(torch.from_numpy(hidden).to(scores.device), -torch.inf)


def _half_lives(retriever: Retriever, now: float, half_life_hours: float) -> FloatArray:
    """(N,) ages of items in half-lives."""
    spec, available = retriever.catalogue.items.available, retriever.items.available
    if spec is None or spec.start is None or available is None:
        raise UserError(
            f"the half-life is {half_life_hours:g} hours, but the catalogue file names no column "
            "items.available.from, which age is counted from; add it and prepare again"
        )
    return available.half_lives(now, half_life_hours)


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
    retriever: Retriever,
    query: Tensor,
    k: int,
    *,
    without: int | None = None,
    at: float | None = None,
) -> list[Recommendation]:
    """The K items whose content is nearest to a query's, over the whole catalogue.

    Args:
        retriever: a model that knows media.
        query: (D,) unit content.
        k: how many.
        without: item_index that is not listed: the item that is asked about.
        at: Unix seconds at which items must be available; None: now.

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
    scores = _only_available(retriever, scores, None, time.time() if at is None else at)
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
