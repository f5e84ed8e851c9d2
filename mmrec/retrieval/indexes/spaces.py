"""Two models' vectors side by side while one takes the place of the other; never mixed.

    spaces = Spaces(index_of_the_old)
    spaces.prepare(index_of_the_new)        # filled aside, while the old one answers
    spaces.change_over()                    # from now on the new one answers
    spaces.go_back()                        # … unless its check fails

Vectors go into the index of their own model, and a query is answered by the index of the model that
made it: a request that the old model read is answered in the old space even after the change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import polars as pl

from mmrec.errors import CheckpointMismatch, UserError
from mmrec.retrieval.indexes.protocol import Hits, ItemIndex
from mmrec.retrieval.indexes.rows import FloatArray

if TYPE_CHECKING:
    from mmrec.retrieval.filters import Condition


class Spaces:
    """The index in use, and beside it the next one, or the former one until it is dropped.

    Each change is one assignment, so threads that search see the old state or the new.

    Args:
        current: the index in use.
    """

    def __init__(self, current: ItemIndex) -> None:
        self._pair: tuple[ItemIndex, ItemIndex | None] = (current, None)

    @property
    def current(self) -> ItemIndex:
        """The index in use."""
        return self._pair[0]

    @property
    def other(self) -> ItemIndex | None:
        """The next one before the change, the former one after it."""
        return self._pair[1]

    def prepare(self, following: ItemIndex) -> None:
        """Takes the next model's index beside the one in use, in place of any other.

        Raises:
            UserError: it is of the model in use.
        """
        if following.model_hash == self.current.model_hash:
            raise UserError(
                f"the next index is of model {following.model_hash[:12]}, which is in use: add its "
                "items to the index there is"
            )
        self._pair = (self.current, following)

    def change_over(self) -> None:
        """Puts the other index into use; the one that was stays beside it.

        Raises:
            UserError: there is no other.
        """
        current, other = self._pair
        if other is None:
            raise UserError("there is no index beside the one in use: prepare one first")
        self._pair = (other, current)

    def go_back(self) -> None:
        """Undoes `change_over`: the two change places again."""
        self.change_over()

    def drop_other(self) -> None:
        """Lets go of the index that is not in use."""
        self._pair = (self.current, None)

    def of_model(self, model_hash: str) -> ItemIndex:
        """The index of a model.

        Raises:
            CheckpointMismatch: neither is of this model.
        """
        indexes = [index for index in self._pair if index is not None]
        for index in indexes:
            if index.model_hash == model_hash:
                return index
        known = " and ".join(index.model_hash[:12] for index in indexes)
        raise CheckpointMismatch(f"no index is of model {model_hash[:12]}: there are {known}")

    def add(
        self,
        item_ids: Sequence[str],
        vectors: FloatArray,
        *,
        model_hash: str,
        attributes: pl.DataFrame | None = None,
    ) -> None:
        """Takes items into the index of the model that made their vectors.

        Args and errors are those of `ItemIndex.add`.
        """
        index = self.of_model(model_hash)
        index.add(item_ids, vectors, model_hash=model_hash, attributes=attributes)

    def remove(self, item_ids: Sequence[str]) -> int:
        """Takes items out of both; returns how many the index in use had."""
        current, other = self._pair
        if other is not None:
            other.remove(item_ids)
        return current.remove(item_ids)

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        model_hash: str,
        where: Sequence[Condition] = (),
        without: Sequence[Collection[str]] | None = None,
    ) -> Hits:
        """Searches the index of the model that made the queries; see `ItemIndex.search`."""
        return self.of_model(model_hash).search(queries, k, where=where, without=without)
