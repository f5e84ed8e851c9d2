"""The routes that search: by a text as JSON, by a picture or a sound as multipart/form-data.

request ─ encoding thread: content of the query ─ lists' thread: words, taste, wishes ─► list
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError

from data_prep.errors import BrokenMedium
from data_prep.media import MediumKind
from mmrec.request import Request as AskedAt
from mmrec.retrieval.content import BrokenQuery
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.search import Query, Taste
from mmrec.serving import schemas
from mmrec.serving.asked import history_of, wishes_of
from mmrec.serving.faults import Fault, invalid
from mmrec.serving.headers import check_header
from mmrec.serving.live import Live
from mmrec.serving.questions import Encoded, ListQuestion, Task, asked_of, content_of
from mmrec.serving.reading import read_query
from mmrec.serving.refused_media import refused_medium, shown_name
from mmrec.serving.routes import TheService, listed, needs
from mmrec.serving.service import Service
from mmrec.serving.upload_routes import (
    OPAQUE,
    Form,
    checked,
    form_document,
    of_form,
    read_form,
    wrong_type,
)

searching = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("read"))], responses=schemas.ERRORS, tags=["ask"]
)
FILES: tuple[MediumKind, ...] = ("image", "audio")
Asked = schemas.SearchRequest | schemas.MediaSearchRequest
_AS_JSON: dict[str, tuple[TypeAdapter[Any], Any]] = {
    "history": (TypeAdapter(schemas.HistoryList), schemas.HistoryList),
    "wishes": (TypeAdapter(schemas.AskedWishes), schemas.AskedWishes),
}


@dataclass(frozen=True)
class _Read:
    """A query as the encoding thread leaves it; no content where words alone count."""

    content: Encoded | None


@searching.post("/search", response_model=schemas.ListAnswer)
async def search(asked: schemas.SearchRequest, service: TheService) -> Response:
    """Items that a text asks for, by words and meaning, in an order that a user likes if wanted.

    `found_by` of each says which of the two found it. Every item is searched, met or not.
    """
    return await _search(service, asked, Query(asked.text))


@searching.post(
    "/search/media",
    response_model=schemas.ListAnswer,
    openapi_extra=form_document(
        {
            "text": "With a picture or a sound, or alone.",
            "by": "hybrid (both, unless given), lexical (words) or dense (meaning).",
            "user_id": "Whose taste orders what is found.",
            "history": "The same, in place of a user: a JSON list, as /v1/search takes it.",
            "mix": "Weight of the taste, from 0 to 1; 0.5 unless given.",
            "k": "How many items; 10 unless given.",
            "time": "Unix seconds of the request; now unless given.",
            "wishes": "A JSON object, as /v1/search takes it.",
        },
        files={"image": "A picture.", "audio": "A sound."},
    ),
)
async def search_by_media(request: Request, service: TheService) -> Response:
    """Items that a picture or a sound asks for; with a text or several files each counts."""
    form = await read_form(request, service)
    asked = _asked_by(form)
    query = Query(asked.text, form.files.get("image"), form.files.get("audio"))
    return await _search(service, asked, query, form.names)


async def _search(
    service: Service, asked: Asked, query: Query, names: Mapping[str, str] = MappingProxyType({})
) -> Response:
    if asked.user_id is not None and asked.history is not None:
        raise Fault(
            422, "invalid", "user_id and history are both given, allowed is one", field="history"
        )
    if asked.by == "lexical" and query.text is None:
        raise Fault(422, "invalid", "by: a search by words needs a text", field="by")
    wishes = wishes_of(asked.wishes)
    history = None if asked.history is None else history_of(asked.history)

    def encode(live: Live) -> _Read:
        for kind in FILES:
            _check_file(service, query, kind, names)
        try:
            return _Read(read_query(live, query, asked.by))
        except BrokenQuery as error:
            field, limits = error.modality, service.settings.limits
            raise refused_medium(field, names.get(field), field, error.reason, limits) from None

    def question(read: _Read) -> Task:
        def answer(live: Live) -> list[Recommendation]:
            taste = None
            if asked.user_id is not None or history is not None:
                who = ListQuestion(
                    asked.user_id, history, None, AskedAt(asked.time), asked.k, asked.time, wishes
                )
                taste = Taste(asked_of(live, who), asked.mix)
            content = None if read.content is None else content_of(live, read.content)
            return live.search(
                query, asked.k, by=asked.by, taste=taste, at=asked.time, wishes=wishes,
                content=content,
            )  # fmt: skip

        return Task(answer, () if asked.user_id is None else (asked.user_id,))

    live = service.live
    if asked.by == "lexical" and live is not None and live.has_words:
        return listed(service, await service.ask(question(_Read(None))))
    return listed(service, await service.ask_encoded(encode, question))


def _check_file(service: Service, query: Query, kind: MediumKind, names: Mapping[str, str]) -> None:
    """Looks at the header of a file before it is decoded.

    Raises:
        Fault: it claims more than the service takes.
    """
    data = query.media.get(kind)
    if not isinstance(data, bytes):
        return
    try:
        check_header(data, kind, service.settings.limits)
    except BrokenMedium as error:
        raise refused_medium(kind, names.get(kind), kind, error, service.settings.limits) from None


def _asked_by(form: Form) -> schemas.MediaSearchRequest:
    """What the fields of a form ask.

    Raises:
        Fault: a field or a file is none of a search, or is wrong.
    """
    for name, given in form.kinds.items():
        if name not in FILES:
            raise Fault(
                422, "unknown_field",
                f"{name[:60]!r} ({shown_name(form.names[name])}) is no file of a search, allowed "
                f"are {', '.join(FILES)}",
                field=name[:60],
            )  # fmt: skip
        if given not in OPAQUE and given.partition("/")[0] != name:
            raise wrong_type(form, name, [name])
    if len(form.user_ids) > 1:
        raise Fault(422, "invalid", "'user_id' comes twice", field="user_id")
    stray = sorted(form.fields.keys() - schemas.MediaSearchRequest.model_fields.keys())
    if stray:
        name, allowed = stray[0][:60], ", ".join(schemas.MediaSearchRequest.model_fields)
        raise Fault(
            422, "unknown_field",
            f"{name}: no such field of a search, allowed are {allowed}, and as files "
            f"{', '.join(FILES)}",
            field=name,
        )  # fmt: skip
    fields: dict[str, Any] = {**form.fields, "user_id": next(iter(form.user_ids), None)}
    for name, (adapter, kind) in _AS_JSON.items():
        if name in form.fields:
            fields[name] = checked(adapter, form.fields[name], name, as_json=True, kind=kind)
    try:
        return schemas.MediaSearchRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(of_form(error)) from None
