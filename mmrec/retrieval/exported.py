"""Reads an export: manifest, vectors of items and users, index. No torch is needed.

    export = Export.open("exports/ml-1m")
    item_ids, items = export.items()          # (N, D + 1): [embedding, popularity]
    user_ids, users = export.users()          # (U, D + 1): [embedding, 1]
    scores, rows = export.index().search(users[:10], 10)

An inner product is the model's score in units of cosine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec.errors import CheckpointMismatch
from mmrec.retrieval.indexes.exact import ExactIndex
from mmrec.retrieval.indexes.faiss import FaissIndex
from mmrec.retrieval.indexes.rows import FloatArray, Searchable

SCHEMA = "mmrec-export/1"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Export:
    """An export that was written to its end."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Export:
        """Opens an export; sizes of files are checked, vectors are not read yet.

        Raises:
            CheckpointMismatch: no finished export, another schema, or a file was changed.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name, record in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != record["size"]:
                raise CheckpointMismatch(f"{file}: is missing or was changed; export again")
        return cls(path, manifest)

    @property
    def model_hash(self) -> str:
        """Says in which space the vectors live."""
        return str(self.manifest["model_hash"])

    def items(self) -> tuple[list[str], FloatArray]:
        """Ids and (N, D + 1) [embedding, popularity], in the order of the index.

        Raises:
            CheckpointMismatch: the file is not there, or holds vectors of another model.
        """
        ids, columns = self._read("items", ("item_id", "embedding", "popularity"))
        return ids, np.concatenate([columns["embedding"], columns["popularity"][:, None]], axis=1)

    def content(self) -> tuple[list[str], FloatArray]:
        """Ids and contents (N, D); zeros for a model of ids."""
        ids, columns = self._read("items", ("item_id", "content_embedding"))
        return ids, columns["content_embedding"]

    def users(self) -> tuple[list[str], FloatArray]:
        """Ids and (U, D + 1) [embedding, 1]; the embedding is zeros without a history."""
        ids, columns = self._read("users", ("user_id", "embedding"))
        embedding = columns["embedding"]
        one = np.ones((len(embedding), 1), np.float32)
        return ids, np.concatenate([embedding, one], axis=1)

    def index(self) -> Searchable:
        """The exported index, or exact search where none was asked for."""
        if "index.faiss" in self.manifest["files"]:
            return FaissIndex.read(self.path / "index.faiss")
        return ExactIndex(self.items()[1])

    def _read(self, what: str, names: tuple[str, ...]) -> tuple[list[str], dict[str, FloatArray]]:
        file = self.path / f"{what}.parquet"
        if file.name not in self.manifest["files"]:
            raise CheckpointMismatch(f"{file}: was not exported; use --format parquet")
        table = pq.read_table(file, columns=[*names, "model_hash"])
        check_same_model([self.model_hash, *table["model_hash"].unique().to_pylist()], str(file))
        width = int(self.manifest["dimension"])
        columns = {name: _to_array(table[name], width) for name in names[1:]}
        return table[names[0]].to_pylist(), columns


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        CheckpointMismatch: there is none, or it has another schema.
    """
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointMismatch(
            f"{file}: no readable manifest: not an export, or it was interrupted"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise CheckpointMismatch(
            f"{file}: schema {found!r} is not known; this version reads {SCHEMA!r}"
        )
    return manifest


def check_same_model(hashes: list[str], where: str) -> None:
    """Refuses to mix vectors of several models.

    Raises:
        CheckpointMismatch: the hashes differ.
    """
    different = sorted(set(hashes))
    if len(different) > 1:
        raise CheckpointMismatch(
            f"{where}: vectors of {len(different)} models are mixed (model_hash "
            f"{', '.join(each[:12] for each in different)}); export all with one model"
        )


def _to_array(column: pa.ChunkedArray, width: int) -> FloatArray:
    """(n,) of numbers or (n, D) of lists; null lists become zeros."""
    parts = []
    for chunk in column.chunks:
        if not pa.types.is_fixed_size_list(chunk.type):
            parts.append(chunk.to_numpy(zero_copy_only=False).astype(np.float32))
            continue
        part = np.zeros((len(chunk), width), np.float32)
        there = chunk.is_valid().to_numpy(zero_copy_only=False)
        part[there] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        parts.append(part)
    if not parts:
        is_list = pa.types.is_fixed_size_list(column.type)
        return np.zeros((0, width) if is_list else 0, np.float32)
    return np.concatenate(parts)
