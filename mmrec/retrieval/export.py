"""Writes the vectors of items and users so that any retrieval system can search them.

    OUT/manifest.json     hashes of model, preprocessing and data; licences, dimension, counts
    OUT/items.parquet     item_id, embedding e, content_embedding, popularity, modalities, …
    OUT/users.parquet     user_id, vector_index, embedding u, model_hash
    OUT/index.faiss       over [e, popularity]; row = row of items.parquet; asked with [u, 1];
                          flat, int8, ivf or hnsw, and any faiss reads it
    OUT/*.npy *.jsonl     the same vectors and their ids
    OUT/bundle/           see mmrec.retrieval.bundle
    OUT/user_tower.*      see mmrec.retrieval.user_tower

The score of the model is <u, e> + popularity, in units of cosine. Of a new item that lacks media
which nearly all others have, e is told from the rest; content_embedding is always what the media
say. Every item of the
catalogue that was not withdrawn has a row, in its order. Files are written into a folder beside OUT
that takes its name once it is whole: an interrupted export leaves OUT as it was. What takes long,
the vectors that models compute, is kept in another folder beside it, see `mmrec.kept_tiles`: the
same command goes on where it was, and what it writes is what it would have been.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.kept_tiles import KeptTiles, kept_while
from mmrec.request import Request
from mmrec.retrieval.bundle import write_bundle
from mmrec.retrieval.exported import MANIFEST_FILE, SCHEMA, read_manifest
from mmrec.retrieval.folders import file_record, written_aside
from mmrec.retrieval.indexes.faiss import (
    FAISS_FILE,
    FAISS_KINDS,
    MIN_ROWS,
    FaissIndex,
    FaissKind,
)
from mmrec.retrieval.indexes.recall import measure_recall, recall_at_k, tune
from mmrec.retrieval.indexes.rows import FloatArray
from mmrec.retrieval.load import load_retriever, vectors_made_of
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.user_tower import check_formats, write_user_tower
from mmrec.weights_packages import PACKAGES

logger = logging.getLogger(__name__)

FORMATS = ("parquet", "faiss", "npy")
ROW_GROUP = 16_384
RECALL_K = 10
RECALL_USERS = 1_000


def export_run(
    run: Path,
    out: Path,
    *,
    formats: Sequence[str] = ("parquet",),
    index: FaissKind = "flat",
    bundle: bool = False,
    user_tower: bool = False,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    request: Request | None = None,
    row_group: int = ROW_GROUP,
) -> dict[str, Any]:
    """Exports a run or a bundle.

    Args:
        run: a finished run or a bundle.
        out: a new or empty folder, or an earlier export, which is replaced once the new is whole.
        formats: one or several of parquet, faiss, npy.
        index: what index.faiss is, of `FAISS_KINDS`; ivf and hnsw of less than 20,000 items become
            flat. All but flat hold every vector in memory while they are made.
        bundle: add a folder that serves like the run, without the run and its data.
        user_tower: add the user model as a graph that torch alone runs; needs parquet or npy.
        data: the prepared folder where it has moved.
        overrides: `section.field=value` of settings that count in use, the bundle's too.
        request: when and where all users are asked; None: not known. The manifest holds it.
        row_group: items or users in memory at once, and a row group of the parquet files.

    Returns:
        The manifest.

    Raises:
        UserError: an unknown format or index, a context that is no column of the log, `out` holds
            something else, or another export writes there.
        CheckpointMismatch: no finished run, or other data.
        ConfigError: an override is not allowed.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        given = f"'{unknown[0]}'" if unknown else "empty"
        raise UserError(f"--format is {given}: allowed are {', '.join(FORMATS)}")
    if index not in FAISS_KINDS:
        raise UserError(f"--index is '{index}': allowed are {', '.join(FAISS_KINDS)}")
    if index != "flat" and "faiss" not in formats:
        raise UserError(f"--index is '{index}', which needs --format faiss")
    if user_tower:
        check_formats(formats)
    out = out.resolve()
    _check_free(out)
    request = request or Request()
    made_of = vectors_made_of(run, data, overrides)
    made_of["request"] = json.dumps([request.document(), row_group])
    with kept_while(out.with_name(f".{out.name}.kept"), made_of) as kept:
        retriever = load_retriever(run, data, overrides, kept)
        request.columns(retriever.catalogue)  # what cannot be asked is refused before any work
        with written_aside(out) as aside:
            manifest = _write(
                retriever,
                aside,
                formats,
                request,
                index=index,
                bundle=bundle,
                user_tower=user_tower,
                row_group=row_group,
                kept=kept,
            )
    return manifest


def _write(
    retriever: Retriever,
    folder: Path,
    formats: Sequence[str],
    request: Request,
    *,
    index: FaissKind,
    bundle: bool,
    user_tower: bool,
    row_group: int,
    kept: KeptTiles,
) -> dict[str, Any]:
    exported = np.flatnonzero(~retriever.items.deleted).astype(np.int64)
    num_users = len(retriever.users.user_ids)
    described = None
    users = partial(_users, retriever, request, row_group, kept)
    if "parquet" in formats:
        _write_parquet(folder / "items.parquet", _item_tables(retriever, exported, row_group))
        _write_parquet(folder / "users.parquet", _user_tables(retriever, users()))
    if "npy" in formats:
        _write_npy(retriever, exported, folder, users(), row_group)
    if "faiss" in formats:
        described = _write_index(retriever, exported, folder / FAISS_FILE, index, request)
    if user_tower:
        write_user_tower(retriever, folder, formats)
    files = {path.name: file_record(path) for path in sorted(folder.iterdir())}
    if bundle:
        write_bundle(retriever, folder / "bundle", kept)
    manifest = {
        "schema": SCHEMA,
        "model_hash": retriever.model_hash,
        "preprocessing_hash": retriever.preprocessing_hash,
        **retriever.source,
        "item": retriever.config.model.item,
        "encoders": sorted(retriever.transforms),
        "licences": licences(retriever),
        "dimension": retriever.model.width,
        "dtype": "float32",
        "score": "<user embedding, item embedding> + popularity, in units of cosine",
        "request": request.document(),
        "popularity_share": retriever.config.evaluation.popularity_share,
        "new_boost": retriever.config.evaluation.new_boost,
        "counts": {
            "items": len(exported),
            "items_without_events": int((retriever.counts[exported] == 0).sum()),
            "users": num_users,
        },
        "index": described,
        "bundle": "bundle" if bundle else None,
        "files": files,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return manifest


def licences(retriever: Retriever) -> dict[str, str]:
    """Licence of each encoder's pretrained weights, as far as it is known."""
    found = {}
    for modality, encoder in retriever.config.encoders.items():
        if encoder.weights is None:
            found[modality] = "none: no pretrained weights"
        elif encoder.weights in PACKAGES:
            found[modality] = PACKAGES[encoder.weights].licence
        else:
            found[modality] = f"unknown: see {encoder.weights}"
    return found


def _item_tables(retriever: Retriever, exported: IntArray, size: int) -> Iterator[pa.Table]:
    ids = retriever.items.item_ids
    width = retriever.model.width
    for rows in _parts(exported, size):
        chosen = torch.from_numpy(rows).to(retriever.device)
        side = _to_numpy(retriever.item_side[chosen])
        embedding = _list_array(side[:, :width], retriever.has_vector[rows])
        content = pa.nulls(len(rows), embedding.type)
        if retriever.content is not None:
            content = _list_array(_to_numpy(retriever.content[chosen]))
        yield pa.table(
            {
                "item_id": pa.array([ids[row] for row in rows], pa.string()),
                "embedding": embedding,
                "content_embedding": content,
                "popularity": pa.array(side[:, width]),
                "modalities": pa.array(
                    [retriever.items.modalities(int(row)) for row in rows], pa.list_(pa.string())
                ),
                "model_hash": pa.array([retriever.model_hash] * len(rows), pa.string()),
            }
        )


def _user_tables(
    retriever: Retriever, users: Iterator[tuple[IntArray, FloatArray]]
) -> Iterator[pa.Table]:
    for rows, vectors in users:
        yield pa.table(
            {
                "user_id": pa.array([retriever.users.user_ids[row] for row in rows], pa.string()),
                # one vector a user; the column is there for models with several interests
                "vector_index": pa.array(np.zeros(len(rows), np.int64)),
                "embedding": _list_array(vectors),
                "model_hash": pa.array([retriever.model_hash] * len(rows), pa.string()),
            }
        )


def _users(
    retriever: Retriever, request: Request, size: int, kept: KeptTiles
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Rows and vectors (n, D) of all users, from complete histories; zeros without one.

    They are computed once, however often they are asked for.
    """

    def compute(tiles: Sequence[IntArray]) -> Iterator[Tensor]:
        for rows in tiles:
            asked = [retriever.stored_user(int(row), request) for row in rows]
            yield retriever.user_vectors(asked).float()

    num_users = len(retriever.users.user_ids)
    vectors = kept.series("users", num_users, compute, tile=size, noun="users")
    for rows, each in zip(_parts(np.arange(num_users, dtype=np.int64), size), vectors, strict=True):
        yield rows, _to_numpy(each)


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    """One row group a table."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_npy(
    retriever: Retriever,
    exported: IntArray,
    folder: Path,
    user_parts: Iterator[tuple[IntArray, FloatArray]],
    size: int,
) -> None:
    width, num_users = retriever.model.width, len(retriever.users.user_ids)
    items: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
        "item_embeddings": (width, lambda rows: retriever.vectors.embedding[rows]),
        "item_popularity": (0, lambda rows: retriever.item_side[rows, width]),
    }
    content = retriever.content
    if content is not None:
        items["item_contents"] = (width, lambda rows: content[rows])
    for name, (columns, read) in items.items():
        array = _new_npy(folder / f"{name}.npy", len(exported), columns)
        for start, rows in zip(range(0, len(exported), size), _parts(exported, size), strict=False):
            part = read(torch.from_numpy(rows).to(retriever.device))
            array[start : start + len(rows)] = _to_numpy(part)
    _write_ids(folder / "item_ids.jsonl", (retriever.items.item_ids[row] for row in exported))
    users = _new_npy(folder / "user_embeddings.npy", num_users, width)
    for rows, vectors in user_parts:
        users[rows] = vectors
    _write_ids(folder / "user_ids.jsonl", iter(retriever.users.user_ids))


def _new_npy(path: Path, length: int, columns: int) -> FloatArray:
    """An array on disk, (length, columns) or (length,)."""
    shape = (length, columns) if columns else (length,)
    if not length:  # an empty file cannot be mapped
        np.save(path, np.zeros(shape, np.float32), allow_pickle=False)
        return np.zeros(shape, np.float32)
    array: FloatArray = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return array


def _write_ids(path: Path, ids: Iterator[str]) -> None:
    """One JSON string a line: an id may hold anything, a line break too."""
    with open(path, "w", encoding="utf-8") as file:
        for each in ids:
            file.write(json.dumps(each, ensure_ascii=False) + "\n")


def _write_index(
    retriever: Retriever, exported: IntArray, path: Path, kind: FaissKind, request: Request
) -> dict[str, Any]:
    """Writes the index; returns what the manifest says of it, recall for the first users too."""
    side = retriever.item_side
    device = retriever.device
    width = retriever.model.width + 1
    asked = min(RECALL_USERS, len(retriever.users.user_ids))
    users = retriever.user_vectors([retriever.stored_user(row, request) for row in range(asked)])
    queries = np.concatenate([_to_numpy(users), np.ones((asked, 1), np.float32)], axis=1)
    vectors = _to_numpy(side[torch.from_numpy(exported).to(device)])
    if kind in ("ivf", "hnsw") and len(exported) < MIN_ROWS:
        logger.warning(
            "index.faiss is flat: %d items are compared one and all, --index %s is for %d and more",
            len(exported),
            kind,
            MIN_ROWS,
        )
        kind = "flat"
    described: dict[str, Any] = {
        "file": path.name,
        "kind": f"{kind} inner product over [embedding, popularity]; ask with [embedding, 1]",
        "dimension": width,
        "rows": "those of the items, in order",
    }
    index = FaissIndex.build(kind, vectors, width)
    if kind == "flat":
        described[f"recall@{RECALL_K}"] = recall_at_k(index, vectors, queries, RECALL_K)
    else:
        tune(index, vectors, queries[::2])
        recall = measure_recall(index, vectors, queries[1::2])
        described |= {"parameters": index.parameters(), **recall.document()}
    index.write_file(path)
    return described


def _parts(rows: IntArray, size: int) -> Iterator[IntArray]:
    """Consecutive parts; one empty part where there are no rows."""
    for start in range(0, max(len(rows), 1), size):
        yield rows[start : start + size]


def _list_array(vectors: FloatArray, valid: Any | None = None) -> pa.Array:
    """(n, D) as fixed-size lists; null where `valid` (n,) is False."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = None if valid is None else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)


def _to_numpy(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().float().cpu().numpy()
    return array


def _check_free(out: Path) -> None:
    """Refuses a folder that is neither new, nor empty, nor an export.

    Raises:
        UserError: it holds something else.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not (out.is_dir() and (out / MANIFEST_FILE).is_file()):
        raise UserError(f"--out {out}: holds something that is no export; name a new folder")
    if out.exists():
        read_manifest(out)
