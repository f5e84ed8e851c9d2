"""Makes an index of items of any kind, and opens one that was saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from mmrec.errors import CheckpointMismatch, UserError
from mmrec.retrieval.indexes.database import ATTRIBUTES_FILE, Database, DatabaseIndex
from mmrec.retrieval.indexes.local import LOCAL_KINDS, LocalIndex
from mmrec.retrieval.indexes.manifest import read_manifest
from mmrec.retrieval.indexes.protocol import ItemIndex, check_attributes
from mmrec.retrieval.indexes.recall import RECALL, Recall
from mmrec.retrieval.indexes.rows import FloatArray

IndexKind = Literal["exact", "int8", "ivf", "hnsw", "lancedb", "qdrant"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
COLLECTION = "mmrec"


def build_index(
    kind: IndexKind,
    item_ids: Sequence[str],
    vectors: FloatArray,
    *,
    model_hash: str,
    attributes: pl.DataFrame | None = None,
    queries: FloatArray | None = None,
    wanted_recall: float = RECALL,
    url: str | None = None,
    collection: str = COLLECTION,
) -> ItemIndex:
    """An index of items.

    Args:
        kind: of `INDEX_KINDS`.
        item_ids: (N), each once.
        vectors: (N, D), [embedding, popularity].
        model_hash: of the model that made the vectors.
        attributes: N rows, as of `ItemIndex.add`.
        queries: (Q, D), [embedding, 1]; every second one tunes the index, the others judge it.
        wanted_recall: share of the exact best 100 that a search is to find, in (0, 1].
        url: of the Qdrant server.
        collection: how the name of its collection begins.

    Raises:
        UserError: an unknown kind, a URL missing or out of place, or what does not fit.
    """
    if kind not in INDEX_KINDS:
        raise UserError(f"--kind is {kind!r}: allowed are {', '.join(INDEX_KINDS)}")
    if not 0 < wanted_recall <= 1:
        raise UserError(f"--recall is {wanted_recall:g}, allowed is above 0 and at most 1")
    if (kind == "qdrant") != (url is not None):
        raise UserError(f"--kind is {kind}, --url is {url}: qdrant has a URL, the others have none")
    named: dict[str, Any] = {
        "model_hash": model_hash,
        "attributes": attributes,
        "queries": queries,
        "wanted_recall": wanted_recall,
    }
    if kind in LOCAL_KINDS:
        return LocalIndex.build(kind, item_ids, vectors, **named)
    check_attributes(attributes, attributes, len(item_ids))
    from mmrec.retrieval.indexes.conditions import AttributeColumns

    columns, width = AttributeColumns.of(attributes), vectors.shape[-1]
    database: Database
    if url is None:
        from mmrec.retrieval.indexes.lancedb import LanceDatabase

        database = LanceDatabase.create(width=width, columns=columns, model_hash=model_hash)
    else:
        from mmrec.retrieval.indexes.qdrant import QdrantDatabase

        database = QdrantDatabase.create(
            url, collection, width=width, columns=columns, model_hash=model_hash
        )
    return DatabaseIndex.build(database, item_ids, vectors, **named)


def load_index(folder: Path) -> ItemIndex:
    """Opens an index that was saved.

    Raises:
        CheckpointMismatch: no finished index, another schema or kind, a file was changed, or
            vectors of several models lie in its database.
        UserError: its library is not installed, or its server does not answer.
    """
    manifest = read_manifest(folder)
    kind = manifest["kind"]
    if kind in LOCAL_KINDS:
        return LocalIndex.load(folder)
    if kind not in INDEX_KINDS:
        raise CheckpointMismatch(
            f"{folder}: kind {kind!r} is not known; this version reads {', '.join(INDEX_KINDS)}"
        )
    from mmrec.retrieval.indexes.conditions import AttributeColumns

    file = folder / ATTRIBUTES_FILE
    attributes = pl.read_parquet(file) if file.is_file() else None
    named = {
        "width": manifest["dimension"],
        "columns": AttributeColumns.of(attributes),
        "model_hash": manifest["model_hash"],
        **manifest["parameters"],
    }
    database: Database
    if kind == "lancedb":
        from mmrec.retrieval.indexes.lancedb import LanceDatabase

        database = LanceDatabase.open(folder.resolve(), **named)
    else:
        from mmrec.retrieval.indexes.qdrant import QdrantDatabase

        database = QdrantDatabase.open(**named)
    recall = manifest["recall"]
    return DatabaseIndex(
        database,
        model_hash=manifest["model_hash"],
        attributes=attributes,
        wanted_recall=manifest["wanted_recall"],
        recall=recall and Recall.of_document(recall),
    )
