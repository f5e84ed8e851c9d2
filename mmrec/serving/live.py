"""A retriever that follows the database: items come and go, users go on from where the log ends.

    Retriever ──────────────────┐
    items added, items removed ─┼─► Live.retriever, which every list is made from as ever
    events of the users asked ──┘

An added item is its content, as any item without events, and a candidate from the moment it is
added. One thread owns all of this and changes it between questions alone.

Legend: N items of the catalogue · A items added since · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data_prep.shards import UNKNOWN_TIME, History
from mmrec.data.told import UNKNOWN_EVENT, EventColumns, columns_of, join_columns, unknown_events
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.available import ALWAYS, FOR_EVER, Available
from mmrec.retrieval.lexical import LexicalIndex, read_words
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.retriever import BoolArray, Items, Retriever
from mmrec.retrieval.search import Query, Searcher
from mmrec.retrieval.second_stage import SecondStage
from mmrec.serving.database import Event, ItemChange
from mmrec.serving.growing import Chained, GrowingRows
from mmrec.serving.patches import Patches
from mmrec.vectors import ItemVectors


@dataclass(frozen=True)
class AddedItem:
    """An item as it joins the others.

    Attributes:
        item_id: of no other item that is listed.
        texts: by the catalogue's columns, in their order.
        attributes: by name.
        modalities: that its content is made of.
        content: (D,) unit.
    """

    item_id: str
    texts: Mapping[str, str]
    attributes: Mapping[str, Any]
    modalities: Sequence[str]
    content: Tensor

    @property
    def title(self) -> str | None:
        """Its first text."""
        return next(iter(self.texts.values()), None)

    @property
    def whole_text(self) -> str | None:
        """All of its texts in one, as search by words reads them."""
        return "\n".join(self.texts.values()) or None


class Live:
    """What answers: a retriever, and what has happened since it was made.

    Args:
        retriever: of a run or a bundle.
        version: its name among the versions.
        second_stage: beside it; None where there is none.
    """

    def __init__(
        self, retriever: Retriever, version: str, second_stage: SecondStage | None = None
    ) -> None:
        self.version = version
        self._source = retriever
        self._ranker = second_stage
        self._rows = dict(retriever.items.rows)
        self._item_ids = list(retriever.items.item_ids)
        self._added: list[AddedItem] = []
        self._patches = Patches()
        self._deleted = bytearray(retriever.items.deleted.astype(np.uint8).tobytes())
        self._users = LiveUsers(retriever, self._rows)
        vectors = retriever.vectors
        self._content = None if retriever.content is None else GrowingRows(retriever.content)
        self._embedding, self._bias = GrowingRows(vectors.embedding), GrowingRows(vectors.bias)
        self._side = GrowingRows(retriever.item_side)
        self._candidates = GrowingRows(retriever.candidate_side)
        self.followed = 0
        """Number of the last change of items that is in here."""
        self.retriever = self._view()
        self.searcher = Searcher(self.retriever)
        self._words: tuple[LexicalIndex, Retriever] | None = None

    @property
    def second_stage(self) -> SecondStage | None:
        """What may order lists anew, with items as they are now; None where there is none."""
        stage = self._ranker
        if stage is not None and stage.retriever is not self.retriever:
            stage = self._ranker = stage.beside(self.retriever)
        return stage

    @property
    def has_words(self) -> bool:
        """Whether the words of all items have been read."""
        return self._words is not None or self.searcher.has_words

    def read_words(self) -> None:
        """Reads the words of all items, unless they were; another thread may, as it takes long."""
        if not self.has_words:
            of = self.retriever
            self._words = (read_words(of), of)

    def search(self, query: Query, k: int, **asked: Any) -> list[Recommendation]:
        """As `Searcher.search`, with what has been read meanwhile."""
        if self._words is not None:
            self.searcher.take_words(*self._words)
            self._words = None
        return self.searcher.search(query, k, **asked)

    @property
    def model_hash(self) -> str:
        """Of the model that answers."""
        return self._source.model_hash

    @property
    def source(self) -> Retriever:
        """The retriever as it was loaded, without what has happened since."""
        return self._source

    @property
    def num_added(self) -> int:
        """A, those that were removed again among them."""
        return len(self._added)

    def lists(self, item_id: str) -> bool:
        """Whether an item is there and not removed."""
        row = self._rows.get(item_id)
        return row is not None and not self._deleted[row]

    def knows(self, item_id: str) -> bool:
        """Whether an item is there or was once."""
        return item_id in self._rows

    def is_of_catalogue(self, item_id: str) -> bool:
        """Whether an item is one of the N and not removed."""
        return self.lists(item_id) and self._rows[item_id] < len(self._source.items.item_ids)

    def apply(
        self, changes: Sequence[ItemChange], encode: Callable[[int], ItemChange | None]
    ) -> None:
        """Lets items come, go and come back, in the order in which the database numbers them.

        Args:
            changes: above `followed`.
            encode: gives a change with its content where the model has not encoded it yet; None
                where it cannot, and then the item is not listed.
        """
        # before anything is changed: where the database fails meanwhile, all stays as it was
        wholes = [
            encode(each.number) if each.what == "added" and each.content is None else each
            for each in changes
        ]
        added, is_other, is_patched = [], False, False
        for change, whole in zip(changes, wholes, strict=True):
            row = self._rows.get(change.item_id)
            if change.what == "patched":
                if row is not None:  # else this version's catalogue does not have the item
                    self._patches.put(row, change.attributes)
                    is_patched = True
            elif row is not None:  # of an item that is added, another one before it has gone
                deleted = change.what != "restored"
                is_other |= bool(self._deleted[row]) != deleted
                self._deleted[row] = deleted
            if whole is not None and whole.what == "added":
                self._rows[change.item_id] = len(self._item_ids)
                self._item_ids.append(change.item_id)
                self._deleted.append(0)
                added.append(self._added_item(whole))
            self.followed = change.number
        if added:
            self._append(added)
        if added or is_other or is_patched:
            self.retriever = self._view()
        if is_other:
            rows = torch.from_numpy(self.retriever.items.candidates).to(self._source.device)
            self._candidates = GrowingRows(self._side.rows[rows])
            self.retriever = self._view()
        if added or is_other or is_patched:
            self.searcher.follow(self.retriever)

    def use_events(self, events: Mapping[str, Sequence[Event]]) -> None:
        """Takes what users have done since the log ended; whoever is not named did nothing."""
        self._users.use(events)

    def _added_item(self, change: ItemChange) -> AddedItem:
        assert change.content is not None
        content = torch.from_numpy(np.frombuffer(change.content, np.float32).copy())
        spec = self._source.catalogue.items
        texts = {name: change.texts[name] for name in spec.text if change.texts.get(name)}
        return AddedItem(change.item_id, texts, change.attributes, change.modalities, content)

    def _append(self, added: Sequence[AddedItem]) -> None:
        assert self._content is not None  # nothing is encoded, so nothing added, without media
        content = torch.stack([each.content for each in added]).to(self._source.device)
        embedding = self._source.embeddings_of_new(content, [each.modalities for each in added])
        popularity = self._source.popularity_of_new(embedding)
        side = torch.cat([embedding, popularity[:, None]], 1)
        self._content.append(content)
        self._embedding.append(embedding)
        self._bias.append(popularity / self._source.model.temperature.detach())
        self._side.append(side)
        self._candidates.append(side)
        self._added += added

    def _view(self) -> Retriever:
        """The retriever as it is now; what would be computed anew of all items is handed over."""
        view = replace(
            self._source,
            items=self._items(),
            users=self._users,
            content=None if self._content is None else self._content.rows,
        )
        content = None if self._content is None else self._content.rows
        vectors = ItemVectors(content, self._embedding.rows, self._bias.rows)
        known = {
            "vectors": vectors,
            "item_side": self._side.rows,
            "candidate_side": self._candidates.rows,
            "model_hash": self._source.model_hash,
            "preprocessing_hash": self._source.preprocessing_hash,
        }
        view.__dict__.update(known)  # where cached properties keep their values
        return view

    def _items(self) -> Items:
        source, added = self._source.items, self._added
        num_added = len(added)
        deleted = np.frombuffer(self._deleted, np.bool_).copy()
        has = {
            name: np.append(there, [name in each.modalities for each in added]).astype(np.bool_)
            for name, there in source.has.items()
        }
        items = Items(
            item_ids=self._item_ids,
            titles=Chained(source.titles, [each.title for each in added]),
            has=has,
            deleted=deleted,
            is_candidate=_grown(source.is_candidate, num_added, True) & ~deleted,
            held_out=_grown(source.held_out, num_added, False),
            read_available=_available(source, num_added),
            read_attributes=self._read_attributes(added),
            read_texts=_texts(source, added),
        )
        items.__dict__["rows"] = self._rows
        return items

    def _read_attributes(self, added: Sequence[AddedItem]) -> Callable[[], ItemAttributes] | None:
        """Attributes of all items, read when a list asks for them.

        It holds no `Live`: that holds the retriever, which holds this, and a model would stand in
        memory until Python looks for such circles.
        """
        source, patches = self._source, self._patches
        specs = source.catalogue.items.attributes
        if source.items.read_attributes is None:
            return None

        def read() -> ItemAttributes:
            whole = source.items.attributes
            if added:
                behind = ItemAttributes.of([each.attributes for each in added], specs)
                both = pl.concat([whole.table(specs), behind.table(specs)])
                whole = ItemAttributes.of_table(both)
            return patches.over(whole, specs)

        return read


class LiveUsers:
    """The stored users, each with what he has done since, and users who are new.

    Args:
        source: whose users they are.
        rows: item_index by id, which grows.
    """

    def __init__(self, source: Retriever, rows: Mapping[str, int]) -> None:
        self._source, self._rows = source.users, rows
        self._context = list(source.catalogue.interactions.context)
        self._shown = frozenset(source.catalogue.interactions.shown)
        reader = source.model.reader
        self._types = (
            {} if reader is None else {n: c for c, n in enumerate(reader.spec.event_types)}
        )
        self.use({})

    def use(self, events: Mapping[str, Sequence[Event]]) -> None:
        """Takes events of the users who are asked about."""
        self._events = events
        self._new = [
            each for each in events if events[each] and self._source.index_of(each) is None
        ]

    @property
    def user_ids(self) -> Sequence[str]:
        """Of the stored users, then of new ones with events."""
        return Chained(self._source.user_ids, self._new)

    def index_of(self, user_id: str) -> int | None:
        """Row of an id, None where nothing is known of it."""
        found = self._source.index_of(user_id)
        if found is None and user_id in self._new:
            found = len(self._source.user_ids) + self._new.index(user_id)
        return found

    def complete(self, user_index: int) -> History:
        """Every event of a user, oldest first."""
        is_new = user_index >= len(self._source.user_ids)
        user_id = self.user_ids[user_index]
        known = [
            each
            for each in self._events.get(user_id, ())
            if each.item_id in self._rows and each.event not in self._shown
        ]
        if is_new:
            none = np.zeros(0, np.int64)
            before = History(user_index, none, None, None, None, None)
        else:
            before = self._source.complete(user_index)
        if not known:
            return before
        items = np.array([self._rows[each.item_id] for each in known], np.int64)
        both = join_columns([self._before(before), self._columns(known)])
        return History(
            user_index,
            np.concatenate([before.item_index, items]),
            both.time,
            both.event,
            both.value,
            {name: list(values) for name, values in both.context.items()},
        )

    def attributes(self, user_index: int) -> Mapping[str, Any]:
        """What is known of a user."""
        is_new = user_index >= len(self._source.user_ids)
        return {} if is_new else self._source.attributes(user_index)

    def _before(self, history: History) -> EventColumns:
        """The columns of the log, with every context that the catalogue names."""
        found = columns_of(history)
        absent = unknown_events(len(found), self._context).context
        return replace(found, context={**absent, **found.context})

    def _columns(self, events: Sequence[Event]) -> EventColumns:
        columns = unknown_events(len(events), self._context)
        for row, event in enumerate(events):
            columns.event[row] = self._types.get(event.event or "", UNKNOWN_EVENT)
            columns.time[row] = UNKNOWN_TIME if event.time is None else int(event.time)
            if event.value is not None:
                columns.value[row] = event.value
            for name in self._context:
                columns.context[name][row] = event.context.get(name)
        return columns


def _grown(values: BoolArray, num_added: int, value: bool) -> BoolArray:
    return np.concatenate([values, np.full(num_added, value)])


def _texts(source: Items, added: Sequence[AddedItem]) -> Callable[[], Sequence[str | None]] | None:
    """All texts of each item; None where those of the source are titles alone."""
    if source.read_texts is None:
        return None
    behind = [each.whole_text for each in added]
    return lambda: Chained(source.texts, behind)


def _available(source: Items, num_added: int) -> Callable[[], Available] | None:
    """When each item may be listed: an added one always."""
    if source.read_available is None:
        return None

    def read() -> Available:
        before = source.available
        assert before is not None
        return Available(
            np.append(before.start, np.full(num_added, ALWAYS)),
            np.append(before.until, np.full(num_added, FOR_EVER)),
        )

    return read
