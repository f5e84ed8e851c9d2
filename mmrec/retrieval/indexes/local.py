"""An index of items in this process: ids, vectors, attributes, and a finder of likely rows.

    INDEX/manifest.json         kind, parameters, counts, model_hash, recall, hash of each file
    INDEX/items.parquet         item_id, gone; a row for each vector
    INDEX/attributes.parquet    a row for each vector, where the index has attributes
    INDEX/vectors.npy           (N, D) float32, memory-mapped when read
    INDEX/queries.npy           what the index was tuned and judged by
    INDEX/index.faiss           of ivf and hnsw; codes.npy and scales.npy of int8

An item that is removed or replaced keeps its row, marked as gone, until such rows are a quarter of
all; then the index is built anew from those that are left.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import polars as pl

from mmrec.retrieval.folders import written_aside
from mmrec.retrieval.indexes.faiss import FAISS_FILE, MIN_ROWS, FaissIndex
from mmrec.retrieval.indexes.growing import GrowingVectors
from mmrec.retrieval.indexes.item_ids import ItemIds
from mmrec.retrieval.indexes.manifest import check_free, read_manifest, write_manifest
from mmrec.retrieval.indexes.protocol import (
    Hits,
    check_added,
    check_attributes,
    check_queries,
)
from mmrec.retrieval.indexes.quantised import Int8Index
from mmrec.retrieval.indexes.recall import RECALL, Recall, measure_recall, tune
from mmrec.retrieval.indexes.rescored import RescoredIndex
from mmrec.retrieval.indexes.rows import BoolArray, FloatArray, IntArray, RowIndex

if TYPE_CHECKING:
    from mmrec.retrieval.attributes import ItemAttributes
    from mmrec.retrieval.filters import Condition

logger = logging.getLogger(__name__)

LocalKind = Literal["exact", "int8", "ivf", "hnsw"]
LOCAL_KINDS: tuple[LocalKind, ...] = ("exact", "int8", "ivf", "hnsw")

# Share of rows that are gone beyond which an index is built anew.
MAX_GONE = 0.25
# Share of the vectors' squared lengths that ivf and hnsw compare, before exact scores decide.
KEPT = 0.99
# Items that stand in for users where an index is built without queries.
NUM_QUERIES = 1_000

ITEMS_FILE, ATTRIBUTES_FILE = "items.parquet", "attributes.parquet"
VECTORS_FILE, QUERIES_FILE = "vectors.npy", "queries.npy"


class LocalIndex:
    """See `ItemIndex`; made by `build` and `load`. A row is an item's place, in order of adding.

    Rows move up when the index is built anew, which a change may do: ask for them afterwards.
    Several threads may search while none changes it.
    """

    def __init__(
        self,
        asked_kind: LocalKind,
        item_ids: ItemIds,
        rows: RescoredIndex,
        *,
        model_hash: str,
        here: BoolArray,
        attributes: pl.DataFrame | None,
        queries: FloatArray,
        wanted_recall: float,
        recall: Recall | None,
    ) -> None:
        self.model_hash = model_hash
        self.recall = recall
        self._asked_kind = asked_kind
        self._item_ids, self._rows, self._here = item_ids, rows, here
        self._table = attributes
        self._typed: ItemAttributes | None = None
        self._queries, self._wanted_recall = queries, wanted_recall

    @classmethod
    def build(
        cls,
        kind: LocalKind,
        item_ids: Sequence[str],
        vectors: FloatArray,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None = None,
        queries: FloatArray | None = None,
        wanted_recall: float = RECALL,
    ) -> Self:
        """An index of items, in the order given.

        Args:
            kind: of `LOCAL_KINDS`; ivf and hnsw of less than 20,000 items compare one and all.
            item_ids: (N), each once.
            vectors: (N, D); kept, not copied.
            model_hash: of the model that made the vectors.
            attributes: N rows, as of `ItemIndex.add`.
            queries: (Q, D); every second one tunes the index, the others judge it. None: vectors
                of items stand in.
            wanted_recall: share of the exact best 100 that a search is to find.

        Raises:
            UserError: numbers, ids or columns do not fit.
        """
        width = vectors.shape[-1]
        check_added(item_ids, vectors, model_hash=model_hash, expected_hash=model_hash, width=width)
        check_attributes(attributes, attributes, len(item_ids))
        if queries is None:
            queries = vectors[:: max(1, len(vectors) // NUM_QUERIES)][:NUM_QUERIES]
        check_queries(queries, 1, width=width)
        index = cls(
            kind,
            ItemIds(item_ids),
            RescoredIndex(GrowingVectors(vectors), None),
            model_hash=model_hash,
            here=np.ones(len(item_ids), np.bool_),
            attributes=attributes,
            queries=queries,
            wanted_recall=wanted_recall,
            recall=None,
        )
        index._make_finder()
        if kind != "exact" and index.kind == "exact":
            logger.warning(
                "%d items are compared one and all: kind %s is for %d and more",
                len(item_ids),
                kind,
                MIN_ROWS,
            )
        return index

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Opens what `save` wrote.

        Raises:
            CheckpointMismatch: no finished index, another schema, or a file was changed.
        """
        manifest = read_manifest(folder)
        items = pl.read_parquet(folder / ITEMS_FILE)
        attributes = folder / ATTRIBUTES_FILE
        recall = manifest["recall"]
        return cls(
            manifest["asked_kind"],
            ItemIds(items["item_id"].to_arrow()),
            RescoredIndex(
                GrowingVectors.read(folder / VECTORS_FILE), _read_finder(manifest["kind"], folder)
            ),
            model_hash=manifest["model_hash"],
            here=~items["gone"].to_numpy(),
            attributes=pl.read_parquet(attributes) if attributes.is_file() else None,
            queries=np.load(folder / QUERIES_FILE, allow_pickle=False),
            wanted_recall=manifest["wanted_recall"],
            recall=recall and Recall.of_document(recall),
        )

    @property
    def kind(self) -> str:
        """What it is, which is `exact` where too few items are there for the kind asked for."""
        return self._asked_kind if self._rows.finder is not None else "exact"

    @property
    def width(self) -> int:
        """D."""
        return self._rows.vectors.width

    @property
    def num_rows(self) -> int:
        """Items, and those that are gone: what masks of `search_rows` are as long as."""
        return len(self._rows)

    def parameters(self) -> dict[str, Any]:
        """What it was built with."""
        return {} if self._rows.finder is None else self._rows.finder.parameters()

    def __len__(self) -> int:
        return int(np.count_nonzero(self._here))

    def rows_of(self, item_ids: Sequence[str]) -> IntArray:
        """(n,) rows of ids, -1 for those that are not here."""
        rows = self._item_ids.rows(item_ids)
        known = np.flatnonzero(rows >= 0)
        rows[known[~self._here[rows[known]]]] = -1
        return rows

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
        check_attributes(attributes, self._table, len(item_ids))
        self._mark_gone(item_ids)
        self._item_ids.add(item_ids)
        self._rows.add(np.asarray(vectors, np.float32))
        self._here = np.append(self._here, np.ones(len(item_ids), np.bool_))
        if self._table is not None and attributes is not None:
            self._table, self._typed = pl.concat([self._table, attributes]), None
        self._renew()

    def remove(self, item_ids: Sequence[str]) -> int:
        """See `ItemIndex.remove`."""
        num_gone = self._mark_gone(item_ids)
        self._renew()
        return num_gone

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
        allowed = self.rows_where(where) if where else None
        rows_without = [self._item_ids.rows(list(each)) for each in without or ()]
        scores, rows = self.search_rows(queries, k, allowed=allowed, without=rows_without)
        ids = cast(list[str], self._item_ids.ids(rows.reshape(-1)))
        lengths = (rows >= 0).sum(1)
        return Hits(
            [ids[place * k : place * k + length] for place, length in enumerate(lengths)],
            [scores[place, :length] for place, length in enumerate(lengths)],
        )

    def search_rows(
        self,
        queries: FloatArray,
        k: int,
        *,
        allowed: BoolArray | None = None,
        without: Sequence[IntArray] | None = None,
    ) -> tuple[FloatArray, IntArray]:
        """The K best rows: K of them where as many are allowed.

        Args:
            queries: (Q, D).
            k: K.
            allowed: (num_rows,) bool, True = may be listed; None: all that are here.
            without: for each query rows that it may not list.

        Returns:
            Scores and rows (Q, K), best first; row -1 and score -inf where fewer are allowed.
        """
        usable = self._here if allowed is None else self._here & allowed
        mask = None if usable.all() else usable
        most = max(map(len, without), default=0) if without else 0
        scores, rows = self._rows.search(queries, k + most, mask)
        if without:
            for query, unwanted in enumerate(without):
                rows[query, np.isin(rows[query], unwanted)] = -1
            order = np.argsort(rows < 0, axis=1, kind="stable")
            rows = np.take_along_axis(rows, order, 1)
            scores = np.where(rows < 0, -np.inf, np.take_along_axis(scores, order, 1))
        return scores[:, :k].astype(np.float32), rows[:, :k]

    def rows_where(self, where: Sequence[Condition]) -> BoolArray:
        """(num_rows,) bool: the item fulfils every condition.

        Raises:
            UserError: a condition on what is no attribute, or is one of another type.
        """
        from mmrec.retrieval.attributes import ItemAttributes
        from mmrec.retrieval.filters import all_hold

        if self._typed is None:
            table = pl.DataFrame() if self._table is None else self._table
            self._typed = ItemAttributes.of_table(table)
        return all_hold(where, self._typed)

    def save(self, folder: Path) -> None:
        """See `ItemIndex.save`."""
        folder = folder.resolve()
        check_free(folder)
        with written_aside(folder) as aside:
            items = {"item_id": self._item_ids.column(), "gone": ~self._here}
            pl.DataFrame(items).write_parquet(aside / ITEMS_FILE)
            if self._table is not None:
                self._table.write_parquet(aside / ATTRIBUTES_FILE)
            self._rows.vectors.write(aside / VECTORS_FILE)
            np.save(aside / QUERIES_FILE, self._queries, allow_pickle=False)
            if self._rows.finder is not None:
                self._rows.finder.write(aside)
            write_manifest(aside, self._document())

    def _document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "asked_kind": self._asked_kind,
            "parameters": self.parameters(),
            "count": len(self),
            "rows": self.num_rows,
            "dimension": self.width,
            "model_hash": self.model_hash,
            "wanted_recall": self._wanted_recall,
            "recall": None if self.recall is None else self.recall.document(),
        }

    def _mark_gone(self, item_ids: Sequence[str]) -> int:
        rows = self.rows_of(item_ids)
        rows = np.unique(rows[rows >= 0])
        self._here[rows] = False
        return len(rows)

    def _renew(self) -> None:
        """Builds anew where too much is gone, or enough has come for the kind asked for."""
        has_finder = self._rows.finder is not None
        too_few = self._asked_kind in ("ivf", "hnsw") and not has_finder
        if self.num_rows - len(self) > MAX_GONE * self.num_rows:
            rows = np.flatnonzero(self._here)
            ids = cast(list[str], self._item_ids.ids(rows))
            self._item_ids = ItemIds(ids)
            self._rows = RescoredIndex(GrowingVectors(self._rows.vectors[rows]), None)
            self._here = np.ones(len(rows), np.bool_)
            if self._table is not None:
                self._table, self._typed = self._table[rows], None
            self._make_finder()
        elif too_few and self.num_rows >= MIN_ROWS:
            self._make_finder()

    def _make_finder(self) -> None:
        """Builds the finder over all rows; tunes and judges it."""
        rows = self._rows
        rows.finder = self._new_finder()
        if rows.finder is None:
            self.recall = Recall(1.0, 1.0, 0)
            return
        tune(rows, rows.vectors, self._queries[::2], recall=self._wanted_recall)
        judged = self._queries[1::2] if len(self._queries) > 1 else self._queries
        self.recall = measure_recall(rows, rows.vectors, judged)
        logger.info(
            "index of kind %s over %d items: recall@10 %.4f, recall@100 %.4f by %d queries",
            self.kind,
            len(rows),
            self.recall.at_10,
            self.recall.at_100,
            self.recall.num_queries,
        )

    def _new_finder(self) -> RowIndex | None:
        vectors, kind = self._rows.vectors, self._asked_kind
        if kind == "int8":
            return Int8Index.build(vectors, self.width)
        if kind == "exact" or len(vectors) < MIN_ROWS:
            return None
        return FaissIndex.build(kind, vectors, self.width, kept=KEPT)


def _read_finder(kind: str, folder: Path) -> RowIndex | None:
    if kind == "exact":
        return None
    return Int8Index.read(folder) if kind == "int8" else FaissIndex.read(folder / FAISS_FILE)
