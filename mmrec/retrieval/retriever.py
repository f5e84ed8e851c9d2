"""A trained model with its catalogue and users, from a run or a bundle: what every use starts from.

    RUN + prepared folder ─┐
                           ├─► Retriever ─► recommend, similar, score, export
    bundle ────────────────┘

`mmrec.retrieval.load` makes one.

Legend: N items of the catalogue · C candidates · D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.catalogue import Catalogue
from encoders.encoder import Transform
from mmrec.config import Config
from mmrec.data.ragged import IntArray, Ragged
from mmrec.data.told import (
    EventColumns,
    Told,
    columns_of,
    join_columns,
    request_behind,
    times_before,
    unknown_events,
)
from mmrec.errors import ItemNotFound, UserError
from mmrec.model import RecommenderModel
from mmrec.request import Request
from mmrec.retrieval.given_history import GivenEvent, HistoryEvent, in_order
from mmrec.retrieval.known import Asked, BoolArray, Items, Users
from mmrec.retrieval.parts import Parts
from mmrec.retrieval.popular import EventTimes, read_event_times
from mmrec.vectors import ItemVectors, item_vectors, modalities_of, score_vectors, user_vectors

__all__ = [
    "Asked",
    "BoolArray",
    "HistoryEvent",
    "Items",
    "MODEL_FILES",
    "Retriever",
    "Users",
]

logger = logging.getLogger(__name__)
MODEL_FILES = ("state.json", "model.safetensors", "content.safetensors")


@dataclass(frozen=True)
class Retriever:
    """A trained model with everything it is used with.

    Attributes:
        files: path of config.yaml and of what MODEL_FILES names, as far as they exist.
        state: the checkpoint's state.json.
        transforms: by modality that the model encodes; empty for a model of ids.
        content: (N, D) unit; None for a model of ids.
        item_index_of: (R,) item_index of each row of the model's id table.
        source: hashes of the data and the split, and its name.
        parts: contents by some media; None for a model of ids, or a bundle without them.
    """

    path: Path
    files: Mapping[str, Path]
    config: Config
    state: Mapping[str, Any]
    model: RecommenderModel
    transforms: Mapping[str, Transform]
    catalogue: Catalogue
    image_side: int
    items: Items
    users: Users
    content: Tensor | None
    item_index_of: IntArray
    source: Mapping[str, str]
    device: torch.device
    parts: Parts | None = None

    @property
    def knows_media(self) -> bool:
        """False for a model of ids."""
        return self.content is not None

    @property
    def dtypes(self) -> dict[str, Any]:
        """Types that states are rounded to at the cut, by cached modality."""
        return dict(self.state.get("cache_dtypes", {}))

    @cached_property
    def counts(self) -> IntArray:
        """(N,) training events of each item."""
        counts = np.zeros(len(self.items.item_ids), np.int64)
        counts[self.item_index_of] = self.model.counts.cpu().numpy().astype(np.int64)
        return counts

    @cached_property
    def event_times(self) -> EventTimes:
        """When items were met, read from all histories when it is first asked for."""
        return read_event_times(self.users)

    @cached_property
    def vectors(self) -> ItemVectors:
        """Content, embedding and popularity of every item."""
        num_items = len(self.items.item_ids)
        return item_vectors(
            self.model,
            self.content,
            self.item_index_of,
            num_items=num_items,
            has=modalities_of(self.model, self.items.has.__getitem__),
        )

    @property
    def repeats_forbidden(self) -> bool:
        """Whether a list leaves out what the user has met."""
        return self.catalogue.repeats == "forbid"

    @cached_property
    def model_hash(self) -> str:
        """sha256 of the weights and of what turns a medium into their input.

        Vectors of two hashes live in two spaces and are never mixed.
        """
        with open(self.files["model.safetensors"], "rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        names = ("encoders", "cache_dtypes", "item_ids")
        described = {name: self.state.get(name) for name in names}
        return _sha256({"weights": weights, **described})

    @cached_property
    def preprocessing_hash(self) -> str:
        """sha256 of all that happens to a medium before the first weight."""
        prints = {name: each.fingerprint() for name, each in sorted(self.transforms.items())}
        dtypes = dict(sorted(self.dtypes.items()))
        return _sha256({"transforms": prints, "image_side": self.image_side, "dtypes": dtypes})

    @cached_property
    def has_vector(self) -> BoolArray:
        """(N,) bool: False for the items of a model of ids that training never met."""
        return np.ones(len(self.counts), np.bool_) if self.knows_media else self.counts > 0

    @cached_property
    def item_side(self) -> Tensor:
        """(N, D + 1) [e, popularity]: its product with [u, 1] is the score, in units of cosine."""
        none = self.vectors.embedding.new_zeros(0, self.vectors.embedding.shape[1])
        return score_vectors(self.model, none, self.vectors)[1]

    @cached_property
    def candidate_side(self) -> Tensor:
        """(C, D + 1) of the candidates."""
        return self.item_side[torch.from_numpy(self.items.candidates).to(self.device)]

    @torch.no_grad()
    def embeddings_of_new(self, content: Tensor, modalities: Sequence[Sequence[str]]) -> Tensor:
        """What users are compared with of n new items: (n, D) contents, each of its modalities."""
        known = modalities_of(
            self.model, lambda name: np.array([name in each for each in modalities], np.bool_)
        )
        return content if known is None else self.model.embeddings_of_new(content, known)

    @torch.no_grad()
    def confidence_of_new(self, score: Tensor, modalities: Sequence[Sequence[str]]) -> Tensor:
        """How sure cosines (b, n) of n new items are, each of its modalities; NaN: not known."""
        known = modalities_of(
            self.model, lambda name: np.array([name in each for each in modalities], np.bool_)
        )
        if known is None or self.model.confidence is None:
            return torch.full_like(score, torch.nan)
        told: Tensor = self.model.confidence(score, known)
        return told

    @torch.no_grad()
    def popularity_of_new(self, embedding: Tensor) -> Tensor:
        """What items without events get beside <u, e>, in units of cosine: (n, D) -> (n,)."""
        return self.model.bias_of_new(embedding) * self.model.temperature

    def user_vectors(self, asked: Sequence[Asked]) -> Tensor:
        """(U, D) unit vectors; zeros for an empty history."""
        histories, told, embedding = self.as_told(asked)
        return user_vectors(self.model, embedding, histories, told)

    def as_told(self, asked: Sequence[Asked]) -> tuple[Ragged, Told | None, Tensor]:
        """Users as the model reads them: histories, what is told, and (n, D) that rows stand for.

        A taste is one more row behind the items' embeddings, met last.
        """
        embedding, rows, events = self.vectors.embedding, [], []
        tastes: list[Tensor] = []
        for each in asked:
            rows.append(each.history)
            events.append(each.events)
            if each.taste is not None:
                rows[-1] = np.append(each.history, len(embedding) + len(tastes))
                events.append(unknown_events(1, list(each.events.context)))
                tastes.append(each.taste)
        if tastes:
            embedding = torch.cat([embedding, torch.stack(tastes)])
        told = None
        if self.model.reader is not None:
            told = Told(
                join_columns(events),
                join_columns([each.request for each in asked]),
                [each.attributes for each in asked],
            )
        return Ragged.from_rows(rows), told, embedding

    def stored_user(self, user_index: int, request: Request | None = None) -> Asked:
        """A stored user: his complete history, without the items the split holds out."""
        complete = self.users.complete(user_index)
        items = complete.item_index
        kept = np.flatnonzero(self.has_vector[items] & ~self.items.held_out[items])
        return self._asked(
            self.users.user_ids[user_index],
            items[kept],
            seen=np.unique(items),
            events=columns_of(complete).take(kept),
            request=request,
            attributes=self.users.attributes(user_index),
        )

    def _asked(
        self,
        user_id: str,
        history: IntArray,
        *,
        seen: IntArray,
        events: EventColumns,
        request: Request | None,
        attributes: Mapping[str, Any],
        num_unknown: int = 0,
    ) -> Asked:
        """A user with his events as they follow each other in what the model is shown."""
        asked = (request or Request()).columns(self.catalogue)
        return Asked(
            user_id,
            history,
            seen,
            events=replace(events, before=times_before(events.time)),
            request=request_behind(events, asked),
            attributes=attributes,
            num_unknown=num_unknown,
        )

    def stored_users(self, user_ids: Iterable[str]) -> tuple[list[int], list[str]]:
        """Rows of known users in the order given, once each, and the ids that are not known.

        Raises:
            ItemNotFound: none of them is known.
        """
        rows = {user_id: self.users.index_of(user_id) for user_id in map(str, user_ids)}
        known = [row for row in rows.values() if row is not None]
        unknown = [user_id for user_id, row in rows.items() if row is None]
        if not known:
            raise ItemNotFound(
                f"no known user among {_some(unknown)}; {self.path} knows "
                f"{len(self.users.user_ids):,} users, {_some(self.users.user_ids[:3])} among them"
            )
        return known, unknown

    def given_user(
        self,
        history: Sequence[HistoryEvent],
        user_id: str = "",
        *,
        request: Request | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Asked:
        """A history that comes with the question; no stored user is needed.

        Unknown items are dropped and counted. Events come oldest first; where every one carries
        a time they are put in its order, ties as given. Items that a split held out are used like
        any other, since their content is known.

        Args:
            history: oldest first.
            user_id: that the answer carries.
            request: when and where it is asked.
            attributes: of the user, by the catalogue's names.

        Raises:
            ItemNotFound: items were given and none is known.
            UserError: a type of event, a context or an attribute is not the catalogue's.
        """
        events = in_order(history)
        ids = [event.item_id for event in events]
        known = [event for event in events if event.item_id in self.items.rows]
        if ids and not known:
            raise ItemNotFound(
                f"no known item among {_some(ids)}; ids are those of "
                f"the catalogue, such as {_some(self.items.item_ids[:3])}"
            )
        num_unknown = len(events) - len(known)
        if num_unknown:
            logger.warning("%d of %d items of the history are not known", num_unknown, len(events))
        items = np.array([self.items.rows[event.item_id] for event in known], np.int64)
        kept = np.flatnonzero(self.has_vector[items])
        return self._asked(
            user_id,
            items[kept],
            seen=np.unique(items),
            events=self._columns(known).take(kept),
            request=request,
            attributes=self._checked_attributes(attributes or {}),
            num_unknown=num_unknown,
        )

    def _columns(self, events: Sequence[GivenEvent]) -> EventColumns:
        """What a given history says of its events."""
        columns = unknown_events(len(events), self.catalogue.interactions.context)
        types = () if self.model.reader is None else self.model.reader.spec.event_types
        codes = {name: code for code, name in enumerate(types)}
        for row, event in enumerate(events):
            if event.time is not None:
                columns.time[row] = int(event.time)
            if event.value is not None:
                columns.value[row] = event.value
            if event.type is not None and types:
                if event.type not in codes:
                    raise UserError(
                        f"event type '{event.type}' is none of the log's: {', '.join(types)}"
                    )
                columns.event[row] = codes[event.type]
        return columns

    def _checked_attributes(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Attributes whose names the catalogue knows."""
        users = self.catalogue.users
        names = [] if users is None else list(users.attributes)
        stray = sorted(set(attributes) - set(names))
        if stray:
            raise UserError(
                f"attribute '{stray[0]}' is none of the users': the catalogue has "
                f"{', '.join(names) or 'none'}"
            )
        return attributes

    def item_index(self, item_id: str) -> int:
        """Row of an item.

        Raises:
            ItemNotFound: it is not in the catalogue.
        """
        row = self.items.rows.get(str(item_id))
        if row is None:
            raise ItemNotFound(
                f"item '{item_id}' is not in the catalogue of {len(self.items.item_ids):,} items; "
                f"ids are such as {_some(self.items.item_ids[:3])}"
            )
        return row

    def require_media(self, what: str) -> None:
        """Refuses a question about content where the model has none.

        Raises:
            UserError: `item: id`.
        """
        if not self.knows_media:
            raise UserError(
                f"{what}: the model in {self.path} knows ids only (model.item is 'id'); train one "
                "with model.item=both or content"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3:,} more" if len(names) > 3 else shown


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
