"""Tables of the service's database, and every statement that reads or writes them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
    bindparam,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

COUNTERS = ("events", "items", "versions")
SHOWN = "shown"
"""Type of the events that say what a list showed; they are no events of a history."""
BUSY_S = 5.0
"""Seconds that a writer waits for another one of SQLite."""


class Tables:
    """The tables and the statements on them."""

    def __init__(self) -> None:
        self.metadata = MetaData()
        self.counters = Table(
            "counters",
            self.metadata,
            Column("counter", String, primary_key=True),
            Column("value", BigInteger, nullable=False),
        )
        self.events = Table(
            "events",
            self.metadata,
            Column("number", BigInteger, primary_key=True, autoincrement=False),
            Column("event_id", String, nullable=False, unique=True),
            Column("user_id", String, nullable=False),
            Column("item_id", String, nullable=False),
            Column("event", String),
            Column("value", Double),
            Column("time", Double),
            Column("context", JSON, nullable=False),
            Column("received", Double, nullable=False),
            Column("request_id", String),
            Index("events_of_user", "user_id", "number"),
        )
        self.items = Table(
            "items",
            self.metadata,
            Column("number", BigInteger, primary_key=True, autoincrement=False),
            Column("item_id", String, nullable=False),
            Column("what", String, nullable=False),
            Column("digest", String, nullable=False),
            Column("texts", JSON, nullable=False),
            Column("attributes", JSON, nullable=False),
            Column("vectors", JSON, nullable=False),
            Index("items_of_id", "item_id", "number"),
        )
        self.item_media = Table(
            "item_media",
            self.metadata,
            Column("number", BigInteger, primary_key=True, autoincrement=False),
            Column("place", Integer, primary_key=True, autoincrement=False),
            Column("slot", String, nullable=False),
            Column("kind", String, nullable=False),
            Column("extension", String, nullable=False),
            Column("data", LargeBinary, nullable=False),
        )
        self.item_vectors = Table(
            "item_vectors",
            self.metadata,
            Column("number", BigInteger, primary_key=True, autoincrement=False),
            Column("model_hash", String, primary_key=True),
            Column("modalities", JSON, nullable=False),
            Column("content", LargeBinary, nullable=False),
        )
        self.versions = Table(
            "versions",
            self.metadata,
            Column("number", BigInteger, primary_key=True, autoincrement=False),
            Column("version", String, nullable=False),
            Column("model_hash", String, nullable=False),
            Column("received", Double, nullable=False),
        )
        self.popular = Table(
            "popular",
            self.metadata,
            Column("rank", Integer, primary_key=True, autoincrement=False),
            Column("item_id", String, nullable=False),
            Column("title", Text),
            Column("events", Double, nullable=False),
        )
        self._statements()

    def _statements(self) -> None:
        events, items, vectors = self.events, self.items, self.item_vectors
        number: Any = bindparam("number")
        most: Any = bindparam("most")
        self.read_counters = select(self.counters.c.counter, self.counters.c.value)
        self.move_counter = (
            self.counters.update()
            .where(self.counters.c.counter == bindparam("which"))
            .values(value=self.counters.c.value + bindparam("by"))
            .returning(self.counters.c.value)
        )
        self.known_events = select(events.c.event_id).where(
            events.c.event_id.in_(bindparam("event_ids", expanding=True))
        )
        self.events_of_ids = select(events).where(
            events.c.event_id.in_(bindparam("event_ids", expanding=True))
        )
        self.events_of_user = (
            select(events)
            .where(events.c.user_id == bindparam("user_id"), events.c.event.is_distinct_from(SHOWN))
            .order_by(events.c.number.desc())
            .limit(most)
        )
        self.events_after = (
            select(events).where(events.c.number > number).order_by(events.c.number).limit(most)
        )
        self.newest_item = (
            select(items.c.what, items.c.digest)
            .where(items.c.item_id == bindparam("item_id"))
            .order_by(items.c.number.desc())
            .limit(1)
        )
        own = and_(
            vectors.c.number == items.c.number, vectors.c.model_hash == bindparam("model_hash")
        )
        self.newest_added = (
            select(items.c.number)
            .where(items.c.item_id == bindparam("item_id"), items.c.what == "added")
            .order_by(items.c.number.desc())
            .limit(1)
        )
        self.items_after = (
            select(items, vectors.c.modalities, vectors.c.content)
            .select_from(items.outerjoin(vectors, own))
            .where(items.c.number > number)
            .order_by(items.c.number)
        )
        self.item_by_number = select(items).where(items.c.number == number)
        self.media_of_item = (
            select(self.item_media)
            .where(self.item_media.c.number == number)
            .order_by(self.item_media.c.place)
        )
        self.vector_of_item = select(vectors.c.number).where(
            vectors.c.number == number, vectors.c.model_hash == bindparam("model_hash")
        )
        self.last_version = (
            select(self.versions.c.version).order_by(self.versions.c.number.desc()).limit(1)
        )
        self.popular_items = select(self.popular).order_by(self.popular.c.rank)
        newest = (
            select(func.max(items.c.number))
            .where(items.c.what != "patched")
            .group_by(items.c.item_id)
        )
        self.removed_items = select(items.c.item_id).where(
            items.c.what == "removed", items.c.number.in_(newest)
        )

    def create(self, engine: Engine) -> None:
        """Makes what is absent; another worker may be doing the same."""
        try:
            self.metadata.create_all(engine)
        except (OperationalError, ProgrammingError, IntegrityError):
            # the other one was first: what is still missing now is a fault
            self.metadata.create_all(engine)
        _add_request_id(engine)
        for counter in COUNTERS:
            where = self.counters.c.counter == counter
            with engine.connect() as connection:
                found = connection.execute(select(self.counters).where(where)).first()
            if found is None:
                try:
                    with engine.begin() as connection:
                        connection.execute(self.counters.insert(), {"counter": counter, "value": 0})
                except IntegrityError:
                    pass  # the other worker's


def _add_request_id(engine: Engine) -> None:
    """Gives events of a database that an earlier version made the column that it lacks."""

    def lacks_it() -> bool:
        return all(each["name"] != "request_id" for each in inspect(engine).get_columns("events"))

    if not lacks_it():
        return
    try:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE events ADD COLUMN request_id VARCHAR"))
    except (OperationalError, ProgrammingError):
        if lacks_it():  # else another worker was first
            raise


def pragmas(connection: Any, record: Any) -> None:
    """SQLite: readers do not wait for writers, and a write is on disk when it returns."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
