"""Turns the log into indexed events and a split of them into a folder of history shards.

read_interactions ─► index_events (ids -> rows, unknown ones set aside) ─► make_split
─► splits/NAME: histories-train-*.tar, histories-full-*.tar, targets, items, manifest
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.build_items import Progress, convert_attributes
from data_prep.catalogue import Catalogue
from data_prep.errors import DataError
from data_prep.interactions import select_events
from data_prep.quarantine import Quarantine
from data_prep.shard_format import SPLIT_SCHEMA
from data_prep.shard_writer import file_record, write_histories, write_json
from data_prep.shards import PreparedData
from data_prep.splits import make_split

_USERS_A_SLICE = 512
"""Users whose events are Python objects at one time."""
_CONTEXT = "context."


@dataclass(frozen=True)
class IndexedLog:
    """The log with ids replaced by rows.

    `events` has user_index, item_index and the log's own columns, users ascending, each in his
    order; `user_ids` by user_index; `num_rows` counts the rows of the raw log, `num_deleted` those
    of them on items that were deleted.
    """

    events: pl.DataFrame
    user_ids: list[str]
    event_types: list[str]
    num_rows: int
    num_deleted: int = 0


def index_events(
    log: pl.DataFrame,
    *,
    table: str,
    item_ids: Sequence[str],
    known_users: Sequence[str],
    quarantine: Quarantine | None,
    deleted: Sequence[str] = (),
) -> IndexedLog:
    """Replace ids by rows; events on items that are not known are set aside.

    Events on deleted items are dropped from histories too: what is not in the table is no longer
    known. They are counted apart, since a log keeps them for ever and nothing about them is wrong.

    Args:
        log: as `read_interactions` gives it.
        table: its name, for places.
        item_ids: by item_index.
        known_users: ids that keep their row; others follow in the order of the raw table.
        quarantine: takes events on unknown items; None where they were listed before.
        deleted: ids of `item_ids` that are no longer in the catalogue.
    """
    num_rows = len(log)
    if deleted:
        log = log.filter(~pl.col("item_id").is_in(list(deleted)).fill_null(False))
    num_deleted = num_rows - len(log)
    selection = select_events(log, item_ids, min_events=1)
    if quarantine is not None:
        columns = selection.rejected.select("row", "user_id", "item_id", "reason")
        for row, user_id, item_id, reason in columns.iter_rows():
            quarantine.add(
                "interaction",
                place=f"{table} row {row}",
                id=item_id or "",
                reason=reason,
                user_id=user_id,
            )
        quarantine.check_share("interaction", num_rows)
    items = pl.DataFrame(
        {"item_id": item_ids, "item_index": np.arange(len(item_ids), dtype=np.int64)},
        schema_overrides={"item_id": pl.String},
    )
    events = selection.events.join(items, on="item_id", how="left", maintain_order="left")
    seen = events.sort("row")["user_id"].unique(maintain_order=True).to_list()
    user_ids = list(dict.fromkeys([*known_users, *seen]))
    users = pl.DataFrame(
        {"user_id": user_ids, "user_index": np.arange(len(user_ids), dtype=np.int64)},
        schema_overrides={"user_id": pl.String},
    )
    events = (
        events.join(users, on="user_id", how="left", maintain_order="left")
        .drop("user_id", "item_id", "row")
        .sort("user_index", maintain_order=True)
    )
    event_types: list[str] = []
    if "event" in events.columns:
        event_types = sorted(events["event"].drop_nulls().unique().to_list())
    return IndexedLog(events, user_ids, event_types, num_rows, num_deleted)


def write_users(
    path: Path, log: IndexedLog, users: pl.DataFrame | None, catalogue: Catalogue
) -> None:
    """Write users.parquet: user_index, user_id and typed attributes, null where not known."""
    columns: dict[str, list[Any]] = {}
    types: dict[str, Any] = {}
    if users is not None and catalogue.users is not None:
        specs = catalogue.users.attributes
        rows = {row["user_id"]: row for row in users.iter_rows(named=True)}
        typed = [
            convert_attributes(rows[user_id], specs) if user_id in rows else {}
            for user_id in log.user_ids
        ]
        kinds = {"number": pl.Float64, "category": pl.String, "set": pl.List(pl.String)}
        for name, spec in specs.items():
            columns[name] = [values.get(name) for values in typed]
            types[name] = kinds[spec.type]
    frame = pl.DataFrame(
        {
            "user_index": np.arange(len(log.user_ids), dtype=np.int64),
            "user_id": log.user_ids,
            **columns,
        },
        schema_overrides={"user_id": pl.String, **types},
        strict=False,
    )
    write_parquet(frame, path)


def build_split(
    data: PreparedData,
    catalogue: Catalogue,
    log: IndexedLog,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write one split into an empty folder, its manifest last.

    Users with fewer than `split.min_events` events are set aside, with all their events.

    Returns:
        The manifest.

    Raises:
        DataError: nobody is left, or the protocol does not fit the log.
    """
    spec = catalogue.split
    items = data.items
    met, shown = part_shown(log.events, catalogue.interactions.shown)
    with Quarantine(folder / "quarantine.jsonl") as quarantine:
        events = _drop_short_users(replace(log, events=met), spec.min_events, quarantine)
    tables = make_split(
        events,
        spec,
        repeats=catalogue.repeats,
        num_items=len(items),
        item_ids=items.item_ids,
        groups=items.duplicate_groups,
        targets=catalogue.interactions.targets,
    )
    codes = {name: code for code, name in enumerate(data.manifest["event_types"])}
    for name, frame in (("train", tables.train), ("full", events)):
        frame = frame.sort("user_index", maintain_order=True)
        histories = _iter_histories(frame, codes)
        if len(shown):
            hidden = None if name == "full" else _cold_items(tables.items)
            histories = _with_shown(histories, _Shown(shown, frame, hidden=hidden))
        total = frame["user_index"].n_unique()
        write_histories(
            folder, f"histories-{name}", _counted(histories, f"histories {name}", total, progress)
        )
    for which, targets in tables.targets.items():
        write_parquet(targets, folder / f"targets-{which}.parquet")
    write_parquet(tables.items, folder / "items.parquet")
    manifest = {
        "schema": SPLIT_SCHEMA,
        "name": spec.name,
        "protocol": spec.protocol,
        "hash": tables.hash,
        "data_hash": data.data_hash,
        "spec": spec.model_dump(mode="json", by_alias=True),
        "targets": catalogue.interactions.targets.model_dump(mode="json"),
        "counts": tables.summary,
        "cold": {
            role: [
                items.item_ids[index]
                for index in tables.items.filter(pl.col("role") == role)["item_index"].to_list()
            ]
            for role in ("cold_validation", "cold_test")
        },
        "quarantine": quarantine.by_reason(),
        "files": {
            path.name: file_record(path) for path in sorted(folder.iterdir()) if path.is_file()
        },
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a table aside, then rename it."""
    part = path.with_name(path.name + ".part")
    frame.write_parquet(part, compression="zstd", statistics=False)
    part.rename(path)


def _drop_short_users(log: IndexedLog, min_events: int, quarantine: Quarantine) -> pl.DataFrame:
    counts = log.events.group_by("user_index").len().sort("user_index")
    short = counts.filter(pl.col("len") < min_events)
    for user_index, count in short.iter_rows():
        quarantine.add(
            "user",
            place=f"user_index {user_index}",
            id=log.user_ids[user_index],
            reason="too few events",
            num_events=count,
        )
    if len(short) == len(counts):
        raise DataError(
            f"no user has {min_events} events or more, of {len(counts)} users in the log; "
            "check the columns of interactions or lower split.min_events"
        )
    return log.events.join(short, on="user_index", how="anti", maintain_order="left")


def _iter_histories(
    frame: pl.DataFrame, codes: dict[str, int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """KEY.json of each user; a few users at a time, so that memory does not grow with the log."""
    if frame.is_empty():
        return
    users = frame["user_index"].to_numpy()
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    ends = np.append(starts[1:], len(users))
    names = [name for name in ("order", "time", "event", "value") if name in frame.columns]
    context = [name for name in frame.columns if name.startswith(_CONTEXT)]
    for group in range(0, len(starts), _USERS_A_SLICE):
        first = starts[group]
        stop = ends[min(group + _USERS_A_SLICE, len(ends)) - 1]
        part = frame.slice(first, stop - first)
        columns = {name: part[name].to_list() for name in ["item_index", *names, *context]}
        if "event" in columns:
            columns["event"] = [codes.get(name, -1) for name in columns["event"]]
        for start, end in zip(
            starts[group : group + _USERS_A_SLICE],
            ends[group : group + _USERS_A_SLICE],
            strict=True,
        ):
            rows = slice(start - first, end - first)
            arrays: dict[str, Any] = {n: columns[n][rows] for n in ["item_index", *names]}
            if context:
                arrays["context"] = {n.removeprefix(_CONTEXT): columns[n][rows] for n in context}
            yield int(users[start]), arrays


def part_shown(events: pl.DataFrame, types: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Parts events from what was only shown.

    Args:
        events: users ascending, each in his order.
        types: event types that mean shown.

    Returns:
        The others, and of those shown user_index, item_index and before: how many of the user's
        others came before.
    """
    nothing = pl.DataFrame(schema=dict.fromkeys(("user_index", "item_index", "before"), pl.Int64))
    if not types:
        return events, nothing
    is_shown = pl.col("event").is_in(list(types)).fill_null(False)
    numbered = events.with_columns(before=(~is_shown).cast(pl.Int64).cum_sum().over("user_index"))
    shown = numbered.filter(is_shown).select("user_index", "item_index", "before")
    return events.filter(~is_shown), shown.cast(pl.Int64)


class _Shown:
    """What each user was shown, by the places of the events of some histories.

    Args:
        shown: as `part_shown` gives it.
        frame: events of the histories; `position` says their places where some are left out.
        hidden: items that must not be told; None: none.
    """

    def __init__(
        self, shown: pl.DataFrame, frame: pl.DataFrame, *, hidden: set[int] | None
    ) -> None:
        if hidden:
            shown = shown.filter(~pl.col("item_index").is_in(list(hidden)))
        groups = shown.group_by("user_index", maintain_order=True).agg("item_index", "before")
        self._shown = {user: (items, before) for user, items, before in groups.iter_rows()}
        self._places: dict[int, list[int]] = {}
        if "position" in frame.columns:
            kept = frame.group_by("user_index", maintain_order=True).agg("position")
            self._places = dict(kept.iter_rows())

    def of(self, user: int, length: int) -> dict[str, list[int]]:
        """Items and the number of events before each; of what came before the last event."""
        items, before = self._shown.get(user, ([], []))
        places = np.array(self._places.get(user, range(length)), np.int64)
        # an event at place p has p others before it: as many of the kept ones as lie below
        found = np.searchsorted(places, np.array(before, np.int64), side="left")
        kept = [(item, int(n)) for item, n in zip(items, found, strict=True) if n < length]
        return {"item_index": [item for item, _ in kept], "before": [n for _, n in kept]}


def _with_shown(
    histories: Iterator[tuple[int, dict[str, Any]]], shown: _Shown
) -> Iterator[tuple[int, dict[str, Any]]]:
    """KEY.json with what the user was shown between his events."""
    for user, arrays in histories:
        yield user, {**arrays, "shown": shown.of(user, len(arrays["item_index"]))}


def _cold_items(items: pl.DataFrame) -> set[int]:
    cold = items.filter(pl.col("role").str.starts_with("cold"))
    return set(cold["item_index"].to_list())


def _counted(
    histories: Iterator[tuple[int, dict[str, Any]]],
    what: str,
    total: int,
    progress: Progress | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    for done, history in enumerate(histories, start=1):
        yield history
        if progress is not None:
            progress(what, done, total)
