"""Tables of new items, which may have any subset of the catalogue's columns of media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from data_prep.catalogue import Catalogue
from data_prep.errors import DataError
from data_prep.interactions import MEDIA


def keep_columns(catalogue: Catalogue, found: Sequence[str]) -> Catalogue:
    """The catalogue of a table with only some of its columns of media and attributes."""
    items = catalogue.items
    kept = items.model_copy(
        update={
            "where": None,
            "attributes": {name: s for name, s in items.attributes.items() if name in found},
            "available": None,
            "vectors": {name: c for name, c in items.vectors.items() if c in found},
            **{
                kind: tuple(column for column in getattr(items, kind) if column in found)
                for kind in ("text", *MEDIA)
            },
        }
    )
    return catalogue.model_copy(update={"items": kept})


def column_names(path: Path) -> list[str]:
    """Names of a table's columns.

    Raises:
        DataError: no such table, or it cannot be read.
    """
    scans: dict[str, Callable[[Path], pl.LazyFrame]] = {
        ".csv": partial(pl.scan_csv, infer_schema=False),
        ".jsonl": partial(pl.scan_ndjson, infer_schema_length=None),
        ".parquet": pl.scan_parquet,
    }
    scan = scans.get(path.suffix.lower())
    if scan is None or not path.is_file():
        raise DataError(f"{path}: no such table; allowed are files in {', '.join(scans)}")
    try:
        return scan(path).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
