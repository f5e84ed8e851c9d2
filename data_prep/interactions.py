"""Reads items, users and the log as the catalogue file describes them.

In: a catalogue and the folder its tables lie in. Out: polars frames with the project's column
names. All ids are strings. The log is ordered within each user, ties in file order; what cannot be
used (unknown items, users with too few events) is handed back with its reason, never lost.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data_prep.catalogue import AttributeSpec, Catalogue
from data_prep.tables import ROW, Field, Kind, read_table, refuse_duplicates, table_path

MICROSECONDS = 1_000_000
MEDIA = ("image", "audio", "video")


@dataclass(frozen=True)
class EventSelection:
    """The usable part of a log and the rest.

    Attributes:
        events: usable rows, in the order they came.
        rejected: the others: row (1-based, in the table), user_id, item_id, kind ("interaction"
            or, for all events of a user with too few, "user"), reason; by row.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame


def read_items(catalogue: Catalogue, source: Path, *, table: Path | None = None) -> pl.DataFrame:
    """Reads the table of items, in its order.

    Args:
        catalogue: says which columns are what.
        source: folder of tables and media.
        table: another table of the same columns instead of the catalogue's.

    Returns:
        item_id (String) and the catalogue's columns under their own names: text, media paths and
        categories as String (null where missing), sets as List(String), numbers as Float64,
        vectors as List(Float32). A column with several uses is String where one of them is text.
        Instants of availability are Int64 Unix seconds, also as `available.from` and
        `available.until`. Paths of media are relative to the source folder; where the table lies
        in a folder below it, paths may also start from that folder.

    Raises:
        DataError: no such table or column, a wrong type, an empty or duplicate id (with rows).
    """
    spec = catalogue.items
    path = table_path(source, spec.table, "items.table") if table is None else _given(table)
    fields = [Field("item_id", spec.id, "items.id", "id", missing=("",), required=True)]
    for kind in ("text", *MEDIA):
        for column in getattr(spec, kind):
            fields.append(Field(column, column, f"items.{kind}", "text", spec.missing))
    fields += _attribute_fields(spec.attributes, "items", spec.missing)
    for name, column in spec.vectors.items():
        fields.append(Field(column, column, f"items.vectors.{name}", "vector"))
    if spec.available is not None:
        instants = {"from": spec.available.start, "until": spec.available.until}
        for end, given in instants.items():
            if given is not None:
                key = f"items.available.{end}"
                fields.append(
                    Field(key.removeprefix("items."), given, key, "instant", spec.missing)
                )
                fields.append(Field(given, given, key, "instant", spec.missing))
    items = read_table(path, _once(fields), where=spec.where, section="items")
    refuse_duplicates(items, "item_id", path=path, what="item id")
    instants_read = [f.name for f in _once(fields) if f.kind == "instant"]
    items = items.with_columns(pl.col(instants_read).floordiv(MICROSECONDS)).drop(ROW)
    return _media_from_source(items, catalogue, source=source, folder=path.parent)


def read_users(catalogue: Catalogue, source: Path) -> pl.DataFrame | None:
    """Reads the table of users: user_id (String) and attributes, in its order.

    Returns:
        None where the catalogue has no users.

    Raises:
        DataError: no such table or column, a wrong type, an empty or duplicate id (with rows).
    """
    spec = catalogue.users
    if spec is None:
        return None
    path = table_path(source, spec.table, "users.table")
    fields = [Field("user_id", spec.id, "users.id", "id", missing=("",), required=True)]
    fields += _attribute_fields(spec.attributes, "users", spec.missing)
    users = read_table(path, _once(fields), where=spec.where, section="users")
    refuse_duplicates(users, "user_id", path=path, what="user id")
    return users.drop(ROW)


def read_interactions(catalogue: Catalogue, source: Path) -> pl.DataFrame:
    """Reads the log, users together and each in order.

    A user's events are sorted by `order` where the catalogue has it, else by time to the
    microsecond; ties keep the order of the file (53 % of ML-1M's events share the previous
    timestamp). Users come in the order of their ids.

    Returns:
        user_id, item_id (String, null where empty), row (Int64, 1-based in the table) and, where
        the catalogue names them, order (Int64), time (Int64 Unix seconds, null where unknown),
        event (String), value (Float64), context.NAME (String).

    Raises:
        DataError: no such table or column, a value that is no number or instant (with its row).
    """
    spec = catalogue.interactions
    path = table_path(source, spec.table, "interactions.table")
    # Order must be there in every row; a row without the time that should order it is rejected
    # later, since logs do have a few of them.
    wanted: list[tuple[str, str | None, Kind]] = [
        ("user", spec.user, "id"),
        ("item", spec.item, "id"),
        ("order", spec.order, "whole"),
        ("time", spec.time, "instant"),
        ("event", spec.event, "text"),
        ("value", spec.value, "number"),
        *((f"context.{name}", name, "text") for name in spec.context),
    ]
    fields = []
    for name, column, kind in wanted:
        if column is None:
            continue
        given = spec.missing.get(column, ())
        missing = given if isinstance(given, tuple) else (given,)
        fields.append(
            Field(
                f"{name}_id" if kind == "id" else name,
                column,
                f"interactions.{name.split('.')[0]}",
                kind,
                missing=("", *missing) if kind in ("id", "text") else missing,
                required=name == "order",
            )
        )
    log = read_table(path, fields, where=spec.where, section="interactions")
    by = "order" if spec.order is not None else "time"
    log = log.sort("user_id", by, ROW, nulls_last=True)
    if spec.time is not None:
        log = log.with_columns(pl.col("time").floordiv(MICROSECONDS))
    names = [f.name for f in fields]
    return log.select("user_id", "item_id", pl.col(ROW).alias("row"), *names[2:])


def select_events(
    interactions: pl.DataFrame, item_ids: Collection[str], *, min_events: int
) -> EventSelection:
    """Parts a log into what can be used and what cannot, with reasons.

    A user's events are counted after rows that cannot be used are gone.

    Args:
        interactions: as `read_interactions` gives them.
        item_ids: ids of the items there are.
        min_events: users with fewer are set aside.
    """
    known = pl.Series("item_id", list(item_ids), dtype=pl.String)
    unordered = "time" in interactions.columns and "order" not in interactions.columns
    reason = (
        pl.when(pl.col("user_id").is_null())
        .then(pl.lit("no user id"))
        .when(pl.col("item_id").is_null())
        .then(pl.lit("no item id"))
        .when(~pl.col("item_id").is_in(known.implode()))
        .then(pl.lit("unknown item"))
        .when(pl.col("time").is_null() if unordered else pl.lit(False))
        .then(pl.lit("no time"))
    )
    judged = interactions.with_columns(reason=reason)
    num_usable = pl.col("reason").is_null().sum().over("user_id")
    too_few = pl.col("reason").is_null() & (num_usable < min_events)
    judged = judged.with_columns(
        kind=pl.when(too_few).then(pl.lit("user")).otherwise(pl.lit("interaction")),
        reason=pl.when(too_few)
        .then(pl.format("user has fewer than {} events: {}", pl.lit(min_events), num_usable))
        .otherwise(pl.col("reason")),
    )
    rejected = judged.filter(pl.col("reason").is_not_null()).sort("row")
    return EventSelection(
        events=judged.filter(pl.col("reason").is_null()).drop("reason", "kind"),
        rejected=rejected.select("row", "user_id", "item_id", "kind", "reason"),
    )


def _given(table: Path) -> Path:
    """A table named by hand may lie anywhere; only its ending and existence are checked."""
    return table_path(table.parent, table.name, "table")


def _attribute_fields(
    attributes: Mapping[str, AttributeSpec], section: str, missing: Sequence[str]
) -> list[Field]:
    kinds: dict[str, Kind] = {"category": "text", "set": "set", "number": "number"}
    return [
        Field(
            column,
            column,
            f"{section}.attributes.{column}",
            kinds[spec.type],
            missing,
            separator=spec.separator,
        )
        for column, spec in attributes.items()
    ]


def _once(fields: Sequence[Field]) -> list[Field]:
    """Keeps the first field of each name: text comes before numbers and instants."""
    return list({field.name: field for field in reversed(fields)}.values())[::-1]


def _media_from_source(
    items: pl.DataFrame, catalogue: Catalogue, *, source: Path, folder: Path
) -> pl.DataFrame:
    """Rewrites paths that start from the table's folder so that they start from the source."""
    root = os.path.realpath(source)
    below = os.path.relpath(os.path.realpath(folder), root)
    columns = [name for kind in MEDIA for name in getattr(catalogue.items, kind)]
    if below == "." or below.startswith("..") or not columns:
        return items

    def from_source(path: str) -> str:
        beside = os.path.normpath(os.path.join(below, path))
        inside = not os.path.normpath(path).startswith("..")
        if beside.startswith("..") or (inside and os.path.exists(os.path.join(root, path))):
            return path
        return beside

    return items.with_columns(
        pl.col(name).map_elements(from_source, return_dtype=pl.String) for name in columns
    )
