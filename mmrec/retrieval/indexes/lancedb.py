"""Items in LanceDB, a database embedded in this process whose vectors stay on disk.

INDEX/database/items.lance    item_id, row, vector, model_hash, a column an attribute
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.errors import UserError
from mmrec.retrieval.indexes.conditions import AttributeColumns, sql_in, sql_of, sql_text
from mmrec.retrieval.indexes.database import Found, check_one_model
from mmrec.retrieval.indexes.faiss import MIN_ROWS, lists_for
from mmrec.retrieval.indexes.rows import FloatArray, IntArray

if TYPE_CHECKING:
    from mmrec.retrieval.filters import Condition

FOLDER, TABLE = "database", "items"
# Ids in one expression: more make it slow to read.
IDS_AT_ONCE = 1_000


class LanceDatabase:
    """See `Database`; made by `create` and `open`. Scores are computed from the stored vectors."""

    kind = "lancedb"

    def __init__(
        self,
        folder: Path,
        *,
        width: int,
        columns: AttributeColumns,
        model_hash: str,
        num_lists: int = 1,
        effort: int = 1,
    ) -> None:
        self.width, self.effort = width, effort
        self._folder, self._columns, self._model_hash = folder, columns, model_hash
        self._num_lists = num_lists
        self._table: Any = None

    @classmethod
    def create(cls, *, width: int, columns: AttributeColumns, model_hash: str) -> Self:
        """An empty database in a temporary folder; `copy_to` gives it a place."""
        temporary = Path(tempfile.mkdtemp(prefix="mmrec-index-"))
        database = cls(temporary, width=width, columns=columns, model_hash=model_hash)
        weakref.finalize(database, shutil.rmtree, temporary, ignore_errors=True)
        schema = database._schema()
        database._table = database._connect().create_table(TABLE, schema=schema)
        return database

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        width: int,
        columns: AttributeColumns,
        model_hash: str,
        num_lists: int,
        effort: int,
    ) -> Self:
        """The database of an index that was saved.

        Args:
            folder: of the index, whose manifest has what follows.
            width: D.
            columns: of the attributes.
            model_hash: of the model.
            num_lists: around centroids.
            effort: lists to look into.

        Raises:
            CheckpointMismatch: vectors of another model lie in it.
        """
        database = cls(
            folder,
            width=width,
            columns=columns,
            model_hash=model_hash,
            num_lists=num_lists,
            effort=effort,
        )
        database._table = database._connect().open_table(TABLE)
        others = database._table.count_rows(f"model_hash != {sql_text(model_hash)}")
        check_one_model(others, str(folder), model_hash)
        return database

    @property
    def efforts(self) -> Sequence[int]:
        """Lists to look into."""
        steps = [2**power for power in range(int(math.log2(self._num_lists)) + 1)]
        return sorted({*steps, self._num_lists})

    def put(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        rows: IntArray,
        attributes: pl.DataFrame | None,
    ) -> None:
        """See `Database.put`."""
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        columns = {
            "item_id": pa.array(item_ids, pa.string()),
            "row": pa.array(rows),
            "vector": pa.FixedSizeListArray.from_arrays(flat, self.width),
            "model_hash": pa.array([self._model_hash] * len(item_ids), pa.string()),
        }
        if attributes is not None:
            table = self._columns.table(attributes)
            columns |= {name: table[name].to_arrow() for name in table.columns}
        arrays = [columns[field.name].cast(field.type) for field in self._schema()]
        data = pa.Table.from_arrays(arrays, schema=self._schema())
        if not self.count():
            self._table.add(data)
            return
        merge = self._table.merge_insert("item_id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(data)

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Database.delete`."""
        before = self.count()
        for start in range(0, len(item_ids), IDS_AT_ONCE):
            self._table.delete(sql_in("item_id", item_ids[start : start + IDS_AT_ONCE]))
        return before - self.count()

    def count(self, where: Sequence[Condition] = ()) -> int:
        """See `Database.count`."""
        return int(self._table.count_rows(sql_of(where, self._columns)))

    def next_row(self) -> int:
        """See `Database.next_row`."""
        rows = self._table.search().select(["row"]).limit(max(self.count(), 1)).to_arrow()["row"]
        largest = pc.max(rows).as_py()
        return 0 if largest is None else int(largest) + 1

    def make_index(self) -> None:
        """Lists around centroids, where there are enough vectors to compare them by."""
        num_rows = self.count()
        if num_rows < MIN_ROWS:
            return
        from lancedb.index import IvfFlat

        self._num_lists = lists_for(num_rows)
        lists = IvfFlat(distance_type="dot", num_partitions=self._num_lists)
        self._table.create_index("vector", config=lists)

    def search(
        self, queries: FloatArray, limit: int, where: Sequence[Condition], *, exact: bool
    ) -> list[Found]:
        """See `Database.search`."""
        expression, lists = sql_of(where, self._columns), self.effort
        if where:  # what a filter leaves lies in more lists
            share = max(self.count(where), 1) / max(self.count(), 1)
            lists = min(self._num_lists, math.ceil(lists / share))
        return [
            self._search_one(query, limit, expression, lists=lists, exact=exact)
            for query in queries
        ]

    def _search_one(
        self, query: FloatArray, limit: int, expression: str | None, *, lists: int, exact: bool
    ) -> Found:
        asked = self._table.search(query, vector_column_name="vector", query_type="vector")
        asked = asked.distance_type("dot").limit(limit).nprobes(lists)
        asked = asked.select(["item_id", "row", "vector", "_distance"])
        if exact:
            asked = asked.bypass_vector_index()
        if expression is not None:
            asked = asked.where(expression, prefilter=True)
        table = asked.to_arrow()
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        # The distance is 1 - product, which loses digits of small products.
        scores = np.einsum("d,pd->p", query, flat.reshape(-1, self.width))
        rows = table["row"].to_numpy().astype(np.int64)
        return Found(table["item_id"].to_pylist(), scores, rows)

    def location(self) -> dict[str, Any]:
        """See `Database.location`."""
        return {"num_lists": self._num_lists}

    def copy_to(self, folder: Path) -> None:
        """See `Database.copy_to`."""
        shutil.copytree(self._folder / FOLDER, folder / FOLDER)

    def settle(self, folder: Path) -> None:
        """See `Database.settle`."""
        self._folder = folder
        self._table = self._connect().open_table(TABLE)

    def lies_in(self, folder: Path) -> bool:
        """See `Database.lies_in`."""
        return self._folder.resolve() == folder

    def _connect(self) -> Any:
        return import_lancedb().connect(self._folder / FOLDER)

    def _schema(self) -> pa.Schema:
        types = {"number": pa.float64(), "words": pa.list_(pa.string())}
        return pa.schema(
            [
                pa.field("item_id", pa.string()),
                pa.field("row", pa.int64()),
                pa.field("vector", pa.list_(pa.float32(), self.width)),
                pa.field("model_hash", pa.string()),
                *(
                    pa.field(self._columns.column(name), types[each])
                    for name, each in self._columns.types.items()
                ),
            ]
        )


def import_lancedb() -> ModuleType:
    """LanceDB.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lancedb
    except ImportError:
        raise UserError(
            "an index of kind lancedb needs LanceDB, which is not installed: "
            "pip install 'mmrec[lancedb]'"
        ) from None
    return lancedb
