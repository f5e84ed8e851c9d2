"""An index of items whose vectors lie in a database, which searches and filters them itself.

The database may look at a part of its vectors only; where it comes back with fewer items than there
are to list, it is asked once more to compare all: K items where K exist.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import polars as pl

from mmrec.errors import CheckpointMismatch
from mmrec.retrieval.folders import written_aside
from mmrec.retrieval.indexes.manifest import check_free, write_manifest
from mmrec.retrieval.indexes.protocol import (
    Hits,
    check_added,
    check_attributes,
    check_queries,
)
from mmrec.retrieval.indexes.recall import RECALL, Recall, measure_recall, tune
from mmrec.retrieval.indexes.rows import FloatArray, IntArray

if TYPE_CHECKING:
    from mmrec.retrieval.filters import Condition

# Columns and types of the attributes: a table without rows.
ATTRIBUTES_FILE = "attributes.parquet"


@dataclass(frozen=True)
class Found:
    """What a database found for one query.

    item_ids: (n) in no set order.
    scores: (n,) inner products.
    rows: (n,) numbers that grow with each item that was added: the order of ties.
    """

    item_ids: list[str]
    scores: FloatArray
    rows: IntArray


class Database(Protocol):
    """Items in a database: an id, a vector, a row, attributes and the hash of their model each.

    Attributes:
        kind: `lancedb` or `qdrant`.
        width: D.
        effort: how far a search looks, as of `RowIndex`.
    """

    kind: str
    width: int
    effort: int

    @property
    def efforts(self) -> Sequence[int]:
        """Values of `effort` to try, from the quickest; one where there is no choice."""

    def put(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        rows: IntArray,
        attributes: pl.DataFrame | None,
    ) -> None:
        """Writes items; one that is there already is replaced."""

    def delete(self, item_ids: Sequence[str]) -> int:
        """Deletes items; returns how many were there."""

    def count(self, where: Sequence[Condition] = ()) -> int:
        """Items that fulfil all conditions."""

    def next_row(self) -> int:
        """A number above all rows."""

    def make_index(self) -> None:
        """Makes searches of what is there quick, where that takes a step of its own."""

    def search(
        self, queries: FloatArray, limit: int, where: Sequence[Condition], *, exact: bool
    ) -> list[Found]:
        """At most `limit` items for each query; `exact` compares all that fulfil the conditions."""

    def location(self) -> dict[str, Any]:
        """Where it is, for the manifest."""

    def copy_to(self, folder: Path) -> None:
        """Copies it into a folder, where it lies in files of ours."""

    def settle(self, folder: Path) -> None:
        """Goes on with the copy in a folder, which is where the index was saved."""

    def lies_in(self, folder: Path) -> bool:
        """Whether it is the one that an index saved in this folder would open."""


class DatabaseIndex:
    """See `ItemIndex`. Changes are in the database at once; `save` says where it is.

    Args:
        database: holds vectors of this model alone.
        model_hash: of the model.
        attributes: no rows, the columns that items have; None for none.
        wanted_recall: as of `build`.
        recall: as it was measured when the index was built.
    """

    def __init__(
        self,
        database: Database,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None,
        wanted_recall: float = RECALL,
        recall: Recall | None = None,
    ) -> None:
        self.model_hash, self.recall = model_hash, recall
        self._database, self._attributes = database, attributes
        self._wanted_recall = wanted_recall
        self._next_row = database.next_row()

    @classmethod
    def build(
        cls,
        database: Database,
        item_ids: Sequence[str],
        vectors: FloatArray,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None = None,
        queries: FloatArray | None = None,
        wanted_recall: float = RECALL,
    ) -> Self:
        """Fills a new database, tunes and judges its searches.

        Args:
            database: without items.
            item_ids: as of `LocalIndex.build`, and so are the others.
            vectors: (N, D).
            model_hash: of the model that made the vectors.
            attributes: N rows.
            queries: (Q, D); None: nothing is tuned, and no recall is known.
            wanted_recall: share of the exact best 100 that a search is to find.
        """
        head = None if attributes is None else attributes.clear()
        index = cls(database, model_hash=model_hash, attributes=head, wanted_recall=wanted_recall)
        if item_ids:
            index.add(item_ids, vectors, model_hash=model_hash, attributes=attributes)
        database.make_index()
        if queries is not None:
            check_queries(queries, 1, width=database.width)
            by_row = _ByRow(database)
            tune(by_row, vectors, queries[::2], recall=wanted_recall)
            index.recall = measure_recall(by_row, vectors, queries[1::2])
        return index

    @property
    def kind(self) -> str:
        """Of the database."""
        return self._database.kind

    @property
    def width(self) -> int:
        """D."""
        return self._database.width

    def __len__(self) -> int:
        return self._database.count()

    def add(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None = None,
    ) -> None:
        """See `ItemIndex.add`."""
        check_added(
            item_ids,
            vectors,
            model_hash=model_hash,
            expected_hash=self.model_hash,
            width=self.width,
        )
        check_attributes(attributes, self._attributes, len(item_ids))
        rows = self._next_row + np.arange(len(item_ids), dtype=np.int64)
        self._database.put(item_ids, np.asarray(vectors, np.float32), rows, attributes)
        self._next_row += len(item_ids)

    def remove(self, item_ids: Sequence[str]) -> int:
        """See `ItemIndex.remove`."""
        return self._database.delete(item_ids) if item_ids else 0

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        where: Sequence[Condition] = (),
        without: Sequence[Collection[str]] | None = None,
    ) -> Hits:
        """See `ItemIndex.search`."""
        check_queries(queries, k, width=self.width)
        unwanted = without or [()] * len(queries)
        limit = k + max(map(len, unwanted), default=0)
        found = self._database.search(queries, limit, where, exact=False)
        short = [place for place, each in enumerate(found) if len(each.item_ids) < limit]
        if short:
            num_there = self._database.count(where)
            short = [place for place in short if len(found[place].item_ids) < num_there]
        if short:
            again = self._database.search(queries[short], limit, where, exact=True)
            for place, each in zip(short, again, strict=True):
                found[place] = each
        lists = [_listed(*each, k) for each in zip(found, unwanted, strict=True)]
        return Hits([ids for ids, _ in lists], [scores for _, scores in lists])

    def save(self, folder: Path) -> None:
        """See `ItemIndex.save`: a copy of the database or, of a server, where it is."""
        folder = folder.resolve()
        if self._database.lies_in(folder):  # the files are there: only counts have changed
            write_manifest(folder, self._document(), with_files=False)
            return
        check_free(folder)
        with written_aside(folder) as aside:
            self._database.copy_to(aside)
            if self._attributes is not None:
                self._attributes.write_parquet(aside / ATTRIBUTES_FILE)
            write_manifest(aside, self._document(), with_files=False)
        self._database.settle(folder)

    def _document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "parameters": self._database.location() | {"effort": self._database.effort},
            "count": len(self),
            "dimension": self.width,
            "model_hash": self.model_hash,
            "wanted_recall": self._wanted_recall,
            "recall": None if self.recall is None else self.recall.document(),
        }


class _ByRow:
    """A database as `tune` and `measure_recall` ask it: rows are those of the vectors put."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def effort(self) -> int:
        return self._database.effort

    @effort.setter
    def effort(self, effort: int) -> None:
        self._database.effort = effort

    @property
    def efforts(self) -> Sequence[int]:
        return self._database.efforts

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        found = self._database.search(queries, k, (), exact=False)
        for place, each in enumerate(found):
            scores[place, : len(each.rows)] = each.scores
            rows[place, : len(each.rows)] = each.rows
        return scores, rows


def _listed(found: Found, unwanted: Collection[str], k: int) -> tuple[list[str], FloatArray]:
    """The K best that are wanted; ties in the order in which items came."""
    order = np.lexsort((found.rows, -found.scores))
    kept = [place for place in order.tolist() if found.item_ids[place] not in unwanted][:k]
    return [found.item_ids[place] for place in kept], found.scores[kept]


def check_one_model(num_others: int, where: str, model_hash: str) -> None:
    """Refuses a database in which vectors of another model lie.

    Raises:
        CheckpointMismatch: there are some.
    """
    if num_others:
        raise CheckpointMismatch(
            f"{where}: {num_others} items are not of model {model_hash[:12]}: vectors of several "
            "models are mixed; build the index again"
        )
