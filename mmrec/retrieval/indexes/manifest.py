"""The manifest of a saved index: what it is, how much it finds, and the hash of each file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmrec.errors import CheckpointMismatch, UserError
from mmrec.retrieval.folders import check_files, file_record

SCHEMA = "mmrec-index/1"
MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path, document: dict[str, Any], *, with_files: bool = True) -> None:
    """Writes the manifest, last of a folder's files.

    Args:
        folder: holds all other files.
        document: what the kind of index says of itself.
        with_files: keep the hash of each file; of a database, which changes in place, there is
            none.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if with_files else []
    manifest = {
        "schema": SCHEMA,
        **document,
        "dtype": "float32",
        "score": "inner product of [embedding, popularity] with [embedding, 1]",
        "files": {path.name: file_record(path) for path in files},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    aside = folder / f".{MANIFEST_FILE}.partial"
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, folder / MANIFEST_FILE)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index whose files are as they were written.

    Raises:
        CheckpointMismatch: no finished index, another schema, or a file was changed.
    """
    file = folder / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointMismatch(
            f"{file}: no readable manifest: not an index, or it was interrupted"
        ) from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise CheckpointMismatch(
            f"{file}: schema {schema!r} is not known; this version reads {SCHEMA!r}"
        )
    check_files(folder, manifest["files"], remedy="build the index again")
    return dict(manifest)


def check_free(folder: Path) -> None:
    """Refuses a folder that is neither new, nor empty, nor an index.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        schema = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, TypeError, KeyError):
        schema = None
    if not str(schema).startswith("mmrec-index/"):
        raise UserError(f"--out {folder}: holds something that is no index; name a new folder")
