"""The service's events as a log that `prepare` takes.

database ─ in the order in which they were accepted ─► LOG.csv, .jsonl or .parquet
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from data_prep.catalogue import Catalogue, load_catalogue
from mmrec.errors import UserError
from mmrec.serving.database import DATABASE_ERRORS, Database, Event
from mmrec.serving.tables import SHOWN

_WRITERS: Mapping[str, Callable[[pl.DataFrame, Path], object]] = {
    ".csv": pl.DataFrame.write_csv,
    ".jsonl": pl.DataFrame.write_ndjson,
    ".parquet": pl.DataFrame.write_parquet,
}


def write_log(database: str, out: Path, catalogue: Path | None = None) -> str:
    """Writes every event, aside and then renamed.

    Args:
        database: URL.
        out: its ending says how it is written.
        catalogue: its file, whose names of columns are used; what lists showed is left out unless
            it names `shown` among its `interactions.shown`. None: user_id, item_id, order, time,
            event, value, context (JSON).

    Returns:
        One line: how many events of how many users.

    Raises:
        UserError: the ending is not known, or the database does not answer.
        DataError: the catalogue file is at fault.
    """
    write = _WRITERS.get(out.suffix)
    if write is None:
        raise UserError(f"--out {out}: allowed endings are {', '.join(_WRITERS)}")
    names = None if catalogue is None else load_catalogue(catalogue)
    source = Database(database)
    try:
        source.prepare()
        events = list(source.all_events())
    except DATABASE_ERRORS as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())[:200]
        raise UserError(f"the database does not answer: {reason}") from None
    finally:
        source.close()
    if names is not None and not (names.interactions.event and SHOWN in names.interactions.shown):
        # such a log has no place for them: each would be an item that was met
        events = [each for each in events if each.event != SHOWN]
    rows = [_row(order, event, names) for order, event in zip(_orders(events), events, strict=True)]
    table = pl.DataFrame(rows, infer_schema_length=None)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    try:
        write(table, aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    num_users = len({event.user_id for event in events})
    return f"{len(events):,} events of {num_users:,} users in {out}"


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
