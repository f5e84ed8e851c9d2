"""Adds a table of new items to a running service, by HTTP alone: no model is loaded here.

    the service's columns ─┐
    table ─────────────────┴─ rows ─ texts, attributes, files ─► POST /v1/items, one at a time

What the service refuses is named, and the others go on; an item that is there already as it is
given is left alone, so that the same command may be given again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.build_items import media_slots, resolve_medium
from data_prep.catalogue import AttributeSpec, Catalogue
from data_prep.interactions import read_items
from data_prep.new_items import column_names, keep_columns
from mmrec.errors import UserError
from mmrec.serving.client import Client, ServiceError
from mmrec.terminal import Report

logger = logging.getLogger(__name__)

_OF_ALL = (0, 401, 403, 429, 503)
"""Answers that say nothing of the item: the next one would be refused as well."""


@dataclass(frozen=True)
class Added:
    """What became of a table.

    Attributes:
        added: ids that are listed from now on.
        known: ids that were there already as they are given.
        refused: what is wrong, by id.
    """

    added: list[str]
    known: list[str]
    refused: dict[str, str]

    def line(self) -> str:
        """One line for people."""
        parts = [f"added {len(self.added):,} items"]
        parts += [f"{len(self.known):,} were there already"] if self.known else []
        parts += [f"{len(self.refused):,} refused"] if self.refused else []
        return ", ".join(parts)


def add_items(client: Client, table: Path, source: Path, *, progress: Report) -> Added:
    """Adds the items of a table, in its order.

    Args:
        client: of the service, with a key of role write where it wants one.
        table: csv, jsonl or parquet with the catalogue's columns, of those of media any subset.
        source: folder that paths of media start from and stay under.
        progress: told of each item.

    Raises:
        DataError: the table is at fault; nothing has been added.
        UserError: it has none of the catalogue's columns beside the id.
        ServiceError: the service cannot be reached, is busy, or the key is of no use; it says how
            many items had been added.
    """
    catalogue = _catalogue(client.item_columns(), table)
    rows = read_items(catalogue, source, table=table)
    done = Added([], [], {})
    for number, row in enumerate(rows.iter_rows(named=True)):
        progress("adding items", number, len(rows))
        item_id = str(row["item_id"])
        try:
            fields, files = _fields(row, catalogue), _files(row, catalogue, source)
            answer = client.add_item(item_id, fields=fields, files=files)
            (done.added if answer.created else done.known).append(item_id)
        except UserError as error:
            done.refused[item_id] = str(error)
        except ServiceError as error:
            if error.status in _OF_ALL or error.status >= 500:
                message = (
                    f"{error}; {number:,} of {len(rows):,} items had been sent: give the same "
                    "command again, what is there already stays as it is"
                )
                raise ServiceError(error.status, error.code, message, error.field) from None
            done.refused[item_id] = str(error)
        if item_id in done.refused:
            logger.warning("item '%s' is refused: %s", item_id, done.refused[item_id])
    progress("adding items", len(rows), len(rows))
    return done


def _catalogue(columns: Mapping[str, Any], table: Path) -> Catalogue:
    """The service's catalogue, with those of its columns that a table has."""
    whole = Catalogue.model_validate(
        {
            "name": "new",
            "kind": "new",
            "items": {**columns, "table": table.name},
            # a catalogue has a log; this one is never read
            "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "at"},
        }
    )
    found = column_names(table)
    kept = keep_columns(whole, found)
    if not kept.modalities:
        items = whole.items
        known = [*items.text, *items.image, *items.audio, *items.video, *items.vectors.values()]
        known += items.attributes
        raise UserError(
            f"{table}: the service knows none of its columns {', '.join(found)}; give at least one "
            f"of {', '.join(dict.fromkeys(known))}"
        )
    return kept


def _fields(row: Mapping[str, Any], catalogue: Catalogue) -> dict[str, str]:
    """Texts, attributes and vectors of a row, as the form of /v1/items has them."""
    items = catalogue.items
    fields = {name: row[name] for name in items.text if row[name]}
    for name, spec in items.attributes.items():
        if row[name] is not None:
            fields[name] = _written(row[name], spec)
    for name, column in items.vectors.items():
        if row[column] is not None:
            fields[f"vector.{name}"] = json.dumps(list(row[column]))
    return fields


def _written(value: Any, spec: AttributeSpec) -> str:
    return spec.separator.join(map(str, value)) if isinstance(value, list) else str(value)


def _files(row: Mapping[str, Any], catalogue: Catalogue, source: Path) -> dict[str, Path]:
    """Files of a row by column.

    Raises:
        UserError: one leaves the source folder, or is none.
    """
    files = {}
    for slot in media_slots(catalogue, row):
        path = resolve_medium(str(source.resolve()), slot.path)
        if path is None or not path.is_file():
            raise UserError(f"{slot.column}: {slot.path!r} is no file under {source}")
        files[slot.column] = path
    return files
