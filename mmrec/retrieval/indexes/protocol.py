"""What every index of items does, wherever its vectors lie, and what all of them refuse.

    build_index(kind, …) ─► ItemIndex ─ add, remove, search, save ─► folder ─► load_index(folder)

Vectors belong to one model, whose `model_hash` comes with them: others are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from mmrec.errors import CheckpointMismatch, UserError
from mmrec.retrieval.indexes.recall import Recall
from mmrec.retrieval.indexes.rows import FloatArray

if TYPE_CHECKING:
    from mmrec.retrieval.filters import Condition


@dataclass(frozen=True)
class Hits:
    """What was found for each of Q queries, best first, at most K items each.

    item_ids: Q lists of ids.
    scores: Q arrays of inner products.
    """

    item_ids: list[list[str]]
    scores: list[FloatArray]


class ItemIndex(Protocol):
    """Vectors of items that can be searched, changed and kept.

    Attributes:
        model_hash: of the model whose vectors these are.
        recall: as it was measured when the index was built; None where it was not.
    """

    model_hash: str
    recall: Recall | None

    @property
    def kind(self) -> str:
        """`exact`, `int8`, `ivf`, `hnsw`, `lancedb` or `qdrant`."""

    @property
    def width(self) -> int:
        """D."""

    def __len__(self) -> int:
        """Items that can be found."""

    def add(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None = None,
    ) -> None:
        """Takes items in; one that is there already is replaced.

        Args:
            item_ids: (n), each once.
            vectors: (n, D).
            model_hash: of the model that made the vectors.
            attributes: n rows of the columns that the index was built with, as of
                `mmrec.retrieval.attributes`: Float64, String or List(String), null = not known.
                None where the index has none.

        Raises:
            CheckpointMismatch: the vectors are of another model.
            UserError: numbers, ids or columns do not fit.
        """

    def remove(self, item_ids: Sequence[str]) -> int:
        """Takes items out; returns how many were there."""

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        where: Sequence[Condition] = (),
        without: Sequence[Collection[str]] | None = None,
    ) -> Hits:
        """The K items with the largest inner products: K of them where as many may be listed.

        Args:
            queries: (Q, D).
            k: K.
            where: conditions on attributes, all of which every item listed fulfils.
            without: for each query ids that it may not list, such as those a user has met.

        Raises:
            UserError: queries of another dimension, or a condition on what is no attribute.
        """

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_index` opens, in place of an index that is there."""


def check_added(
    item_ids: Sequence[str],
    vectors: FloatArray,
    *,
    model_hash: str,
    expected_hash: str,
    width: int,
) -> None:
    """Refuses items that an index cannot take.

    Raises:
        CheckpointMismatch: vectors of another model.
        UserError: another number or dimension of vectors, an id twice, a number that is not finite.
    """
    if model_hash != expected_hash:
        raise CheckpointMismatch(
            f"vectors of model {model_hash[:12]} do not go into an index of model "
            f"{expected_hash[:12]}: make an index for the new model, then change over"
        )
    if vectors.shape != (len(item_ids), width):
        raise UserError(
            f"vectors have the shape {vectors.shape}, allowed is ({len(item_ids)}, {width}): one "
            "for each id, in the dimension of the index"
        )
    if len(set(item_ids)) < len(item_ids):
        double = Counter(item_ids).most_common(1)[0][0]
        raise UserError(f"item id {double!r} is given twice, allowed is once")
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if bad.size:
        raise UserError(
            f"the vector of item {item_ids[bad[0]]!r} holds NaN or infinity ({bad.size} such)"
        )


def check_queries(queries: FloatArray, k: int, *, width: int) -> None:
    """Refuses queries that an index cannot answer.

    Raises:
        UserError: another dimension, a number that is not finite, or K below 1.
    """
    if queries.ndim != 2 or queries.shape[1] != width:
        raise UserError(f"queries have the shape {queries.shape}, allowed is (any, {width})")
    if not np.isfinite(queries).all():
        raise UserError("a query holds NaN or infinity")
    if k < 1:
        raise UserError(f"k is {k}, allowed is 1 or more")


def check_attributes(
    given: pl.DataFrame | None, expected: pl.DataFrame | None, num_items: int
) -> None:
    """Refuses attributes that differ from those of an index.

    Raises:
        UserError: other columns or types, or not a row for each item.
    """
    has = {} if given is None else dict(given.schema)
    wants = {} if expected is None else dict(expected.schema)
    if has != wants:
        raise UserError(
            f"attributes of the items are {_columns(has)}, allowed are those of the index: "
            f"{_columns(wants)}"
        )
    types = (pl.Float64(), pl.String(), pl.List(pl.String))
    bad = [name for name, each in has.items() if each not in types]
    if bad:
        raise UserError(
            f"attribute '{bad[0]}' has the type {has[bad[0]]}, allowed are Float64, String and "
            "List(String)"
        )
    if given is not None and given.height != num_items:
        raise UserError(f"attributes have {given.height} rows, allowed is one for each item")


def _columns(schema: Mapping[str, object]) -> str:
    return ", ".join(f"{name} ({each})" for name, each in schema.items()) or "none"
