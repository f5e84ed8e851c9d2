"""Small indexes of every kind: limits that spare small catalogues are lifted for them.

A plug-in of pytest: `pytest_plugins = ["index_kinds"]`. Fixture: `small_indexes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from qdrant_client import QdrantClient

from mmrec.retrieval.indexes import lancedb, local, qdrant, rescored
from mmrec.retrieval.indexes.build import IndexKind, build_index
from mmrec.retrieval.indexes.protocol import ItemIndex
from mmrec.retrieval.indexes.rows import FloatArray

MODEL, OTHER_MODEL = "a" * 64, "b" * 64
WIDTH = 5
URL = "http://qdrant.example:6333"
NAMES = ("o'brien", 'a"b', "x`y", "back\\slash", "--", "日本", "%_", "line\nbreak", "", "null")


class Servers:
    """Qdrant servers in memory, by URL; a new one where none was asked for yet."""

    def __init__(self) -> None:
        self.by_url: dict[str, QdrantClient] = {}

    def connect(self, url: str) -> QdrantClient:
        return self.by_url.setdefault(url, QdrantClient(":memory:"))

    def forget(self) -> None:
        for client in self.by_url.values():
            client.close()
        self.by_url = {}


@pytest.fixture(scope="module")
def small_indexes() -> Iterator[Servers]:
    """Every kind is itself from the first items on, and Qdrant is in memory."""
    servers = Servers()
    with pytest.MonkeyPatch.context() as patch:
        for module in (local, lancedb):
            patch.setattr(module, "MIN_ROWS", 20)
        patch.setattr(rescored, "FEW_ROWS", 0)
        patch.setattr(rescored, "FEW_SHARE", 0.0)
        patch.setattr(qdrant, "connect", servers.connect)
        yield servers
    servers.forget()


def some_vectors(number: int, seed: int) -> FloatArray:
    """(n, WIDTH), many of them equal: whole numbers, so that products are exact."""
    random = np.random.default_rng(seed)
    return random.integers(-3, 4, (number, WIDTH)).astype(np.float32)


def some_attributes(number: int, seed: int) -> pl.DataFrame:
    """Numbers, a category and a set; a part is not known, and names have signs of every kind."""
    random = np.random.default_rng(seed)
    prices = [None, float("nan"), -1.0, 0.1, 20.0, 1e300]
    sets = [None, [], *([NAMES[place], NAMES[place - 1]] for place in range(len(NAMES)))]
    return pl.DataFrame(
        {
            "price": [prices[place] for place in random.integers(len(prices), size=number)],
            "artist (main)": [
                None if place == len(NAMES) else NAMES[place]
                for place in random.integers(len(NAMES) + 1, size=number)
            ],
            "a.b": [sets[place] for place in random.integers(len(sets), size=number)],
        },
        schema={"price": pl.Float64(), "artist (main)": pl.String(), "a.b": pl.List(pl.String)},
    )


def make_index(
    kind: IndexKind, item_ids: list[str], vectors: FloatArray, **named: Any
) -> ItemIndex:
    """An index of the model `MODEL`."""
    url = URL if kind == "qdrant" else None
    return build_index(kind, item_ids, vectors, model_hash=MODEL, url=url, **named)
