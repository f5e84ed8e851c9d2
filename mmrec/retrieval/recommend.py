"""Exact lists for one question: the next items of a user, the items most like something.

An item is listed within its availability alone, at the instant that is asked about. Every candidate
is scored and none is approximated; see `mmrec.retrieval.indexes` for an index.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.explain import explain
from mmrec.retrieval.freshness import with_half_life
from mmrec.retrieval.known import Asked
from mmrec.retrieval.lists import (
    Basis,
    Recommendation,
    Scored,
    check_k,
    make_list,
)
from mmrec.retrieval.parts import content_by
from mmrec.retrieval.popular import popularity
from mmrec.retrieval.ranked_lists import Pool, RankedRecommendation, make_pool, ranked_list
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.second_stage import RankedItems, SecondStage, Shortlist
from mmrec.retrieval.wishes import NO_WISHES, Wishes

logger = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = [
    "Basis",
    "ListRequest",
    "RankedRecommendation",
    "Recommendation",
    "basis_of",
    "most_popular",
    "most_similar",
    "most_similar_to",
    "recommend_next",
    "recommend_together",
]


@dataclass(frozen=True)
class ListRequest:
    """Whose list is wanted, and what like.

    Attributes:
        asked: the user.
        k: how many.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is asked to be like.
        ranked: ordered by the second stage; not where popularity alone is known.
        user: (D,) his vector, where those of several users were computed together; None: it is
            computed here.
    """

    asked: Asked
    k: int
    at: float | None = None
    wishes: Wishes = NO_WISHES
    ranked: bool = False
    user: Tensor | None = None


def recommend_next(
    retriever: Retriever,
    asked: Asked,
    k: int,
    *,
    at: float | None = None,
    wishes: Wishes = NO_WISHES,
    second_stage: SecondStage | None = None,
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
        second_stage: orders the best of what conditions and age leave anew, as many as it was
            trained to, or more where the list needs them; not where popularity alone is known.
            Soft wishes, thresholds and variety come after it. None: retrieval's order.
        user: (D,) his vector, where those of several users were computed together; None: it is
            computed here.

    Raises:
        UserError: k is below 1, a half-life is not above 0 or of a catalogue without instants, or
            a wish names no attribute of the catalogue.
    """
    request = ListRequest(asked, k, at, wishes, second_stage is not None, user)
    [found] = recommend_together(retriever, [request], second_stage)
    if isinstance(found, Exception):
        raise found
    return found


def recommend_together(
    retriever: Retriever,
    requests: Sequence[ListRequest],
    second_stage: SecondStage | None = None,
) -> list[list[Recommendation] | Exception]:
    """As `recommend_next`, of several users, whose candidates the second stage ranks together.

    Args:
        retriever: the model and its candidates.
        requests: whose lists are wanted.
        second_stage: of those that are to be ranked.

    Returns:
        A list for each request in their order, or what `recommend_next` would have raised.
    """
    requests = [replace(each, wishes=with_half_life(retriever, each.wishes)) for each in requests]
    begun = [_attempt(_begin, retriever, each, second_stage) for each in requests]
    shortlists = {
        place: Shortlist(request.asked, each.user, pool.rows[: pool.num], pool.scores[: pool.num])
        for place, (request, each) in enumerate(zip(requests, begun, strict=True))
        if isinstance(each, _Begun) and each.user is not None and (pool := each.pool) and pool.num
    }
    ranked: dict[int, RankedItems | Exception] = {}
    if second_stage is not None and shortlists:
        ranked = dict(zip(shortlists, _rank(second_stage, [*shortlists.values()]), strict=True))
    found: list[list[Recommendation] | Exception] = []
    for place, (request, each) in enumerate(zip(requests, begun, strict=True)):
        order = ranked.get(place)
        if isinstance(each, Exception):
            found.append(each)
        elif isinstance(order, Exception):
            found.append(order)
        else:
            found.append(_attempt(_finish, retriever, request, each, order))
    return found


@dataclass(frozen=True)
class _Begun:
    """A list as retrieval leaves it.

    Attributes:
        now: Unix seconds that count.
        scored: its candidates.
        user: (D,); None where popularity alone is known.
        pool: what the second stage has a part in; None: it has none.
    """

    now: float
    scored: Scored
    user: Tensor | None
    pool: Pool | None


def _begin(retriever: Retriever, request: ListRequest, second_stage: SecondStage | None) -> _Begun:
    asked, wishes, user = request.asked, request.wishes, request.user
    check_k(request.k)
    now = time.time() if request.at is None else request.at
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
        counts = torch.from_numpy(popularity(retriever, now, wishes.trend)[rows])
        scores = counts.float().to(retriever.device)
    if retriever.repeats_forbidden:
        seen = np.zeros(len(retriever.counts), np.bool_)
        seen[asked.seen] = True
        scores = scores.masked_fill(torch.from_numpy(seen[rows]).to(scores.device), -torch.inf)
    scored = Scored(rows, scores, basis)
    pool = None
    if request.ranked and second_stage is not None and basis != "popularity":
        num = second_stage.num_candidates
        pool = make_pool(retriever, scored, request.k, num, now=now, wishes=wishes)
    return _Begun(now, scored, user, pool)


def _rank(stage: SecondStage, shortlists: Sequence[Shortlist]) -> list[RankedItems | Exception]:
    """Ranks them together; where that fails each by itself, so that only what is at fault does."""
    try:
        return [*stage.rank_together(shortlists)]
    except Exception as error:
        if len(shortlists) == 1:
            return [error]
        logger.exception("candidates could not be ranked together")
        return [found for each in shortlists for found in _rank(stage, [each])]


def _finish(
    retriever: Retriever, request: ListRequest, begun: _Begun, ranked: RankedItems | None
) -> list[Recommendation]:
    now, k, wishes = begun.now, request.k, request.wishes
    if begun.pool is None:
        found = make_list(retriever, begun.scored, k, now=now, wishes=wishes)
    elif ranked is None:  # nothing is left that may be listed
        found = []
    else:
        found = ranked_list(retriever, begun.pool, ranked, k, now=now, wishes=wishes)
    if wishes.num_similar:
        found = [replace(each, similar=_beside(retriever, each, now, wishes)) for each in found]
    if wishes.why is not None:
        listed = np.array([retriever.items.rows[each.item_id] for each in found], np.int64)
        basis = begun.scored.basis
        reasons = explain(retriever, request.asked, listed, basis=basis, language=wishes.why)
        found = [replace(each, why=why) for each, why in zip(found, reasons, strict=True)]
    return found


def _attempt(work: Callable[..., T], *given: Any) -> T | Exception:
    """A result, or the error in its place: of several users one may ask for what is refused."""
    try:
        return work(*given)
    except Exception as error:
        return error


def most_popular(
    retriever: Retriever, k: int, *, at: float | None = None, wishes: Wishes = NO_WISHES
) -> list[Recommendation]:
    """The K candidates that are met most, whoever asks.

    Args:
        retriever: the candidates and the log.
        k: how many.
        at: Unix seconds at which items must be available and ages are counted; None: now.
        wishes: what the list is asked to be like; `trend` says which events count how much.

    Raises:
        UserError: as `recommend_next`.
    """
    check_k(k)
    wishes.refuse_of_users("popular items")
    now, rows = time.time() if at is None else at, retriever.items.candidates
    scores = torch.from_numpy(popularity(retriever, now, wishes.trend)[rows])
    scored = Scored(rows, scores.float().to(retriever.device), "popularity")
    return make_list(retriever, scored, k, now=now, wishes=wishes)


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
    by: str | None = None,
    without: int | None = None,
    at: float | None = None,
    wishes: Wishes = NO_WISHES,
) -> list[Recommendation]:
    """The K items whose content is nearest to a query's, over the whole catalogue.

    Args:
        retriever: a model that knows media.
        query: (D,) unit content.
        k: how many.
        by: modality whose contents it is compared with; None: contents of all media.
        without: item_index that is not listed: the item that is asked about.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is asked to be like.

    Raises:
        UserError: k is below 1, the model knows no media or not this one, or as `recommend_next`.
    """
    check_k(k)
    wishes.refuse_of_users("similar items")
    retriever.require_media("similar items")
    has = retriever.items.any_medium if by is None else retriever.items.has.get(by)
    contents = retriever.content if by is None else content_by(retriever, by)
    assert contents is not None and has is not None
    hidden = retriever.items.deleted | ~has
    if by is not None:  # what was added since has no content by one medium
        hidden |= ~(contents != 0).any(1).cpu().numpy()
    if without is not None:
        hidden[without] = True
    scores = contents @ query
    scores = scores.masked_fill(torch.from_numpy(hidden).to(scores.device), -torch.inf)
    scored = Scored(np.arange(len(hidden)), scores, "content")
    return make_list(retriever, scored, k, now=time.time() if at is None else at, wishes=wishes)


def most_similar_to(
    retriever: Retriever,
    item_index: int,
    k: int,
    *,
    by: str | None = None,
    at: float | None = None,
    wishes: Wishes = NO_WISHES,
) -> list[Recommendation]:
    """The K items whose content is nearest to an item's, which is not among them.

    Args:
        retriever: a model that knows media.
        item_index: of the item.
        k: how many.
        by: modality that is compared; None: contents of all media.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is asked to be like.

    Raises:
        UserError: as `most_similar`, or the item lacks the modality.
    """
    retriever.require_media("similar items")
    contents = retriever.content if by is None else content_by(retriever, by)
    assert contents is not None
    if by is not None and not retriever.items.has[by][item_index]:
        raise UserError(
            f"item '{retriever.items.item_ids[item_index]}' has no {by}; it has "
            f"{', '.join(retriever.items.modalities(item_index)) or 'nothing the model encodes'}"
        )
    query = contents[item_index]
    if by is not None and not query.any():
        raise UserError(
            f"item '{retriever.items.item_ids[item_index]}' was added since the model was loaded: "
            f"it can be compared by all of its media, not by {by} alone"
        )
    return most_similar(retriever, query, k, by=by, without=item_index, at=at, wishes=wishes)


def _beside(
    retriever: Retriever, listed: Recommendation, now: float, wishes: Wishes
) -> tuple[Recommendation, ...]:
    """Items most like one that is listed; what the list may not show, these may not either."""
    row, num = retriever.items.rows[listed.item_id], wishes.num_similar
    hard = Wishes(where=wishes.where, without=wishes.without)
    return tuple(most_similar_to(retriever, row, num, at=now, wishes=hard))
