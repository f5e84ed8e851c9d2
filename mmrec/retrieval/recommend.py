"""Exact lists for one question: the next items of a user, the items most like something.

An item is listed within its availability alone, at the instant that is asked about. Every candidate
is scored and none is approximated; see `mmrec.retrieval.indexes` for an index.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.explain import explain
from mmrec.retrieval.known import Asked
from mmrec.retrieval.lists import (
    Basis,
    Recommendation,
    Scored,
    allowed_scores,
    check_k,
    make_list,
)
from mmrec.retrieval.parts import content_by
from mmrec.retrieval.popular import popularity
from mmrec.retrieval.rerank import POOL
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.second_stage import RankedItems, SecondStage
from mmrec.retrieval.wishes import NO_WISHES, Wishes

logger = logging.getLogger(__name__)

__all__ = [
    "Basis",
    "RankedRecommendation",
    "Recommendation",
    "basis_of",
    "most_popular",
    "most_similar",
    "most_similar_to",
    "recommend_next",
]


@dataclass(frozen=True)
class RankedRecommendation(Recommendation):
    """One item of a list that the second stage has ordered.

    Attributes:
        retrieval_rank: its place by retrieval alone.
        heads: what the ranker's heads tell: values, and probabilities where these are calibrated;
            empty for an item below those that were ranked.
    """

    retrieval_rank: int = 0
    heads: Mapping[str, float] = field(default_factory=dict)


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
        counts = torch.from_numpy(popularity(retriever, now, wishes.trend)[rows])
        scores = counts.float().to(retriever.device)
    if retriever.repeats_forbidden:
        seen = np.zeros(len(retriever.counts), np.bool_)
        seen[asked.seen] = True
        scores = scores.masked_fill(torch.from_numpy(seen[rows]).to(scores.device), -torch.inf)
    scored = Scored(rows, scores, basis)
    if second_stage is not None and basis != "popularity":
        found = _ranked(second_stage, asked, scored, k, now, wishes)
    else:
        found = make_list(retriever, scored, k, now=now, wishes=wishes)
    if wishes.num_similar:
        found = [replace(each, similar=_beside(retriever, each, now, wishes)) for each in found]
    if wishes.why is not None:
        listed = np.array([retriever.items.rows[each.item_id] for each in found], np.int64)
        reasons = explain(retriever, asked, listed, basis=basis, language=wishes.why)
        found = [replace(each, why=why) for each, why in zip(found, reasons, strict=True)]
    return found


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


def _ranked(
    second_stage: SecondStage, asked: Asked, scored: Scored, k: int, now: float, wishes: Wishes
) -> list[Recommendation]:
    """A list whose scores are those of both stages.

    Candidates below those that are ranked keep their order behind them, so that a list is full
    where limits or wishes take much of the ranked ones.
    """
    retriever = second_stage.retriever
    values, order = allowed_scores(retriever, scored, now, wishes).sort(
        descending=True, stable=True
    )
    num_left = int(torch.isfinite(values).sum())
    if not num_left:
        return []
    rows = scored.rows[order[:num_left].cpu().numpy()]
    values = values[:num_left]
    wanted = k * POOL if wishes.diversity or wishes.max_per or wishes.prefer else k
    num = min(max(wanted, second_stage.num_candidates), num_left)
    ranked = second_stage.rank(asked, rows[:num], values[:num])
    scores = torch.from_numpy(ranked.scores).to(values)
    rest = values[num:]
    if len(rest):
        rest = rest - (rest[0] - scores[-1]).clamp(min=0)
    both = Scored(
        np.concatenate([ranked.items, rows[num:]]), torch.cat([scores, rest]), scored.basis
    )
    places = {int(row): place for place, row in enumerate(both.rows)}
    # age has taken its part before the ranker saw the scores
    found = make_list(retriever, both, k, now=now, wishes=replace(wishes, half_life_hours=None))
    return [
        _as_ranked(entry, ranked, places[retriever.items.rows[entry.item_id]]) for entry in found
    ]


def _as_ranked(entry: Recommendation, ranked: RankedItems, place: int) -> RankedRecommendation:
    """What the second stage says of an entry beside its score; below those ranked, its place."""
    is_ranked = place < len(ranked.items)
    heads = ranked.heads if is_ranked else {}
    return RankedRecommendation(
        entry.rank,
        entry.item_id,
        entry.score,
        entry.title,
        entry.basis,
        entry.probability,
        retrieval_rank=int(ranked.retrieval_rank[place]) if is_ranked else place + 1,
        heads={name: float(values[place]) for name, values in heads.items()},
    )


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
