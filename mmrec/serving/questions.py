"""Questions to the model as they wait for their turn, and its answers.

Legend: D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mmrec.request import Request
from mmrec.retrieval.intent import Intent
from mmrec.retrieval.retriever import Asked, HistoryEvent
from mmrec.retrieval.wishes import Wishes
from mmrec.serving.live import Live


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
class Wanted:
    """What a user looks for, as it was read.

    Attributes:
        intent: one that counts.
        content: of its query; None where words alone count.
    """

    intent: Intent
    content: Encoded | None


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
        wanted: what the user looks for; None: nothing in particular.
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
    wanted: Wanted | None = None


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


class ModelChanged(Exception):
    """A vector was made by a model that no longer answers: make it anew."""


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
