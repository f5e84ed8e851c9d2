"""The service's events, and what its lists showed, as a log that `prepare` takes.

events, shown lists ─ in the order in which they were accepted ─► LOG.csv, .jsonl or .parquet
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data_prep.catalogue import Catalogue, load_catalogue
from mmrec.errors import UserError
from mmrec.serving.database import DATABASE_ERRORS, Database, Event
from mmrec.serving.shown import ShownList, ShownLog
from mmrec.serving.tables import SHOWN

_WRITERS: Mapping[str, Callable[[pl.DataFrame, Path], object]] = {
    ".csv": pl.DataFrame.write_csv,
    ".jsonl": pl.DataFrame.write_ndjson,
    ".parquet": pl.DataFrame.write_parquet,
}


def write_log(
    database: str, out: Path, catalogue: Path | None = None, *, lists: bool = False
) -> str:
    """Writes every event, aside and then renamed.

    Args:
        database: URL.
        out: its ending says how it is written.
        catalogue: its file, whose names of columns are used; what lists showed is left out unless
            it names `shown` among its `interactions.shown`. None: user_id, item_id, order, time,
            event, value, context (JSON).
        lists: write what lists showed as well: an event of type `shown` for each place, in the
            columns above and in position, propensity and request_id, which all events then have.

    Returns:
        One line: how many events of how many users.

    Raises:
        UserError: the ending is not known, the database does not answer, or lists are wanted of a
            catalogue that does not name `shown` among its `interactions.shown`.
        DataError: the catalogue file is at fault.
    """
    write = _WRITERS.get(out.suffix)
    if write is None:
        raise UserError(f"--out {out}: allowed endings are {', '.join(_WRITERS)}")
    names = None if catalogue is None else load_catalogue(catalogue)
    has_place = names is None or (names.interactions.event and SHOWN in names.interactions.shown)
    if lists and not has_place:
        raise UserError(
            f"--lists, but {catalogue} has no place for them: give it interactions.event, and "
            f"interactions.shown: [{SHOWN}]"
        )
    source = Database(database)
    try:
        source.prepare()
        events = list(source.all_events())
        shown = _read_lists(source) if lists else []
    except DATABASE_ERRORS as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())[:200]
        raise UserError(f"the database does not answer: {reason}") from None
    finally:
        source.close()
    logged = {each.request_id for each in shown}
    # a log without a place for them would take each for an item that was met; a kept list that is
    # in the other log as well is written once
    events = [
        each
        for each in events
        if each.event != SHOWN or (has_place and each.context.get("list_id") not in logged)
    ]
    whole = list(heapq.merge(events, _places(shown), key=lambda each: each.received or 0.0))
    rows = [_row(order, event, names) for order, event in zip(_orders(whole), whole, strict=True)]
    if lists:
        rows = [_with_place(row, event) for row, event in zip(rows, whole, strict=True)]
    table = pl.DataFrame(rows, infer_schema_length=None)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    try:
        write(table, aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    num_users = len({event.user_id for event in whole})
    told = f"{len(events):,} events"
    told += f" and {len(shown):,} shown lists" if lists else ""
    return f"{told} of {num_users:,} users in {out}"


@dataclass(frozen=True)
class _Place(Event):
    """A place of a shown list, as an event."""

    position: int = 1
    propensity: float = 1.0


def _read_lists(source: Database) -> list[ShownList]:
    log = ShownLog(source.engine)
    log.prepare()
    return list(log.all())


def _places(lists: Sequence[ShownList]) -> Iterator[Event]:
    """Every place of every list."""
    for shown in lists:
        told = zip(shown.item_ids, shown.propensities, strict=True)
        for position, (item_id, propensity) in enumerate(told, 1):
            yield _Place(
                f"{shown.request_id}-{position}", shown.user_id, item_id, SHOWN, None, shown.time,
                {"model": shown.model or "none", "strategy": shown.strategy}, shown.time,
                shown.request_id, position, propensity,
            )  # fmt: skip


def _with_place(row: dict[str, object], event: Event) -> dict[str, object]:
    """A row with the columns of shown lists, unless the catalogue fills one of their names."""
    place = event if isinstance(event, _Place) else None
    told = {
        "request_id": event.request_id,
        "position": None if place is None else place.position,
        "propensity": None if place is None else place.propensity,
    }
    return row | {name: value for name, value in told.items() if row.get(name) is None}


def _orders(events: Sequence[Event]) -> list[int]:
    """Milliseconds since 1970 at which each was accepted, ascending without ties.

    They come behind whatever places or seconds an earlier log was ordered by.
    """
    orders: list[int] = []
    for event in events:
        accepted = int(1000 * (event.received or 0.0))
        orders.append(max(accepted, orders[-1] + 1) if orders else accepted)
    return orders


def _row(order: int, event: Event, catalogue: Catalogue | None) -> dict[str, object]:
    """An event under the names of the catalogue's columns, or under ours."""
    if catalogue is None:
        return {
            "user_id": event.user_id, "item_id": event.item_id, "order": order,
            "time": event.time, "event": event.event, "value": event.value,
            "context": json.dumps(dict(event.context), sort_keys=True),
        }  # fmt: skip
    log = catalogue.interactions
    columns: dict[str | None, object] = {
log.user: event.user_id, log.item: event.item_id, log.order: order,
               log.time: event.time, log.event: event.event, log.value: event.value}  # fmt: skip
    context: dict[str, object] = {name: event.context.get(name) for name in log.context}
    return {name: value for name, value in columns.items() if name is not None} | context
