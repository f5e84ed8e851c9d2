"""From scored candidates to a list: what is forbidden, what is wished for, in which order.

    scores (C,) ─ age ─ conditions, availability ─ soft wishes ─ threshold ─ order or variety ─► K

Without wishes it is the K best, ties in the order of the catalogue; where the run's settings say so
(`evaluation.new_last`), new items stand behind the others among the first of a user's list.

Legend: N items of the catalogue · C candidates · K list length.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.explain import Explanation
from mmrec.retrieval.filters import all_hold
from mmrec.retrieval.preferences import weigh
from mmrec.retrieval.rerank import (
    POOL,
    Limit,
    choose_in_order,
    choose_varied,
    gain_of,
    new_last,
)
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.wishes import NO_WISHES, MaxPer, Wishes

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Basis = Literal["history", "taste", "attributes", "request", "popularity", "content", "search"]
OF_USERS: tuple[Basis, ...] = ("history", "taste", "attributes", "request")  # in cosine
FoundBy = Literal["text", "meaning", "both"]


@dataclass(frozen=True)
class Recommendation:
    """One item of a list.

    Attributes:
        rank: place in the list, from 1.
        item_id: external id.
        score: in units of cosine; training events of the item where the basis is popularity. Soft
            wishes are in it.
        title: the item's first text, None where it has none.
        basis: what the score was made from. Without a history it is what the user says he likes,
            what is known of him, or of the request, as far as the model reads such things, or
            `popularity`.
        probability: that this is the next of all items that might be listed; None: not asked for.
        similar: items nearest to it in content; empty where none were asked for.
        why: what its score is made of; None: not asked for.
        found_by: of a search: its `text` has words of the query, its content is near in `meaning`,
            or `both`; None of other lists.
    """

    rank: int
    item_id: str
    score: float
    title: str | None
    basis: Basis
    probability: float | None = None
    similar: tuple[Recommendation, ...] = ()
    why: Explanation | None = None
    found_by: FoundBy | None = None


@dataclass(frozen=True)
class Scored:
    """Candidates of one question before a list is chosen.

    Attributes:
        rows: (C,) item_index.
        scores: (C,), -inf of what may not be listed.
        basis: what they were made from.
    """

    rows: IntArray
    scores: Tensor
    basis: Basis


def make_list(
    retriever: Retriever, scored: Scored, k: int, *, now: float, wishes: Wishes = NO_WISHES
) -> list[Recommendation]:
    """The K candidates that a list of these scores and wishes shows.

    Args:
        retriever: the model and its items.
        scored: the candidates.
        k: how many.
        now: Unix seconds at which items must be available and age is counted.
        wishes: what the list is asked to be like.
    """
    scores = allowed_scores(retriever, scored, now, wishes)
    if wishes.prefer or wishes.novelty:
        scores = weigh(
            wishes.prefer, retriever.items.attributes, scored.rows, scores,
            novelty=wishes.novelty, counts=retriever.counts if wishes.novelty else None,
        )  # fmt: skip
    probabilities = None
    if wishes.probabilities:  # before any threshold: the list is a part of what might be next
        probabilities = _probabilities(retriever, scores, scored.basis)
    if wishes.at_least is not None:
        scores = scores.masked_fill(scores < wishes.at_least, -torch.inf)
    places = _choose(retriever, scored.rows, scores, k, wishes)
    places_of_new = retriever.config.evaluation.new_last
    if places_of_new is not None and scored.basis in OF_USERS:
        places = places[new_last(retriever.counts[scored.rows[places]] == 0, places_of_new)]
    items, rows = retriever.items, scored.rows[places]
    found = [
        Recommendation(rank, items.item_ids[row], score, items.titles[row], scored.basis)
        for rank, (row, score) in enumerate(
            zip(rows.tolist(), scores[places].tolist(), strict=True), 1
        )
    ]
    if probabilities is not None:
        chances = probabilities[places].tolist()
        found = [replace(each, probability=p) for each, p in zip(found, chances, strict=True)]
    return found


def allowed_scores(retriever: Retriever, scored: Scored, now: float, wishes: Wishes) -> Tensor:
    """Scores (C,) of which age has taken its part, -inf of what a list may not show."""
    scores = _faded(retriever, scored, now, wishes.half_life_hours)
    allowed = allowed_items(retriever, now, wishes)
    if allowed is None:
        return scores
    kept = torch.from_numpy(allowed[scored.rows]).to(scores.device)
    return scores.masked_fill(~kept, -torch.inf)


def allowed_items(retriever: Retriever, now: float, wishes: Wishes) -> BoolArray | None:
    """(N,) True = neither availability nor a hard wish forbids the item; None: nothing does."""
    items, masks = retriever.items, []
    if items.available is not None:
        masks.append(items.available.at(now))
    if wishes.where:
        masks.append(all_hold(wishes.where, items.attributes))
    if wishes.without:
        rows = [items.rows[each] for each in wishes.without if each in items.rows]
        if len(rows) < len(wishes.without):
            absent = len(wishes.without) - len(rows)
            logger.warning("%d items that are not to be listed are not known", absent)
        wanted = np.ones(len(items.item_ids), np.bool_)
        wanted[rows] = False
        masks.append(wanted)
    return np.logical_and.reduce(masks) if masks else None


def _faded(
    retriever: Retriever, scored: Scored, now: float, half_life_hours: float | None
) -> Tensor:
    """Scores (C,) of which age has taken its part."""
    if half_life_hours is None:
        return scored.scores
    lives = _half_lives(retriever, now, half_life_hours)[scored.rows]
    faded = torch.from_numpy(lives).to(scored.scores) * math.log(2)
    if scored.basis == "popularity":
        return scored.scores * torch.exp(-faded)
    return scored.scores - faded * retriever.model.temperature.detach()


def _choose(
    retriever: Retriever, rows: IntArray, scores: Tensor, k: int, wishes: Wishes
) -> IntArray:
    """Places of the candidates that are listed, in order; ties in the order of the catalogue."""
    order = scores.sort(descending=True, stable=True).indices
    if not wishes.diversity and not wishes.max_per:
        order = order[:k]
    places = order[torch.isfinite(scores[order])].cpu().numpy()
    limits = [_limit(retriever, each, rows[places]) for each in wishes.max_per]
    if not wishes.diversity:
        return places[choose_in_order(range(len(places)), k, limits)]
    pool = places[: POOL * k]
    vectors = retriever.vectors.embedding if retriever.content is None else retriever.content
    known = torch.from_numpy(rows[pool]).to(vectors.device)
    gain = gain_of(
        wishes.diversify_by,
        scores[torch.from_numpy(pool).to(scores.device)].double().cpu().numpy(),
        vectors[known].double().cpu().numpy(),
        wishes.diversity,
    )
    chosen = choose_varied(gain, len(pool), k, limits)
    # limits may have closed the pool: what lies below it fills the list
    rest = choose_in_order(range(len(pool), len(places)), k - len(chosen), limits)
    return places[chosen + rest]


def _limit(retriever: Retriever, wish: MaxPer, rows: IntArray) -> Limit:
    """A limit over the items in some rows."""
    attributes = retriever.items.attributes
    attributes.require(wish.field, "limit")
    if wish.field in attributes.numbers:
        raise UserError(f"limit of '{wish.field}': it is a number; name a category or a set")
    return Limit(attributes.words[wish.field].rows.take(rows), wish.most)


def _probabilities(retriever: Retriever, scores: Tensor, basis: Basis) -> Tensor:
    """(C,) softmax over all that might be listed; of popularity, shares of the events."""
    if basis == "popularity":
        counts = scores.masked_fill(~torch.isfinite(scores), 0).clamp(min=0)
        return counts / counts.sum().clamp(min=1e-12)
    return (scores / retriever.model.temperature.detach()).softmax(0)


def _half_lives(retriever: Retriever, now: float, half_life_hours: float) -> FloatArray:
    """(N,) ages of items in half-lives."""
    spec, available = retriever.catalogue.items.available, retriever.items.available
    if spec is None or spec.start is None or available is None:
        raise UserError(
            f"the half-life is {half_life_hours:g} hours, but the catalogue file names no column "
            "items.available.from, which age is counted from; add it and prepare again"
        )
    return available.half_lives(now, half_life_hours)


def check_k(k: int) -> None:
    """Refuses lists of no items.

    Raises:
        UserError: k is below 1.
    """
    if k < 1:
        raise UserError(f"k is {k}: give how many items to list, 1 at least")
