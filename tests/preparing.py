"""Runs of prepare in one process, and what a test asks of the folder they write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
from tiny_catalogue import encode, item_rows, photograph

from data_prep.prepare import PrepareSummary, prepare


def run(
    catalogue: Path, source: Path, out: Path, *overrides: str, **options: Any
) -> PrepareSummary:
    options.setdefault("num_workers", 1)
    return prepare(catalogue, source, out, overrides=overrides, **options)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def quarantine(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def many_items(source: Path, number: int) -> None:
    """Items with a picture each, and a log of three users over all of them."""
    rows = []
    for item in range(number):
        (source / "media" / f"p{item}.jpg").write_bytes(encode(photograph(40, 40, seed=item)))
        rows.append({**item_rows()[5], "id": str(item), "title": f"Title {item}"})
        rows[-1]["front"] = f"media/p{item}.jpg"
    rows[0]["vector"] = [1.0, 2.0]
    pl.DataFrame(rows, infer_schema_length=None).write_ndjson(source / "items.jsonl")
    log = "user,item,when,what,stars,device\n" + "".join(
        f"u{user},{item},{item},play,,tv\n" for user in range(3) for item in range(number)
    )
    (source / "log.csv").write_text(log)
