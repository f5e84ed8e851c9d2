"""Questions answered together, on what the database says at that moment.

    questions ─ what is new in the database ─ users' vectors, all at once ─ a list each ─► answers

Where the model is not there, or fails, lists hold what is popular, and say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from mmrec.errors import UserError
from mmrec.request import Request
from mmrec.retrieval.content import NewContent, encode_new
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.recommend import basis_of, recommend_next
from mmrec.retrieval.retriever import Asked, HistoryEvent, Retriever
from mmrec.retrieval.second_stage import choose_second_stage
from mmrec.retrieval.wishes import Wishes
from mmrec.serving.database import DATABASE_ERRORS, Database, Event, ItemChange, StoredItem
from mmrec.serving.faults import Fault
from mmrec.serving.given_items import GivenMedia
from mmrec.serving.live import Live

logger = logging.getLogger(__name__)
NUM_POPULAR = 1000


@dataclass(frozen=True)
class Encoded:
    """A vector and the space it lives in.

    Attributes:
        model_hash: of the model that made it.
        content: (D,) unit.
        modalities: that it is made of.
    """

    model_hash: str
    content: Tensor
    modalities: Sequence[str]


@dataclass(frozen=True)
class ListQuestion:
    """Whoever wants a list.

    Attributes:
        user_id: of the log, or of events since, or of somebody nothing is known of.
        history: in place of a user.
        attributes: of a user who is not stored.
        request: when and where.
        k: how many.
        at: Unix seconds at which items must be available; None: now.
        wishes: what the list is to be like.
        taste: what the user says he likes.
        ranked: ordered by the second stage; None: where it was better than chance.
        calibrated: with its calibrated probabilities.
    """

    user_id: str | None
    history: Sequence[HistoryEvent] | None
    attributes: Mapping[str, Any] | None
    request: Request
    k: int
    at: float | None
    wishes: Wishes
    taste: Encoded | None = None
    ranked: bool | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class Task:
    """Anything else that is asked of the model.

    Attributes:
        run: gives the answer, in the thread that owns the model.
        user_ids: of users whose events it has to know.
    """

    run: Callable[[Live], Any]
    user_ids: tuple[str, ...] = ()


Question = ListQuestion | Task


@dataclass(frozen=True)
class Answer:
    """What a question is answered.

    Attributes:
        value: a list of recommendations, or what the question's own function gave.
        model_hash: of the model; None where none answered.
        degraded: what was out of order: model, database.
    """

    value: Any
    model_hash: str | None
    degraded: list[str] = field(default_factory=list)


OnList = Callable[[Live, Asked, ListQuestion, list[Recommendation]], None]


class ModelChanged(Exception):
    """A vector was made by a model that no longer answers: make it anew."""


class Answering:
    """Answers questions; only one thread calls `answer`.

    Args:
        database: of events and added items.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.live: Live | None = None
        """What answers; None where there is no model."""
        self.on_list: OnList = lambda live, asked, question, found: None
        """Told of every list that the model has made."""

    def answer(self, questions: list[Question]) -> list[Answer | Exception]:
        """Answers, or errors, in the order of the questions."""
        live, degraded, events = self.live, list[str](), dict[str, list[Event]]()
        try:
            if live is not None:
                follow(live, self._database)
            events = self._database.events_of(_user_ids(questions))
        except DATABASE_ERRORS as error:
            logger.warning("the database does not answer: %s", " ".join(str(error).split())[:200])
            degraded.append("database")
        if live is None:
            return [self._without_model(each, events, degraded) for each in questions]
        live.use_events(events)
        asked = _all_asked(live, questions)
        users = _user_vectors(live.retriever, asked)
        answers: list[Answer | Exception] = []
        for place, question in enumerate(questions):
            told = asked.get(place)
            try:
                if isinstance(told, Exception):
                    raise told
                value = _value(live, question, told, users.get(place))
                if isinstance(question, ListQuestion) and told is not None:
                    self.on_list(live, told, question, value)
                answers.append(Answer(value, live.model_hash, degraded))
            except (UserError, Fault, ModelChanged) as error:
                answers.append(error)
            except Exception as error:
                if not isinstance(question, ListQuestion):
                    answers.append(error)
                    continue
                logger.error("the model failed; what is popular is listed", exc_info=error)
                answers.append(self._without_model(question, events, degraded))
        return answers

    def _without_model(
        self, question: Question, events: Mapping[str, Sequence[Event]], degraded: list[str]
    ) -> Answer | Exception:
        """What is popular and neither met nor unwanted."""
        if not isinstance(question, ListQuestion):
            return Fault(503, "model", "the model is not there: try again", retry_after_s=10.0)
        try:
            popular = self._database.popular()
        except DATABASE_ERRORS as error:
            return error
        met = {each.item_id for each in events.get(question.user_id or "", ())}
        met |= {str(e[0]) if isinstance(e, tuple) else str(e) for e in question.history or ()}
        hidden = met | set(question.wishes.without)
        if question.wishes.where or question.calibrated or not popular:
            return Fault(503, "model", "the model is not there: try again", retry_after_s=10.0)
        shown = [each for each in popular if each[0] not in hidden][: question.k]
        found = [
            Recommendation(rank, item_id, events_of_item, title, "popularity")
            for rank, (item_id, title, events_of_item) in enumerate(shown, 1)
        ]
        return Answer(found, None, ["model", *degraded])


def _value(live: Live, question: Question, asked: Asked | None, user: Tensor | None) -> Any:
    """The answer to one question."""
    if isinstance(question, Task):
        return question.run(live)
    assert asked is not None
    retriever = live.retriever
    stage = choose_second_stage(
        retriever, live.second_stage, ranked=question.ranked, calibrated=question.calibrated
    )
    return recommend_next(
        retriever, asked, question.k, at=question.at, wishes=question.wishes, second_stage=stage,
        user=user,
    )  # fmt: skip


def _user_ids(questions: Sequence[Question]) -> list[str]:
    """Users whose events have to be known, once each."""
    found: dict[str, None] = {}
    for each in questions:
        named = each.user_ids if isinstance(each, Task) else (each.user_id,)
        found.update(dict.fromkeys(name for name in named if name is not None))
    return list(found)


def follow(live: Live, database: Database) -> None:
    """Brings a model up to what the database says of items; cheap where nothing is new.

    Raises:
        DBAPIError: the database does not answer.
    """
    if database.numbers()["items"] <= live.followed:
        return
    live.apply(
        database.item_changes(live.followed, live.model_hash),
        lambda number: _encode_stored(live.retriever, database, number),
    )


def encode_items(retriever: Retriever, items: Sequence[StoredItem]) -> NewContent:
    """Contents of items whose media have passed the door.

    Raises:
        UserError: the model knows no media, or a vector is of another width.
    """
    return encode_new(retriever, GivenMedia(items))


def content_bytes(content: Tensor) -> bytes:
    """A vector (D,) as the database keeps it: float32, little-endian."""
    return np.ascontiguousarray(content.float().cpu().numpy(), "<f4").tobytes()


def popular_items(retriever: Retriever) -> list[tuple[str, str | None, float]]:
    """Candidates with most training events: id, title, events; most first."""
    rows = retriever.items.candidates
    order = rows[np.argsort(-retriever.counts[rows], kind="stable")][:NUM_POPULAR]
    items = retriever.items
    return [(items.item_ids[row], items.titles[row], float(retriever.counts[row])) for row in order]


def _encode_stored(retriever: Retriever, database: Database, number: int) -> ItemChange | None:
    """An added item that another model encoded, encoded by this one; None: it cannot."""
    item = database.item(number)
    try:
        new = encode_items(retriever, [item])
    except UserError as error:
        logger.warning("item '%s' cannot be encoded by this model: %s", item.item_id, error)
        return None
    if not new.item_ids:
        logger.warning("item '%s' has no medium that this model encodes", item.item_id)
        return None
    content = content_bytes(new.content[0])
    database.add_vector(
        number, model_hash=retriever.model_hash, modalities=new.modalities[0], content=content
    )
    return ItemChange(
        number, item.item_id, "added", item.texts, item.attributes, new.modalities[0], content
    )


def asked_of(live: Live, question: ListQuestion) -> Asked:
    """Whoever asks, as the model is asked about him.

    Raises:
        ItemNotFound: a history was given and none of its items is known.
        UserError: a name is none of the catalogue's.
        ModelChanged: the taste was encoded by another model.
    """
    retriever, request = live.retriever, question.request
    row = None if question.user_id is None else retriever.users.index_of(question.user_id)
    if row is not None:
        asked = retriever.stored_user(row, request)
    else:
        asked = retriever.given_user(
            question.history or (),
            question.user_id or "",
            request=request,
            attributes=question.attributes,
        )
    if question.taste is None:
        return asked
    return replace(asked, taste=content_of(live, question.taste))


def content_of(live: Live, encoded: Encoded) -> Tensor:
    """A vector that is in the space of the model that answers.

    Raises:
        ModelChanged: it is not.
    """
    if encoded.model_hash != live.model_hash:
        raise ModelChanged
    return encoded.content


def _all_asked(live: Live, questions: Sequence[Question]) -> dict[int, Asked | Exception]:
    """Whoever wants a list, by the place of his question."""
    found: dict[int, Asked | Exception] = {}
    for place, question in enumerate(questions):
        if isinstance(question, ListQuestion):
            try:
                found[place] = asked_of(live, question)
            except Exception as error:
                found[place] = error
    return found


def _user_vectors(
    retriever: Retriever, asked: Mapping[int, Asked | Exception]
) -> dict[int, Tensor]:
    """Vectors (D,) of those whose list is made from one, computed together.

    Where the model fails, none: each is then tried by itself.
    """
    told = {
        place: each
        for place, each in asked.items()
        if isinstance(each, Asked) and basis_of(retriever, each) != "popularity"
    }
    if not told:
        return {}
    try:
        vectors = retriever.user_vectors(list(told.values()))
    except Exception:
        logger.exception("users could not be told together")
        return {}
    return dict(zip(told, vectors, strict=True))
