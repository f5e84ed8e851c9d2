"""Questions answered together, on what the database says at that moment.

    questions ─ what is new in the database ─ users' vectors, and ranks, all at once ─► answers

Where the model is not there, or fails, lists hold what is popular, and say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from mmrec.errors import UserError
from mmrec.retrieval.content import NewContent, encode_new
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.recommend import ListRequest, basis_of, recommend_together
from mmrec.retrieval.retriever import Asked, Retriever
from mmrec.retrieval.second_stage import choose_second_stage
from mmrec.serving.database import DATABASE_ERRORS, Database, Event, ItemChange, StoredItem
from mmrec.serving.faults import Fault
from mmrec.serving.given_items import GivenMedia
from mmrec.serving.live import Live
from mmrec.serving.questions import (
    Answer,
    ListQuestion,
    ModelChanged,
    Question,
    Task,
    Wanted,
    asked_of,
    content_of,
)

logger = logging.getLogger(__name__)
NUM_POPULAR = 1000


OnList = Callable[[Live, Asked, ListQuestion, list[Recommendation]], None]


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
        lists = _lists(live, questions, asked, users)
        for place, question in enumerate(questions):
            try:
                value = question.run(live) if isinstance(question, Task) else lists[place]
                if isinstance(value, Exception):
                    raise value
                told = asked.get(place)
                if isinstance(question, ListQuestion) and isinstance(told, Asked):
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
        must = question.wishes.where or question.calibrated or question.wanted
        if must or not popular:
            return Fault(503, "model", "the model is not there: try again", retry_after_s=10.0)
        shown = [each for each in popular if each[0] not in hidden][: question.k]
        found = [
            Recommendation(rank, item_id, events_of_item, title, "popularity")
            for rank, (item_id, title, events_of_item) in enumerate(shown, 1)
        ]
        return Answer(found, None, ["model", *degraded])


def _lists(
    live: Live,
    questions: Sequence[Question],
    asked: Mapping[int, Asked | Exception],
    users: Mapping[int, Tensor],
) -> dict[int, list[Recommendation] | Exception]:
    """The lists that are asked for, or errors in their place; ranked together where they are."""
    found: dict[int, list[Recommendation] | Exception] = {}
    requests: dict[int, ListRequest] = {}
    stage = None
    for place, told in asked.items():
        question = questions[place]
        assert isinstance(question, ListQuestion)
        try:
            if isinstance(told, Exception):
                raise told
            if question.wanted is not None:
                found[place] = _found(live, question, question.wanted, told)
                continue
            chosen = choose_second_stage(
                live.retriever, live.second_stage, ranked=question.ranked,
                calibrated=question.calibrated,
            )  # fmt: skip
            stage = stage or chosen
            requests[place] = ListRequest(
                told, question.k, question.at, question.wishes, chosen is not None,
                users.get(place),
            )  # fmt: skip
        except Exception as error:
            found[place] = error
    try:
        made = recommend_together(live.retriever, [*requests.values()], stage)
    except Exception as error:  # a defect: what is popular is listed all the same
        made = [error] * len(requests)
    return found | dict(zip(requests, made, strict=True))


def _found(
    live: Live, question: ListQuestion, wanted: Wanted, asked: Asked
) -> list[Recommendation]:
    """What a query finds, in an order that a user likes."""
    intent = wanted.intent
    content = None if wanted.content is None else content_of(live, wanted.content)
    return live.search(
        intent.query, question.k, taste=intent.taste(asked), at=question.at,
        wishes=question.wishes, content=content,
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
