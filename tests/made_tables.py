"""Made-up tables as CSV files and, beside them, the catalogue file that names their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import yaml


def things(number: int) -> pl.DataFrame:
    """Items `i0`, `i1`, … with a title each."""
    return pl.DataFrame([{"id": f"i{item}", "title": f"thing {item}"} for item in range(number)])


def write_tables(
    source: Path,
    *,
    items: pl.DataFrame,
    log: pl.DataFrame,
    users: pl.DataFrame | None = None,
    catalogue: dict[str, Any],
) -> Path:
    """Writes the tables and the catalogue file, whose path it returns.

    Args:
        source: a folder that is made.
        items: with columns `id` and `title` at least.
        log: with columns `user` and `item` at least.
        users: with a column `user` at least.
        catalogue: its sections; what they need not say is that of the columns above.
    """
    source.mkdir(parents=True)
    items.write_csv(source / "items.csv")
    log.write_csv(source / "log.csv")
    document = {
        **catalogue,
        "items": {"table": "items.csv", "id": "id", "text": ["title"]} | catalogue.get("items", {}),
        "interactions": {"table": "log.csv", "user": "user", "item": "item"}
        | catalogue["interactions"],
    }
    if users is not None:
        users.write_csv(source / "users.csv")
        document["users"] = {"table": "users.csv", "id": "user"} | catalogue["users"]
    path = source / "catalogue.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path
