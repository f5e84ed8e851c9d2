"""All texts of the items, which search by words reads: from a prepared folder or from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.shards import PreparedData


class PreparedTexts(Sequence[str | None]):
    """The texts of each item in one, a line a field; None where it has none.

    Args:
        data: whose shards are read when an item is asked for.
    """

    def __init__(self, data: PreparedData) -> None:
        self._items = data.items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item_index: Any) -> Any:
        return "\n".join(self._items.text(int(item_index)).values()) or None


class StoredTexts(Sequence[str | None]):
    """The same, as `write_texts` wrote them.

    Args:
        path: read when the first item is asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _texts(self) -> pl.Series:
        return pl.read_parquet(self._path)["text"]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, item_index: Any) -> Any:
        return self._texts[int(item_index)]


def write_texts(texts: Sequence[str | None], path: Path) -> None:
    """Writes the texts of all items by item_index."""
    column = [texts[row] for row in range(len(texts))]
    pl.DataFrame({"text": column}, schema={"text": pl.String}).write_parquet(path)
