"""Items on a Qdrant server: a collection for each model, so that two stand side by side.

The server is named by its URL; a key, where it asks for one, is read from the environment variable
QDRANT_API_KEY alone, and never written.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
import polars as pl

from mmrec.errors import UserError
from mmrec.retrieval.indexes.conditions import AttributeColumns, qdrant_filter
from mmrec.retrieval.indexes.database import Found, check_one_model
from mmrec.retrieval.indexes.rows import FloatArray, IntArray

if TYPE_CHECKING:
    from mmrec.retrieval.filters import Condition

KEY_VARIABLE = "QDRANT_API_KEY"
TIMEOUT_S = 60
# Items a request: 256 vectors of 129 numbers are about half a megabyte of JSON.
ITEMS_AT_ONCE = 256
ROWS_AT_ONCE = 10_000
# How long a server is waited for while it makes its graph of what it was given.
INDEXING_S = 600.0
# Nodes that a search keeps in view, unless tuning says otherwise.
EFFORT = 128
# Qdrant knows whole numbers and UUIDs as ids: an item's is made of its own id.
_SPACE = uuid.UUID("5d1c3b0e-7c0f-4d8b-9a52-0f4a1d4c6e11")


class QdrantDatabase:
    """See `Database`; made by `create` and `open`.

    Args:
        client: of qdrant-client.
        url: of the server.
        collection: holds vectors of one model.
        width: D.
        columns: of the attributes.
        model_hash: of the model.
        effort: nodes that a search keeps in view.
    """

    kind = "qdrant"
    efforts: Sequence[int] = (64, 128, 256, 512, 1024)

    def __init__(
        self,
        client: Any,
        *,
        url: str,
        collection: str,
        width: int,
        columns: AttributeColumns,
        model_hash: str,
        effort: int = EFFORT,
    ) -> None:
        self.width, self.effort = width, effort
        self._client, self._url, self._collection = client, url, collection
        self._columns, self._model_hash = columns, model_hash

    @classmethod
    def create(
        cls, url: str, collection: str, *, width: int, columns: AttributeColumns, model_hash: str
    ) -> Self:
        """A new collection.

        Args:
            url: of the server.
            collection: its name begins with this and ends with the model's hash.
            width: D.
            columns: of the attributes.
            model_hash: of the model.

        Raises:
            UserError: the server does not answer, or has the collection already.
        """
        client, name = connect(url), f"{collection}-{model_hash[:12]}"
        from qdrant_client import models

        database = cls(
            client, url=url, collection=name, width=width, columns=columns, model_hash=model_hash
        )
        if database._ask("collection_exists"):
            raise UserError(
                f"Qdrant at {url} has a collection {name!r} already: delete it there, or give "
                "another --collection"
            )
        vectors = models.VectorParams(size=width, distance=models.Distance.DOT)
        database._ask("create_collection", vectors_config=vectors)
        schemas = models.PayloadSchemaType
        for attribute, each in columns.types.items():
            database._ask(
                "create_payload_index",
                field_name=columns.column(attribute),
                field_schema=schemas.FLOAT if each == "number" else schemas.KEYWORD,
            )
        return database

    @classmethod
    def open(
        cls,
        url: str,
        collection: str,
        *,
        width: int,
        columns: AttributeColumns,
        model_hash: str,
        effort: int,
    ) -> Self:
        """A collection that is there.

        Raises:
            UserError: the server does not answer, or has no such collection.
            CheckpointMismatch: vectors of another model lie in it.
        """
        database = cls(
            connect(url),
            url=url,
            collection=collection,
            width=width,
            columns=columns,
            model_hash=model_hash,
            effort=effort,
        )
        from qdrant_client import models

        if not database._ask("collection_exists"):
            raise UserError(f"Qdrant at {url} has no collection {collection!r}: build it again")
        ours = models.FieldCondition(key="model_hash", match=models.MatchValue(value=model_hash))
        others = database._ask("count", count_filter=models.Filter(must_not=[ours]), exact=True)
        check_one_model(others.count, f"Qdrant at {url}, collection {collection!r}", model_hash)
        return database

    def put(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        rows: IntArray,
        attributes: pl.DataFrame | None,
    ) -> None:
        """See `Database.put`."""
        from qdrant_client import models

        known: list[dict[str, Any]] = [{}] * len(item_ids)
        if attributes is not None:
            known = self._columns.table(attributes).to_dicts()
        for start in range(0, len(item_ids), ITEMS_AT_ONCE):
            points = []
            for place in range(start, min(start + ITEMS_AT_ONCE, len(item_ids))):
                payload = {key: each for key, each in known[place].items() if each is not None}
                payload["item_id"] = item_ids[place]
                payload["row"] = int(rows[place])
                payload["model_hash"] = self._model_hash
                vector = vectors[place].tolist()
                point_id = _point_id(item_ids[place])
                points.append(models.PointStruct(id=point_id, vector=vector, payload=payload))
            self._ask("upsert", points=points, wait=True)

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Database.delete`."""
        from qdrant_client import models

        points = [_point_id(item_id) for item_id in item_ids]
        num_there = len(self._ask("retrieve", ids=points, with_payload=False))
        self._ask("delete", points_selector=models.PointIdsList(points=points), wait=True)
        return num_there

    def count(self, where: Sequence[Condition] = ()) -> int:
        """See `Database.count`."""
        chosen = qdrant_filter(where, self._columns)
        return int(self._ask("count", count_filter=chosen, exact=True).count)

    def next_row(self) -> int:
        """See `Database.next_row`."""
        largest, page = -1, None
        while True:
            points, page = self._ask(
                "scroll", limit=ROWS_AT_ONCE, offset=page, with_payload=["row"]
            )
            largest = max([largest, *(point.payload["row"] for point in points)])
            if page is None:
                return largest + 1

    def make_index(self) -> None:
        """Waits until the server has made its graph, so that the recall is that of the graph.

        Raises:
            UserError: it takes too long.
        """
        from qdrant_client import models

        end = time.monotonic() + INDEXING_S
        while self._ask("get_collection").status != models.CollectionStatus.GREEN:
            if time.monotonic() > end:
                raise UserError(
                    f"Qdrant at {self._url} has not indexed {self._collection!r} within "
                    f"{INDEXING_S:.0f} s: look at its log"
                )
            time.sleep(0.5)

    def search(
        self, queries: FloatArray, limit: int, where: Sequence[Condition], *, exact: bool
    ) -> list[Found]:
        """See `Database.search`."""
        from qdrant_client import models

        chosen = qdrant_filter(where, self._columns)
        how = models.SearchParams(hnsw_ef=max(self.effort, limit), exact=exact)
        asked = [
            models.QueryRequest(
                query=query.tolist(),
                limit=limit,
                filter=chosen,
                params=how,
                with_payload=["item_id", "row"],
            )
            for query in queries
        ]
        return [_found(each.points) for each in self._ask("query_batch_points", requests=asked)]

    def location(self) -> dict[str, Any]:
        """See `Database.location`."""
        return {"url": self._url, "collection": self._collection}

    def copy_to(self, folder: Path) -> None:
        """Vectors stay on the server."""

    def settle(self, folder: Path) -> None:
        """Vectors stay on the server."""

    def lies_in(self, folder: Path) -> bool:
        """See `Database.lies_in`: the manifest is all there is in a folder."""
        return False

    def _ask(self, method: str, **named: Any) -> Any:
        """What the server answers to a method of the client.

        Raises:
            UserError: it does not answer, or refuses.
        """
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        try:
            return getattr(self._client, method)(self._collection, **named)
        except ResponseHandlingException as error:
            raise UserError(
                f"Qdrant at {self._url} does not answer ({error}): start it, or mend the URL"
            ) from None
        except UnexpectedResponse as error:
            key = f"; set {KEY_VARIABLE}" if error.status_code in (401, 403) else ""
            reason = " ".join(error.content.decode("utf-8", "replace").split())[:200]
            raise UserError(
                f"Qdrant at {self._url} refuses {method}: {error.status_code} {reason}{key}"
            ) from None


def connect(url: str) -> Any:
    """A client of a server.

    Raises:
        UserError: qdrant-client is not installed, or the URL is none of a server or holds a secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--url is {url!r}: allowed is http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"--url of {parts.hostname} holds more than a place, and is written into the index: "
            f"give a key by {KEY_VARIABLE}"
        )
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise UserError(
            "an index of kind qdrant needs qdrant-client, which is not installed: "
            "pip install 'mmrec[qdrant]'"
        ) from None
    key = os.environ.get(KEY_VARIABLE) or None
    return QdrantClient(url=url, api_key=key, timeout=TIMEOUT_S, check_compatibility=False)


def _found(points: Sequence[Any]) -> Found:
    return Found(
        [point.payload["item_id"] for point in points],
        np.array([point.score for point in points], np.float32),
        np.array([point.payload["row"] for point in points], np.int64),
    )


def _point_id(item_id: str) -> str:
    return str(uuid.uuid5(_SPACE, item_id))
