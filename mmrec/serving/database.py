"""Events, added items and versions of the model in a database: SQLite, or PostgreSQL by its URL.

    writer ─ one transaction: counter, rows ─► database ─ rows above a number ─► reader

The counter is moved first in a transaction and keeps its row locked to the end, so transactions of
a table commit in the order of their numbers: who has read up to a number has missed none below it.
A write is on disk when it returns. Written twice (the same event_id, the same item) it counts once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from mmrec.errors import UserError
from mmrec.serving.tables import BUSY_S, SHOWN, Tables, pragmas

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

Counter = Literal["events", "items", "versions"]
What = Literal["added", "removed", "restored", "patched"]
DATABASE_ERRORS = (DBAPIError, PoolTimeout)
"""What is raised where a database does not answer."""
MAX_EVENTS_OF_USER = 10_000
_PAGE = 5_000


@dataclass(frozen=True)
class Event:
    """Something a user did, as it is kept.

    `time` and `received` are Unix seconds; None of the second: not kept yet. `request_id` is of the
    list that it answers, None where none is known.
    """

    event_id: str
    user_id: str
    item_id: str
    event: str | None = None
    value: float | None = None
    time: float | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    received: float | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class StoredMedium:
    """A medium of an item as it came out of the door, `data_prep.media.normalise`."""

    slot: str
    kind: str
    extension: str
    data: bytes


@dataclass(frozen=True)
class StoredItem:
    """An item that was added.

    Attributes:
        item_id: external id.
        texts: by column of the catalogue.
        attributes: typed, by the catalogue's names.
        media: in the order of the catalogue's columns.
        vectors: ready-made ones, by name.
        digest: sha256 over all of these.
    """

    item_id: str
    texts: Mapping[str, str]
    attributes: Mapping[str, Any]
    media: Sequence[StoredMedium]
    vectors: Mapping[str, Sequence[float]]
    digest: str


@dataclass(frozen=True)
class ItemChange:
    """An item that was added, removed, restored after it was removed, or patched.

    Attributes:
        number: of the change.
        item_id: of the item.
        what: became of it.
        texts: by column.
        attributes: by name; of a patch those that change, None where not known any more.
        modalities: that its content is made of.
        content: float32 bytes of ĉ in one model's space; None: not encoded by that model yet.
    """

    number: int
    item_id: str
    what: What
    texts: Mapping[str, str]
    attributes: Mapping[str, Any]
    modalities: Sequence[str]
    content: bytes | None


class Database:
    """The database behind every worker.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://USER@HOST/NAME`.

    Raises:
        UserError: the URL is of no known kind, or an extra is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine, self._tables = _engine(url), Tables()

    def prepare(self) -> None:
        """Makes the tables where they are absent; several workers may do so at once.

        Raises:
            DBAPIError: the database does not answer.
        """
        self._tables.create(self._engine)

    @property
    def engine(self) -> Engine:
        """Its connections, for tables that are kept beside its own."""
        return self._engine

    def close(self) -> None:
        """Closes its connections."""
        self._engine.dispose()

    def numbers(self) -> dict[str, int]:
        """The number of the last write to each table: events, items, versions."""
        with self._reading() as connection:
            rows = connection.execute(self._tables.read_counters)
            return {name: value for name, value in rows}

    def add_events(self, events: Sequence[Event]) -> set[str]:
        """Keeps events that are not there yet, in order; returns the ids of those."""
        tables = self._tables
        unique = {each.event_id: each for each in events}
        with self._engine.begin() as connection:
            last = self._move(connection, "events", len(unique))
            known = set(connection.scalars(tables.known_events, {"event_ids": list(unique)}))
            fresh = [each for event_id, each in unique.items() if event_id not in known]
            if fresh:
                first, now = last - len(unique) + 1, time.time()
                rows = [
                    {**vars(each), "context": dict(each.context), "number": number, "received": now}
                    for number, each in enumerate(fresh, first)
                ]
                connection.execute(tables.events.insert(), rows)
        return {each.event_id for each in fresh}

    def events_of(self, user_ids: Sequence[str]) -> dict[str, list[Event]]:
        """What some users did, oldest first as it was sent; of very many events the last ones."""
        found: dict[str, list[Event]] = {user_id: [] for user_id in user_ids}
        with self._reading() as connection:
            for user_id, events in found.items():
                rows = connection.execute(
                    self._tables.events_of_user, {"user_id": user_id, "most": MAX_EVENTS_OF_USER}
                ).all()
                events += [_event(row) for row in reversed(rows)]
        return found

    def first_shown(self, list_ids: Iterable[str]) -> dict[str, Event]:
        """What stood first in kept lists, by their ids; lists that nobody kept are left out."""
        places = {place_id(list_id, 1): list_id for list_id in list_ids}
        with self._reading() as connection:
            rows = connection.execute(self._tables.events_of_ids, {"event_ids": list(places)}).all()
        return {places[row.event_id]: _event(row) for row in rows if row.event == SHOWN}

    def all_events(self) -> Iterator[Event]:
        """Every event in the order in which they were accepted, a page at a time."""
        last = 0
        while True:
            with self._reading() as connection:
                rows = connection.execute(
                    self._tables.events_after, {"number": last, "most": _PAGE}
                ).all()
            if not rows:
                return
            yield from map(_event, rows)
            last = rows[-1].number

    def add_item(
        self, item: StoredItem, *, model_hash: str, modalities: Sequence[str], content: bytes
    ) -> bool:
        """Keeps an item with its media and its content; False where the very same is there."""
        tables = self._tables
        with self._engine.begin() as connection:
            number = self._move(connection, "items", 1)
            newest = connection.execute(tables.newest_item, {"item_id": item.item_id}).first()
            if newest is not None and newest.what == "added" and newest.digest == item.digest:
                return False
            connection.execute(
                tables.items.insert(),
                {
                    "number": number,
                    "item_id": item.item_id,
                    "what": "added",
                    "digest": item.digest,
                    "texts": dict(item.texts),
                    "attributes": dict(item.attributes),
                    "vectors": {name: list(each) for name, each in item.vectors.items()},
                },
            )
            media = [
                {"number": number, "place": place, **vars(medium)}
                for place, medium in enumerate(item.media)
            ]
            if media:
                connection.execute(tables.item_media.insert(), media)
            connection.execute(
                tables.item_vectors.insert(),
                _vector_row(number, model_hash, modalities, content),
            )
        return True

    def list_item(self, item_id: str, listed: bool) -> None:
        """Keeps that an item that is there is to be listed no longer, or again."""
        self._change_item(item_id, "restored" if listed else "removed", {})

    def patch_item(self, item_id: str, attributes: Mapping[str, Any]) -> None:
        """Keeps new values of some attributes of an item that is there; None: not known."""
        self._change_item(item_id, "patched", attributes)

    def item_changes(self, after: int, model_hash: str) -> list[ItemChange]:
        """What became of items above a number, in order, as one model sees them."""
        with self._reading() as connection:
            rows = connection.execute(
                self._tables.items_after, {"number": after, "model_hash": model_hash}
            )
            return [
                ItemChange(row.number, row.item_id, row.what, row.texts, row.attributes,
                           row.modalities or [], row.content)
                for row in rows
            ]  # fmt: skip

    def item(self, number: int) -> StoredItem:
        """An item that was added, with its media."""
        with self._reading() as connection:
            row = connection.execute(self._tables.item_by_number, {"number": number}).one()
            media = connection.execute(self._tables.media_of_item, {"number": number})
            return StoredItem(
                row.item_id, row.texts, row.attributes,
                [StoredMedium(each.slot, each.kind, each.extension, each.data) for each in media],
                row.vectors, row.digest,
            )  # fmt: skip

    def added_item(self, item_id: str) -> StoredItem | None:
        """The item that was added last under an id, with its media; None: none was."""
        with self._reading() as connection:
            number = connection.scalar(self._tables.newest_added, {"item_id": item_id})
        return None if number is None else self.item(number)

    def add_vector(
        self, number: int, *, model_hash: str, modalities: Sequence[str], content: bytes
    ) -> None:
        """Keeps an added item's content in another model's space, unless it is there."""
        tables = self._tables
        with self._engine.begin() as connection:
            self._move(connection, "versions", 0)  # one writer at a time
            where = {"number": number, "model_hash": model_hash}
            if connection.execute(tables.vector_of_item, where).first() is None:
                row = _vector_row(number, model_hash, modalities, content)
                connection.execute(tables.item_vectors.insert(), row)

    def add_version(self, version: str, model_hash: str) -> None:
        """Keeps which version of the model every worker is to answer with."""
        with self._engine.begin() as connection:
            number = self._move(connection, "versions", 1)
            row = {"number": number, "version": version, "model_hash": model_hash,
                   "received": time.time()}  # fmt: skip
            connection.execute(self._tables.versions.insert(), row)

    def version(self) -> str | None:
        """The version that was named last."""
        with self._reading() as connection:
            row = connection.execute(self._tables.last_version).first()
        return None if row is None else str(row.version)

    def keep_popular(self, items: Sequence[tuple[str, str | None, float]]) -> None:
        """Keeps the most popular items (id, title, events), for the day the model is not there."""
        tables = self._tables
        rows = [
            {"rank": rank, "item_id": item_id, "title": title, "events": events}
            for rank, (item_id, title, events) in enumerate(items)
        ]
        with self._engine.begin() as connection:
            self._move(connection, "versions", 0)
            connection.execute(tables.popular.delete())
            if rows:
                connection.execute(tables.popular.insert(), rows)

    def popular(self) -> list[tuple[str, str | None, float]]:
        """The most popular items that are not removed, most popular first."""
        with self._reading() as connection:
            rows = connection.execute(self._tables.popular_items).all()
            removed = set(connection.scalars(self._tables.removed_items))
        return [(row.item_id, row.title, row.events) for row in rows if row.item_id not in removed]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def _change_item(self, item_id: str, what: What, attributes: Mapping[str, Any]) -> None:
        with self._engine.begin() as connection:
            number = self._move(connection, "items", 1)
            row = {"number": number, "item_id": item_id, "what": what, "digest": "", "texts": {},
                   "attributes": dict(attributes), "vectors": {}}  # fmt: skip
            connection.execute(self._tables.items.insert(), row)

    def _move(self, connection: Connection, counter: Counter, by: int) -> int:
        """Moves a counter and holds it until the transaction ends; returns its new value."""
        where = {"which": counter, "by": by}
        return int(connection.execute(self._tables.move_counter, where).scalar_one())


def place_id(list_id: str, rank: int) -> str:
    """Id of the event that shows the item at a place of a list, from 1."""
    return f"{list_id}-{rank}"


def _event(row: Row[Any]) -> Event:
    return Event(
        row.event_id,
        row.user_id,
        row.item_id,
        row.event,
        row.value,
        row.time,
        row.context,
        row.received,
        row.request_id,
    )


def _vector_row(
    number: int, model_hash: str, modalities: Sequence[str], content: bytes
) -> dict[str, Any]:
    return {"number": number, "model_hash": model_hash, "modalities": list(modalities),
            "content": content}  # fmt: skip


def _engine(url: str) -> Engine:
    """Connections to a database of a known kind."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        kind = make_url(url).get_backend_name()
        if kind == "sqlite":
            engine = create_engine(url, connect_args={"timeout": BUSY_S})
            event.listen(engine, "connect", pragmas)
            return engine
        if kind == "postgresql":
            return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 2})
    except (ArgumentError, NoSuchModuleError):
        pass
    except ImportError:
        raise UserError(
            "a PostgreSQL database needs psycopg: pip install 'mmrec[postgres]'"
        ) from None
    raise UserError(
        "--database is no URL of a known kind: write sqlite:///FILE or "
        "postgresql+psycopg://USER@HOST/NAME"
    )
