"""The Python API: load a run or a bundle, then recommend, score, embed, and find similar items.

recommender = Recommender.load("runs/ml-1m")
recommender.recommend(user_id="42", k=10)
recommender.recommend(history=["2571", ("260", None, 978300760)])
recommender.similar(image="poster.jpg")
recommender.score(recommender.new_items("new.csv", source="media"), users=["42"])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from mmrec.data.items import Media, NewItems
from mmrec.errors import UserError
from mmrec.retrieval.classify import class_vectors, classify
from mmrec.retrieval.cold import problems, score_frame
from mmrec.retrieval.content import encode_new, encode_query, new_items
from mmrec.retrieval.item_labels import tell_labels
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.predict import predict
from mmrec.retrieval.recommend import Recommendation, most_similar, recommend_next
from mmrec.retrieval.retriever import Asked, HistoryEvent, Request, Retriever

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
AnyPath = str | PathLike[str]

__all__ = ["HistoryEvent", "ItemEmbeddings", "Recommendation", "Recommender"]


@dataclass(frozen=True)
class ItemEmbeddings:
    """Vectors of items, as `export` writes them.

    Attributes:
        item_ids: n ids.
        content: (n, D) unit; None for a model of ids.
        embedding: (n, D) unit; of an item without training events its content, or zeros where
            the model knows no media. Where such an item lacks media that nearly all items of
            training have, what they let expect, and then shorter than 1.
    """

    item_ids: list[str]
    content: FloatArray | None
    embedding: FloatArray


class Recommender:
    """A trained model in use. Nothing it is asked changes it."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever

    @classmethod
    def load(
        cls,
        run_or_bundle: AnyPath,
        data: AnyPath | None = None,
        overrides: Sequence[str] = (),
    ) -> Recommender:
        """Loads a finished run with its data, or a bundle.

        Args:
            run_or_bundle: folder that `train` or `export --bundle` wrote.
            data: the prepared folder where it has moved.
            overrides: settings that count in use, such as `evaluation.popularity_share=0.5`.

        Raises:
            ConfigError: an override is not allowed.
            CheckpointMismatch: no finished run, other data, or a bundle that was changed.
            ShardError: the data cannot be opened.
        """
        folder = None if data is None else Path(data)
        return cls(load_retriever(Path(run_or_bundle), folder, overrides))

    @property
    def model_hash(self) -> str:
        """Says in which space the vectors live; those of two hashes are never compared."""
        return self.retriever.model_hash

    def recommend(
        self,
        user_id: str | None = None,
        *,
        history: Sequence[HistoryEvent] | None = None,
        taste: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        time: float | None = None,
        context: Mapping[str, str] | None = None,
        k: int = 10,
        half_life_hours: float | None = None,
        unmet: bool = False,
    ) -> list[Recommendation]:
        """The next items of a stored user, or of one who comes with his history.

        Without either, or where the history is empty, a model that reads attributes or requests
        answers from these (`model.signals`, with `model.history.start`); else the list holds the
        most popular items. `basis` says which.

        Args:
            user_id: of the log the model was trained on.
            history: ids or (id, event type, Unix seconds[, value]), oldest first; unknown items are
                dropped.
            taste: what the user says he likes, such as "quiet films about the sea"; it is read like
                an item he met last, so it goes with a history or without one.
            attributes: of a user who is not stored, by the catalogue's names.
            time: of the request, Unix seconds; None: not known, and items must be available now.
            context: of the request, by the log's columns, such as device and place.
            k: how many; fewer are returned where no more candidates are left.
            half_life_hours: age at which an item's odds have halved, for catalogues whose items
                age; None: age does not count.
            unmet: list items that no event of the data names as well.

        Raises:
            ItemNotFound: the user is not known, or no item of the history.
            UserError: a user is given in two ways, a name is not the catalogue's, the model reads
                no text to take a taste from, k is below 1, or a half-life is asked for where the
                catalogue file has no items.available.from.
        """
        asked = self._asked(user_id, history, attributes, Request(time, context or {}))
        if taste is not None:
            asked = replace(asked, taste=encode_query(self.retriever, "text", taste))
        return recommend_next(
            self.retriever, asked, k, at=time, half_life_hours=half_life_hours, unmet=unmet
        )

    def predict(
        self,
        items: Sequence[str],
        user_id: str | None = None,
        *,
        history: Sequence[HistoryEvent] | None = None,
        attributes: Mapping[str, Any] | None = None,
        time: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """What the model's heads tell of a user and some items.

        Args:
            items: ids.
            user_id: of the log the model was trained on; or the user comes with a history.
            history: as in `recommend`; values in it count for heads of values.
            attributes: of a user who is not stored.
            time: of the request, Unix seconds.
            context: of the request.

        Returns:
            For each item item_id and, by head, a probability among the events that are its
            examples, or a value.

        Raises:
            ItemNotFound: the user, an item, or every item of the history is not known.
            UserError: the model has no heads, or a user is given in two ways.
        """
        if not len(self.retriever.model.heads):
            raise UserError(
                f"{self.retriever.path}: the model has no heads; train one with model.heads"
            )
        asked = self._asked(user_id, history, attributes, Request(time, context or {}))
        rows = [self.retriever.item_index(item_id) for item_id in items]
        told = predict(self.retriever, asked, rows)
        return [
            {"item_id": str(item_id), **{name: values[place] for name, values in told.items()}}
            for place, item_id in enumerate(items)
        ]

    def labels(self, items: Sequence[str] | Media, *, k: int | None = None) -> list[dict[str, Any]]:
        """What the model tells of items from their media alone: genres, tags.

        Args:
            items: ids of the catalogue, or new items; of these the ones without a usable medium
                are left out, with a line in the log.
            k: how many labels of each set; None: all.

        Returns:
            For each item item_id and, by set of labels, {label: probability}, likeliest first.

        Raises:
            ItemNotFound: an id is not known.
            UserError: the model tells no labels.
        """
        if not self.retriever.model.label_sets:
            raise UserError(
                f"{self.retriever.path}: the model tells no labels of items; train one with "
                "model.labels"
            )
        item_ids, content = self._contents(items)
        told = tell_labels(self.retriever, content, k)
        pairs = zip(item_ids, told, strict=True)
        return [{"item_id": item_id, **labels} for item_id, labels in pairs]

    def classify(
        self,
        items: Sequence[str] | Media,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        k: int | None = None,
    ) -> list[dict[str, Any]]:
        """Tells items apart by names of classes that no item was labelled with: zero-shot.

        Args:
            items: as in `labels`.
            labels: names of the classes.
            templates: texts with one {} for a name, such as "a stamp of a {}"; the mean counts.
            k: how many classes of each item; None: all.

        Returns:
            For each item item_id and classes, {label: cosine}, likeliest first.

        Raises:
            ItemNotFound: an id is not known.
            UserError: the model reads no text, or labels or templates cannot be used.
        """
        classes = class_vectors(self.retriever, labels, templates)
        item_ids, content = self._contents(items)
        pairs = zip(item_ids, classify(content, classes, labels, k), strict=True)
        return [{"item_id": item_id, "classes": found} for item_id, found in pairs]

    def _contents(self, items: Sequence[str] | Media) -> tuple[list[str], Tensor]:
        """Ids and contents (n, D); new items of no use are left out and named in the log."""
        if not isinstance(items, Sequence):
            new = encode_new(self.retriever, items)
            if new.refused or new.broken:
                logger.warning("%s", problems(new, []))
            return new.item_ids, new.content
        self.retriever.require_media("content of items")
        rows = [self.retriever.item_index(item_id) for item_id in items]
        assert self.retriever.content is not None
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.retriever.device)
        return [str(item_id) for item_id in items], self.retriever.content[chosen]

    def _asked(
        self,
        user_id: str | None,
        history: Sequence[HistoryEvent] | None,
        attributes: Mapping[str, Any] | None,
        request: Request,
    ) -> Asked:
        """A stored user, or one who comes with his history."""
        if user_id is not None and (history is not None or attributes is not None):
            other = "history" if history is not None else "attributes"
            raise UserError(f"user_id and {other} are both given, allowed is one of them")
        if user_id is not None:
            rows, _ = self.retriever.stored_users([user_id])
            return self.retriever.stored_user(rows[0], request)
        return self.retriever.given_user(history or (), request=request, attributes=attributes)

    def similar(
        self,
        item_id: str | None = None,
        *,
        image: AnyPath | None = None,
        text: str | None = None,
        audio: AnyPath | None = None,
        k: int = 10,
        time: float | None = None,
    ) -> list[Recommendation]:
        """The items whose content is nearest to an item's, a picture's, a text's or a sound's.

        Whatever is asked, contents are compared: what users did has no part. An item is never in
        its own list. Items must be available at `time` (Unix seconds; None: now).

        Raises:
            ItemNotFound: the item is not known.
            UserError: not exactly one question, one the model cannot answer, or k is below 1.
            DataError: the file is no picture or sound.
        """
        given = {"item_id": item_id, "image": image, "text": text, "audio": audio}
        asked = [name for name, value in given.items() if value is not None]
        if len(asked) != 1:
            raise UserError(
                f"{' and '.join(asked) or 'nothing'} given, allowed is one of {', '.join(given)}"
            )
        if item_id is None:
            query = text if text is not None else Path(image or audio or "")
            found = encode_query(self.retriever, asked[0], query)
            return most_similar(self.retriever, found, k, at=time)
        self.retriever.require_media("similar items")
        row = self.retriever.item_index(item_id)
        if not self.retriever.items.any_medium[row]:
            raise UserError(
                f"item '{item_id}' has none of the media that the model encodes: "
                f"{', '.join(self.retriever.transforms)}"
            )
        assert self.retriever.content is not None
        return most_similar(self.retriever, self.retriever.content[row], k, without=row, at=time)

    def new_items(self, table: AnyPath, source: AnyPath) -> NewItems:
        """Opens a table (csv, jsonl, parquet) of items that the prepared folder does not hold.

        Args:
            table: with columns of the catalogue; of those of media any subset.
            source: folder that the paths of media start from and stay under.

        Raises:
            DataError: no such table or id column, a duplicate id, a value of a wrong type.
            UserError: it has no column of media, or the model knows no media.
        """
        return new_items(self.retriever, Path(table), Path(source))

    def score(
        self,
        items: Media,
        *,
        users: Sequence[str] | None = None,
        histories: Sequence[Sequence[HistoryEvent]] | None = None,
    ) -> pl.DataFrame:
        """Scores new items from their media alone, for stored users or given histories.

        Args:
            items: as `new_items` gives them.
            users: ids; None with no histories means every stored user.
            histories: instead of users; their `user_id` in the result is their place.

        Returns:
            user_id, item_id, score (<u, e>), rank (among the user's unseen candidates and this
            item, from 1), modalities; best first for each user. Items without a usable medium
            have no row. The whole table is in memory: `score_file` streams.

        Raises:
            ItemNotFound: no user is known, or no item of a history.
            UserError: both users and histories are given, or the model knows no media.
        """
        if users is not None and histories is not None:
            raise UserError("users and histories are both given, allowed is one of them")
        retriever = self.retriever
        if histories is not None:
            asked = [retriever.given_user(each, str(row)) for row, each in enumerate(histories)]
        elif users is not None:
            asked = [retriever.stored_user(row) for row in retriever.stored_users(users)[0]]
        else:
            num_users = len(retriever.users.user_ids)
            asked = [retriever.stored_user(row) for row in range(num_users)]
        return score_frame(retriever, encode_new(retriever, items), asked)

    def embed_items(self, items: Sequence[str] | Media) -> ItemEmbeddings:
        """Vectors of items of the catalogue by their ids, or of new items by their media.

        Raises:
            ItemNotFound: an id is not known.
            UserError: new items, and the model knows no media.
        """
        if isinstance(items, Sequence):
            rows = [self.retriever.item_index(item_id) for item_id in items]
            chosen = torch.tensor(rows, dtype=torch.int64, device=self.retriever.device)
            content = self.retriever.content
            return ItemEmbeddings(
                item_ids=[str(item_id) for item_id in items],
                content=None if content is None else _to_numpy(content[chosen]),
                embedding=_to_numpy(self.retriever.vectors.embedding[chosen]),
            )
        new = encode_new(self.retriever, items)
        return ItemEmbeddings(
            item_ids=new.item_ids,
            content=_to_numpy(new.content),
            embedding=_to_numpy(new.embedding),
        )

    def embed_users(self, histories: Sequence[Sequence[HistoryEvent]]) -> FloatArray:
        """Unit vectors (U, D) of users behind histories; zeros for an empty history.

        Raises:
            ItemNotFound: items were given and none of a history is known.
        """
        asked = [self.retriever.given_user(each) for each in histories]
        return _to_numpy(self.retriever.user_vectors(asked))


def _to_numpy(vectors: Tensor) -> FloatArray:
    array: FloatArray = vectors.float().cpu().numpy()
    return array
