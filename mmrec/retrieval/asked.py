"""Who is asked about: stored users, or those who come with their histories.

Legend: U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrec.errors import UserError
from mmrec.request import Request
from mmrec.retrieval.given_history import HistoryEvent
from mmrec.retrieval.known import Asked
from mmrec.retrieval.retriever import Retriever


def one_asked(
    retriever: Retriever,
    user_id: str | None,
    history: Sequence[HistoryEvent] | None,
    attributes: Mapping[str, Any] | None,
    request: Request,
) -> Asked:
    """A stored user, or one who comes with his history.

    Raises:
        ItemNotFound: the user is not known, or no item of the history.
        UserError: a user is given in two ways, or a name is not the catalogue's.
    """
    if user_id is not None and (history is not None or attributes is not None):
        other = "history" if history is not None else "attributes"
        raise UserError(f"user_id and {other} are both given, allowed is one of them")
    if user_id is not None:
        rows, _ = retriever.stored_users([user_id])
        return retriever.stored_user(rows[0], request)
    return retriever.given_user(history or (), request=request, attributes=attributes)


def all_asked(
    retriever: Retriever,
    users: Sequence[str] | None,
    histories: Sequence[Sequence[HistoryEvent]] | None,
    request: Request,
) -> list[Asked]:
    """U stored users, or those behind histories; without either, all that are stored.

    Raises:
        ItemNotFound: no user is known, or no item of a history.
        UserError: users and histories are both given, or a name is not the catalogue's.
    """
    if users is not None and histories is not None:
        raise UserError("users and histories are both given, allowed is one of them")
    if histories is not None:
        return [
            retriever.given_user(each, str(row), request=request)
            for row, each in enumerate(histories)
        ]
    rows: Sequence[int] = range(len(retriever.users.user_ids))
    if users is not None:
        rows, _ = retriever.stored_users(users)
    return [retriever.stored_user(row, request) for row in rows]
