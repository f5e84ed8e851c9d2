"""An index of the items of an export: their vectors, its users to tune and judge it by.

EXPORT/items.parquet ─► ids, [e, popularity] ─┐
EXPORT/users.parquet ─► [u, 1] ───────────────┼─► build_index
DATA (optional) ─► attributes of items ───────┘
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data_prep.shards import PreparedData
from mmrec.errors import CheckpointMismatch
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.exported import Export
from mmrec.retrieval.indexes.build import COLLECTION, IndexKind, build_index
from mmrec.retrieval.indexes.local import NUM_QUERIES
from mmrec.retrieval.indexes.protocol import ItemIndex
from mmrec.retrieval.indexes.recall import RECALL
from mmrec.retrieval.indexes.rows import FloatArray


def index_export(
    export: Path,
    kind: IndexKind,
    *,
    data: Path | None = None,
    wanted_recall: float = RECALL,
    url: str | None = None,
    collection: str = COLLECTION,
) -> ItemIndex:
    """An index of an export's items.

    Args:
        export: its folder, with items.parquet and users.parquet.
        kind: of `INDEX_KINDS`.
        data: the prepared folder, whose attributes of items searches can then be filtered by.
        wanted_recall: as of `build_index`, and so are the others.
        url: of the Qdrant server.
        collection: how the name of its collection begins.

    Raises:
        CheckpointMismatch: no finished export, or the data are not those it was made of.
        UserError: as of `build_index`.
    """
    opened = Export.open(export)
    item_ids, vectors = opened.items()
    return build_index(
        kind,
        item_ids,
        vectors,
        model_hash=opened.model_hash,
        attributes=None if data is None else _attributes(opened, item_ids, data),
        queries=_queries(opened),
        wanted_recall=wanted_recall,
        url=url,
        collection=collection,
    )


def _queries(export: Export) -> FloatArray | None:
    """(Q, D): users with a history, evenly spread; None where there are not two."""
    users = export.users()[1]
    users = users[users[:, :-1].any(1)]
    return users[:: -(-len(users) // NUM_QUERIES)] if len(users) > 1 else None


def _attributes(export: Export, item_ids: list[str], folder: Path) -> pl.DataFrame | None:
    """A row an item of the export; None where the catalogue names no attributes."""
    data = PreparedData.open(folder)
    if data.data_hash != export.manifest["data_hash"]:
        raise CheckpointMismatch(
            f"--data {folder}: is not what {export.path} was made of; give that folder, or export "
            "again"
        )
    specs = data.catalogue.items.attributes
    if not specs:
        return None
    rows = {item_id: row for row, item_id in enumerate(data.items.item_ids)}
    records = [data.items.record(rows[item_id]) for item_id in item_ids]
    known = ItemAttributes.of([record.get("attributes", {}) for record in records], specs)
    return known.table(specs)
