"""Real stamps the whole way: halves of them are alike, other kinds and another language are not.

The log beside them is drawn at random, and the encoders are untrained: neither knows of halves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.prepare import prepare
from mmrec.config import parse_config
from mmrec.drift.compare import compare
from mmrec.drift.lines import large

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("restored_torch")]

CATALOGUE: dict[str, Any] = {
    "name": "stamps",
    "kind": "simulated",
    "repeats": "forbid",
    "items": {
        "table": "items.csv",
        "id": "item_id",
        "text": ["name"],
        "image": ["image"],
        "attributes": {"category": {"type": "category"}},
    },
    "interactions": {
        "table": "log.csv", "user": "user_id", "item": "item_id", "order": "position",
    },
    "split": {"protocol": "leave_one_out"},
}  # fmt: skip
CONFIG = parse_config(
    {
        "name": "stamps",
        "encoders": {
            "text": {"kind": "small", "num_tokens": 8},
            "image": {"kind": "small", "num_tokens": 4, "options": {"width": 32, "size": 32}},
        },
        "model": {"width": 32},
    }
)
Make = Callable[[pl.DataFrame, str], Path]


@pytest.fixture
def make(shared_data: Path, tmp_path: Path) -> Make:
    """Prepares some of the stamps under their names in one language."""

    def prepared(table: pl.DataFrame, language: str) -> Path:
        source = tmp_path / f"source-{len(list(tmp_path.iterdir()))}"
        source.mkdir()
        for path in table["image"]:
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shared_data / "stamps" / path, target)
        table.with_columns(pl.col(f"name_{language}").alias("name")).write_csv(source / "items.csv")
        random = np.random.default_rng(0)
        log = [
            (f"u{user}", table["item_id"][int(row)], position)
            for user in range(100)
            for position, row in enumerate(random.permutation(len(table))[: 6 + user % 8])
        ]
        names = ["user_id", "item_id", "position"]
        pl.DataFrame(log, names, orient="row").write_csv(source / "log.csv")
        catalogue = source.with_suffix(".yaml")
        catalogue.write_text(json.dumps(CATALOGUE), encoding="utf-8")
        data = source.with_suffix(".data")
        prepare(catalogue, source, data, num_workers=1)
        return data

    return prepared


@pytest.fixture(scope="module")
def stamps(shared_data: Path) -> pl.DataFrame:
    """Those that have a name in both languages."""
    table = pl.read_csv(shared_data / "stamps" / "items.csv", infer_schema=False)
    return table.filter(pl.col("name_en").is_not_null() & pl.col("name_zh").is_not_null())


def told(earlier: Path, new: Path) -> set[str]:
    """Parts and names of large gaps."""
    report = compare(new, earlier, config=CONFIG)
    return {f"{line.part} {line.name}" for line in large(report.lines)}


def halves(table: pl.DataFrame, seed: int) -> Sequence[pl.DataFrame]:
    order = np.random.default_rng(seed).permutation(len(table))
    return table[order[: len(table) // 2]], table[order[len(table) // 2 :]]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", [0, 1])
def test_halves_are_alike(make: Make, stamps: pl.DataFrame, seed: int, language: str) -> None:
    earlier, new = (make(half, language) for half in halves(stamps, seed))
    assert told(earlier, new) == set()


def test_another_language_is_told(make: Make, stamps: pl.DataFrame) -> None:
    earlier, new = halves(stamps, 0)
    found = told(make(earlier, "en"), make(new, "zh"))
    assert {"text name"} <= found <= {"text name", "text all"}


def test_another_kind_of_things_is_told(make: Make, stamps: pl.DataFrame) -> None:
    animals, food = (stamps.filter(pl.col("category") == name) for name in ("animals", "food"))
    found = told(make(animals, "en"), make(food, "en"))
    assert {"states text", "states image", "attributes category"} <= found
