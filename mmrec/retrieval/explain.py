"""Why an item is listed: what its score loses without an event of the history, or without a medium.

    user without event i ──────────► drop of event i          n passes of the user model, in batches
    item that lost modality m ─────► drop of modality m
    item without its learnt part ──► drop of what users did with it

Every figure is a difference of two scores of the model, so that what is named is what counted. Only
events of the user's own history are named, and only those whose loss lowers the score.

Legend: K items explained · n events of the history · D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.data.told import request_behind, times_before
from mmrec.errors import CheckpointMismatch
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.explanation_words import Language, in_words
from mmrec.retrieval.known import Asked
from mmrec.retrieval.parts import content_without
from mmrec.retrieval.retriever import Retriever
from mmrec.vectors import modalities_of

logger = logging.getLogger(__name__)

USERS = "users"
"""Stands among the modalities for what training learnt of an item from its users."""


@dataclass(frozen=True)
class EventReason:
    """An event of the history that an item is listed for.

    Attributes:
        item_id: what was met.
        title: its first text, None where it has none.
        ago: events back from the last one, which is 0.
        drop: what the score loses without the event.
        similarity: cosine of the two contents, None where the model knows no media.
        shared: words that both items have, by attribute.
    """

    item_id: str
    title: str | None
    ago: int
    drop: float
    similarity: float | None
    shared: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PartReason:
    """What one part of an item gives to its score.

    Attributes:
        drop: what the score loses without it; below 0 where it gains.
        share: of all drops above 0, from 0 to 1.
    """

    drop: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """Why one item is listed.

    Attributes:
        item_id: of the item.
        score: that is explained, in units of cosine, before any wish.
        popularity: the part of it that depends on how often the item was met.
        events: of the history, the largest drop first; those that lower the score alone.
        parts: by modality of the item, and `users` for what was learnt from users beside them.
        words: the same in a sentence.
    """

    item_id: str
    score: float
    popularity: float
    events: tuple[EventReason, ...]
    parts: Mapping[str, PartReason]
    words: str


def explain(
    retriever: Retriever,
    asked: Asked,
    rows: IntArray,
    *,
    basis: str,
    language: Language = "en",
    num_events: int = 3,
) -> list[Explanation]:
    """Explains the scores of some items for one user.

    Args:
        retriever: the model.
        asked: the user.
        rows: (K,) item_index of the items.
        basis: what the user's lists are made from.
        language: of the words.
        num_events: most events that are named.
    """
    user = retriever.user_vectors([asked])[0]
    side = retriever.item_side[torch.from_numpy(rows).to(retriever.device)]
    scores = side @ torch.cat([user, user.new_ones(1)])
    first, drops = event_drops(retriever, asked, rows)
    parts = _part_drops(retriever, user, rows, scores)
    attributes = _attributes(retriever)
    found = []
    for place, row in enumerate(rows.tolist()):
        order = np.argsort(-drops[place], kind="stable")[:num_events]
        events = tuple(
            _event(retriever, asked, attributes, row, first + int(at), float(drops[place, at]))
            for at in order
            if drops[place, at] > 0
        )
        has = [USERS, *retriever.items.modalities(row)]
        own = {name: float(drop[place]) for name, drop in parts.items() if name in has}
        explanation = Explanation(
            item_id=retriever.items.item_ids[row],
            score=float(scores[place]),
            popularity=float(side[place, -1]),
            events=events,
            parts=_shares(own),
            words="",
        )
        count = int(retriever.counts[row])
        found.append(replace(explanation, words=in_words(explanation, basis, count, language)))
    return found


def event_drops(
    retriever: Retriever, asked: Asked, rows: IntArray
) -> tuple[int, npt.NDArray[np.float64]]:
    """What the scores of items lose without each event of a history that the model reads.

    Args:
        retriever: the model.
        asked: the user.
        rows: (K,) item_index of the items.

    Returns:
        Place of the first event that is read, and (K, n) drops of it and those behind it.
    """
    num_events = len(asked.history)
    first = max(0, num_events - retriever.model.history.max_length)
    variants = [asked, *(_without_event(asked, place) for place in range(first, num_events))]
    users = retriever.user_vectors(variants)
    items = retriever.item_side[torch.from_numpy(rows).to(retriever.device), :-1]
    scores = (items @ users.T).double().cpu().numpy()  # (K, 1 + n); popularity cancels out
    return first, scores[:, :1] - scores[:, 1:]


def _without_event(asked: Asked, place: int) -> Asked:
    """The user as if one event had not been."""
    kept = np.delete(np.arange(len(asked.history)), place)
    events = asked.events.take(kept)
    events = replace(events, before=times_before(events.time))
    return replace(
        asked,
        history=asked.history[kept],
        events=events,
        request=request_behind(events, asked.request),
    )


def _part_drops(
    retriever: Retriever, user: Tensor, rows: IntArray, scores: Tensor
) -> dict[str, Tensor]:
    """(K,) what the scores lose without each part; nothing for a model of ids.

    NaN for the media of items that were added since the model was loaded.
    """
    if retriever.content is None:
        return {}
    drops = {}
    if retriever.model.id_part is not None:
        at = torch.from_numpy(rows).to(retriever.device)
        # popularity is the same with and without; an item that training never met has no own part
        own = (retriever.vectors.embedding[at] - retriever.content[at]) @ user
        met = torch.from_numpy(np.isin(rows, retriever.item_index_of)).to(own.device)
        drops[USERS] = own * met
    if retriever.parts is None:
        logger.warning("%s: what each medium gives is not known; export again", retriever.path)
        return drops
    known = rows < retriever.parts.num_items
    chosen = torch.from_numpy(known).to(scores.device)
    for name in retriever.transforms:
        drops[name] = torch.full_like(scores, torch.nan)
        drops[name][chosen] = scores[chosen] - _scores_without(retriever, user, rows[known], name)
    return drops


@torch.no_grad()
def _scores_without(retriever: Retriever, user: Tensor, rows: IntArray, modality: str) -> Tensor:
    """(K,) scores of items that had lost a modality: what the rest lets expect stands in for it."""
    model = retriever.model
    content = content_without(retriever, modality, rows)
    has = modalities_of(model, lambda name: retriever.items.has[name][rows])
    assert has is not None and model.completion is not None
    lost = has & torch.tensor([name == modality for name in model.completion.modalities]).to(has)
    place_of = np.full(len(retriever.counts), -1)
    place_of[retriever.item_index_of] = np.arange(len(retriever.item_index_of))
    places = torch.from_numpy(place_of[rows]).to(content.device)
    known = places >= 0  # the others are new to training, and are completed as such
    expected = model.embeddings_of_new(content, has & ~lost)
    embedding = expected.clone()
    completed = model.completion(content[known], lost[known])
    embedding[known] = model.embeddings(completed, places[known])
    counts = torch.from_numpy(retriever.counts[rows]).to(content)
    bias = model.bias(counts, expected) * model.temperature.detach()
    return embedding @ user + bias


def _shares(drops: Mapping[str, float]) -> dict[str, PartReason]:
    """Parts by the size of their drop, with the share of each; without those not known."""
    drops = {name: drop for name, drop in drops.items() if not math.isnan(drop)}
    total = sum(max(drop, 0.0) for drop in drops.values())
    return {
        name: PartReason(drop, max(drop, 0.0) / total if total > 0 else 0.0)
        for name, drop in sorted(drops.items(), key=lambda pair: -pair[1])
    }


def _event(
    retriever: Retriever,
    asked: Asked,
    attributes: ItemAttributes | None,
    row: int,
    place: int,
    drop: float,
) -> EventReason:
    met = int(asked.history[place])
    content = retriever.content
    shared: dict[str, tuple[str, ...]] = {}
    for name, words in ({} if attributes is None else attributes.words).items():
        both = [word for word in words.of(row) if word in words.of(met)]
        if both:
            shared[name] = tuple(both)
    return EventReason(
        item_id=retriever.items.item_ids[met],
        title=retriever.items.titles[met],
        ago=len(asked.history) - 1 - place,
        drop=drop,
        similarity=None if content is None else float(content[row] @ content[met]),
        shared=shared,
    )


def _attributes(retriever: Retriever) -> ItemAttributes | None:
    """None of a bundle that was written without: the rest can be told all the same."""
    try:
        return retriever.items.attributes
    except CheckpointMismatch as error:
        logger.warning("%s", error)
        return None
