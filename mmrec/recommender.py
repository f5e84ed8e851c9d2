"""The Python API: load a run or a bundle, then recommend, score, embed, and find similar items.

recommender = Recommender.load("runs/ml-1m")
recommender.recommend(user_id="42", k=10)
recommender.recommend(history=["2571", ("260", None, 978300760)])
recommender.similar(image="poster.jpg")
recommender.search("a ship wakes its crew", user_id="42", mix=0.3)
recommender.score(recommender.new_items("new.csv", source="media"), users=["42"])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from mmrec.request import Request
from mmrec.retrieval.asked import all_asked, one_asked
from mmrec.retrieval.classify import class_vectors, classify
from mmrec.retrieval.cold import problems, score_frame
from mmrec.retrieval.content import encode_new, encode_query, new_items
from mmrec.retrieval.explain import Explanation, explain
from mmrec.retrieval.explanation_words import Language, as_language
from mmrec.retrieval.filters import Condition
from mmrec.retrieval.given_history import HistoryEvent
from mmrec.retrieval.intent import Intent
from mmrec.retrieval.item_labels import tell_labels
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.path import Path as ItemPath
from mmrec.retrieval.path import Rule, best_paths
from mmrec.retrieval.popular import Trend
from mmrec.retrieval.predict import predict
from mmrec.retrieval.preferences import Preference
from mmrec.retrieval.recommend import (
    RankedRecommendation,
    Recommendation,
    basis_of,
    most_popular,
    most_similar,
    most_similar_to,
    recommend_next,
)
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.search import Query, Searcher, Taste, Way
from mmrec.retrieval.second_stage import SecondStage, choose_second_stage, load_second_stage
from mmrec.retrieval.wishes import NO_WISHES, MaxPer, Wishes

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
AnyPath = str | PathLike[str]

__all__ = [
    "Condition",
    "HistoryEvent",
    "ItemEmbeddings",
    "MaxPer",
    "Preference",
    "RankedRecommendation",
    "Recommendation",
    "Recommender",
    "Trend",
    "Wishes",
]


@dataclass(frozen=True)
class ItemEmbeddings:
    """Vectors of items, as `export` writes them.

    Attributes:
        item_ids: n ids.
        content: (n, D) unit; None for a model of ids.
        embedding: (n, D) unit; of an item without training events its content, or zeros where
            the model knows no media. Where such an item lacks media that nearly all items of
            training have, what they let expect.
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
        query: str | None = None,
        mix: float = 0.5,
        k: int = 10,
        half_life_hours: float | None = None,
        unmet: bool = False,
        wishes: Wishes = NO_WISHES,
        ranked: bool | None = None,
        calibrated: bool = False,
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
            query: what the user looks for now: the list holds what it finds, what he likes first.
            mix: weight of what he likes beside a query, from 0, a search that leaves out what he
                has met, to 1, as if there were no query.
            k: how many; fewer are returned where no more candidates are left.
            half_life_hours: age at which an item's odds have halved, for catalogues whose items
                age; None: age does not count.
            unmet: list items that no event of the data names as well.
            wishes: conditions, soft wishes, variety and all else that is asked of the list; the two
                above may stand in it.
            ranked: order the best candidates by the second stage (`mmrec train-ranker`), whose
                entries say more, see `RankedRecommendation`; None: where there is one and it was
                better on validation than chance could be.
            calibrated: the second stage has to tell calibrated probabilities in `heads`.

        Raises:
            ItemNotFound: the user is not known, or no item of the history.
            CheckpointMismatch: the second stage is of another model.
            UserError: a user is given in two ways, a name is not the catalogue's, the model reads
                no text to take a taste from, k is below 1, a half-life is asked for where the
                catalogue file has no items.available.from, there is no second stage and one is
                asked for, or it can tell no probability.
        """
        asked = one_asked(
            self.retriever, user_id, history, attributes, Request(time, context or {})
        )
        if taste is not None:
            asked = replace(asked, taste=encode_query(self.retriever, "text", taste))
        if half_life_hours is not None:
            wishes = replace(wishes, half_life_hours=half_life_hours)
        if unmet:
            wishes = replace(wishes, unmet=True)
        if query is not None:
            intent = Intent(Query(query), mix)
            intent.refuse_second_stage(ranked=ranked, calibrated=calibrated)
            if intent.counts:
                whose = intent.taste(asked)
                return self.searcher.search(intent.query, k, taste=whose, at=time, wishes=wishes)
        stage = choose_second_stage(
            self.retriever,
            None if ranked is False else self.second_stage,
            ranked=ranked,
            calibrated=calibrated,
        )
        return recommend_next(self.retriever, asked, k, at=time, wishes=wishes, second_stage=stage)

    @cached_property
    def second_stage(self) -> SecondStage | None:
        """The ranker that was trained beside the model; None where there is none."""
        return load_second_stage(self.retriever)

    @cached_property
    def searcher(self) -> Searcher:
        """Searches the items; their words are read when it is first asked."""
        return Searcher(self.retriever)

    def search(
        self,
        text: str | None = None,
        *,
        image: AnyPath | None = None,
        audio: AnyPath | None = None,
        by: Way = "hybrid",
        user_id: str | None = None,
        history: Sequence[HistoryEvent] | None = None,
        mix: float = 0.5,
        k: int = 10,
        time: float | None = None,
        wishes: Wishes = NO_WISHES,
    ) -> list[Recommendation]:
        """The items that answer a text, a picture, a sound, or several of these together.

        `found_by` of each says whether its text has words of the query, its content is near in
        meaning, or both. With a user the query's best candidates are ordered by his taste as well.

        Args:
            text: in any language that the items' texts have.
            image: path of a picture.
            audio: path of a sound.
            by: words of the texts (`lexical`), contents (`dense`), or both (`hybrid`).
            user_id: whose search it is.
            history: of whoever searches, in place of a stored user.
            mix: weight of his taste: 0 is search alone, 1 recommendation alone.
            k: how many; fewer where not as many are found.
            time: Unix seconds at which items must be available; None: now.
            wishes: conditions, newer first, and all else that is asked of the list.

        Raises:
            ItemNotFound: the user is not known, or no item of the history.
            UserError: nothing is asked for, the model cannot read what is given and words are not
                enough, or a number is out of its range.
            DataError: the file is no picture or sound.
        """
        taste = None
        if user_id is not None or history is not None:
            asked = one_asked(self.retriever, user_id, history, None, Request(time))
            taste = Taste(asked, mix)
        query = Query(text, *(None if each is None else Path(each) for each in (image, audio)))
        return self.searcher.search(query, k, by=by, taste=taste, at=time, wishes=wishes)

    def popular(
        self, *, k: int = 10, time: float | None = None, wishes: Wishes = NO_WISHES
    ) -> list[Recommendation]:
        """The items that are met most, whoever asks; `wishes.trend` says in what span of time.

        Args:
            k: how many.
            time: Unix seconds at which items must be available and ages of events are counted;
                None: now.
            wishes: what the list is asked to be like.

        Raises:
            UserError: k is below 1, or a wish cannot be fulfilled.
        """
        return most_popular(self.retriever, k, at=time, wishes=wishes)

    def explain(
        self,
        items: Sequence[str],
        user_id: str | None = None,
        *,
        history: Sequence[HistoryEvent] | None = None,
        language: Language = "en",
        num_events: int = 3,
    ) -> list[Explanation]:
        """Why items have the score they have for a user, listed or not.

        Args:
            items: ids.
            user_id: of the log the model was trained on; or the user comes with a history.
            history: as in `recommend`.
            language: of the words, `en` or `zh`.
            num_events: most events of the history that are named.

        Raises:
            ItemNotFound: the user, an item, or every item of the history is not known.
            UserError: a user is given in two ways, or there are no words in the language.
        """
        asked = one_asked(self.retriever, user_id, history, None, Request())
        rows = np.array([self.retriever.item_index(item_id) for item_id in items], np.int64)
        return explain(
            self.retriever,
            asked,
            rows,
            basis=basis_of(self.retriever, asked),
            language=as_language(language),
            num_events=num_events,
        )

    def path(
        self,
        user_id: str | None = None,
        *,
        history: Sequence[HistoryEvent] | None = None,
        attributes: Mapping[str, Any] | None = None,
        time: float | None = None,
        context: Mapping[str, str] | None = None,
        length: int = 5,
        k: int = 1,
        beam: int = 32,
        rule: Rule | None = None,
    ) -> list[ItemPath]:
        """Items to meet one after the other, such as courses, each behind those before it.

        The user is given as in `recommend`, the rest as in `mmrec.retrieval.path.best_paths`: no
        item comes twice or has been met, and `rule(ids so far, id)` says what may follow.

        Raises:
            ItemNotFound: the user is not known, or no item of the history.
            UserError: as of `recommend`; or length, k or beam is too small.
        """
        request = Request(time, context or {})
        asked = one_asked(self.retriever, user_id, history, attributes, request)
        return best_paths(self.retriever, asked, length=length, k=k, beam=beam, rule=rule, at=time)

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
        asked = one_asked(
            self.retriever, user_id, history, attributes, Request(time, context or {})
        )
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

    def similar(
        self,
        item_id: str | None = None,
        *,
        image: AnyPath | None = None,
        text: str | None = None,
        audio: AnyPath | None = None,
        by: str | None = None,
        k: int = 10,
        time: float | None = None,
        wishes: Wishes = NO_WISHES,
    ) -> list[Recommendation]:
        """The items whose content is nearest to an item's, a picture's, a text's or a sound's.

        Whatever is asked, contents are compared: what users did has no part. An item is never in
        its own list. Items must be available at `time` (Unix seconds; None: now). With `by`, a
        modality of the model, contents are those of this modality alone: what looks, sounds or
        reads alike.

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
        retriever = self.retriever
        if item_id is None:
            query = text if text is not None else Path(image or audio or "")
            found = encode_query(retriever, asked[0], query)
            return most_similar(retriever, found, k, by=by, at=time, wishes=wishes)
        retriever.require_media("similar items")
        row = retriever.item_index(item_id)
        if not retriever.items.any_medium[row]:
            raise UserError(
                f"item '{item_id}' has none of the media that the model encodes: "
                f"{', '.join(retriever.transforms)}"
            )
        return most_similar_to(retriever, row, k, by=by, at=time, wishes=wishes)

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
        time: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.DataFrame:
        """Scores new items from their media alone, for stored users or given histories.

        Args:
            items: as `new_items` gives them.
            users: ids; None with no histories means every stored user.
            histories: instead of users; their `user_id` in the result is their place.
            time: of the request, the same for all users, Unix seconds; the candidates are those
                available then. None: not known, and all candidates count.
            context: of the request, by the log's columns.

        Returns:
            user_id, item_id, score (cosine), rank (among the user's unseen candidates and this
            item, from 1), modalities, confidence (of one who met the item and one who did not, the
            chance that this user is the one who did; null where validation had too few new items
            to tell); best first for each user. Items without a usable medium have no row. The whole
            table is in memory: `score_file` streams.

        Raises:
            ItemNotFound: no user is known, or no item of a history.
            UserError: both users and histories are given, a context is no column of the log, or
                the model knows no media.
        """
        asked = all_asked(self.retriever, users, histories, Request(time, context or {}))
        new = encode_new(self.retriever, items)
        return score_frame(self.retriever, new, asked, at=time)

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

    def embed_users(
        self,
        histories: Sequence[Sequence[HistoryEvent]] | None = None,
        *,
        users: Sequence[str] | None = None,
        time: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> FloatArray:
        """Unit vectors (U, D) of users behind histories, or of stored users as `export` does.

        Args:
            histories: as in `recommend`; zeros for an empty one, unless the model reads requests.
            users: instead of histories ids, once each; those not known are left out. Without
                either, every stored user.
            time: of the request, the same for all, Unix seconds; None: not known.
            context: of the request, by the log's columns.

        Raises:
            ItemNotFound: no user is known, or items were given and none of a history is known.
            UserError: both users and histories are given, or a context is no column of the log.
        """
        asked = all_asked(self.retriever, users, histories, Request(time, context or {}))
        return _to_numpy(self.retriever.user_vectors(asked))


def _to_numpy(vectors: Tensor) -> FloatArray:
    array: FloatArray = vectors.float().cpu().numpy()
    return array
