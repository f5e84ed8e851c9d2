"""The log of shown lists: who was shown what, at which place, with which chance, by which model.

    ShownList ─ many in a transaction ─► table shown_lists ─ in the order written ─► mmrec events

A list is one row. Rows older than a number of days are forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import JSON, BigInteger, Column, Double, Integer, MetaData, String, Table, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

if TYPE_CHECKING:
    from sqlalchemy import Engine

_PAGE = 2_000


@dataclass(frozen=True)
class ShownList:
    """A list as a user was shown it, best place first.

    Attributes:
        request_id: of the answer; events may name it.
        user_id: whom it was shown to.
        time: Unix seconds at which it was answered.
        model: hash of the model; None where what is popular stood in for it.
        version: name of the model among the versions; None likewise.
        strategy: what the list was made from, `basis` of its first item.
        item_ids: at places 1, 2, …
        propensities: of each item the probability with which it came to stand at its place; 1
            unless places are explored.
    """

    request_id: str
    user_id: str
    time: float
    model: str | None
    version: str | None
    strategy: str
    item_ids: Sequence[str]
    propensities: Sequence[float]


class ShownLog:
    """The table of shown lists.

    Args:
        engine: of the service's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._metadata = engine, MetaData()
        self._table = Table(
            "shown_lists",
            self._metadata,
            # SQLite numbers rows by itself where the key is INTEGER alone
            Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("request_id", String, nullable=False, unique=True),
            Column("user_id", String, nullable=False),
            Column("time", Double, nullable=False, index=True),
            Column("model", String),
            Column("version", String),
            Column("strategy", String, nullable=False),
            Column("item_ids", JSON, nullable=False),
            Column("propensities", JSON, nullable=False),
        )

    def prepare(self) -> None:
        """Makes the table where it is absent; several workers may do so at once.

        Raises:
            DBAPIError: the database does not answer.
        """
        try:
            self._metadata.create_all(self._engine)
        except (OperationalError, ProgrammingError, IntegrityError):
            # the other one was first: what is still missing now is a fault
            self._metadata.create_all(self._engine)

    def add(self, lists: Sequence[ShownList]) -> None:
        """Keeps lists; they are on disk when it returns."""
        rows = [
            {
                **vars(each),
                "item_ids": list(each.item_ids),
                "propensities": list(each.propensities),
            }
            for each in lists
        ]
        with self._engine.begin() as connection:
            connection.execute(self._table.insert(), rows)

    def all(self) -> Iterator[ShownList]:
        """Every list in the order in which they were kept, a page at a time."""
        table, last = self._table, 0
        while True:
            with self._engine.connect() as connection:
                page = select(table).where(table.c.number > last).order_by(table.c.number)
                rows = connection.execute(page.limit(_PAGE)).all()
            if not rows:
                return
            for row in rows:
                yield ShownList(*row[1:])
            last = rows[-1].number

    def makers(self, request_ids: Collection[str]) -> dict[str, tuple[str, str | None]]:
        """Whom lists were shown to and the hash of the model that made each, by request_id.

        Lists that are not in the log are left out.
        """
        table = self._table
        asked = select(table.c.request_id, table.c.user_id, table.c.model)
        with self._engine.connect() as connection:
            rows = connection.execute(asked.where(table.c.request_id.in_(request_ids))).all()
        return {row.request_id: (row.user_id, row.model) for row in rows}

    def forget(self, before: float) -> int:
        """Deletes lists that were shown before an instant in Unix seconds; returns how many."""
        with self._engine.begin() as connection:
            old = self._table.delete().where(self._table.c.time < before)
            return int(connection.execute(old).rowcount)
