"""The routes that search: by a text as JSON, by a picture or a sound as multipart/form-data.

request ─ encoding thread: content of the query ─ lists' thread: words, taste, wishes ─► list
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError

from data_prep.errors import BrokenMedium
from data_prep.media import MediumKind
from mmrec.request import Request as AskedAt
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.search import Query, Taste
from mmrec.serving import schemas
from mmrec.serving.asked import history_of, wishes_of
from mmrec.serving.faults import Fault
from mmrec.serving.headers import check_header
from mmrec.serving.live import Live
from mmrec.serving.questions import Encoded, ListQuestion, Task, asked_of, content_of
from mmrec.serving.reading import read_query
from mmrec.serving.routes import TheService, listed, needs
from mmrec.serving.service import Service
from mmrec.serving.upload_routes import OPAQUE, Form, form_document, read_form

searching = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("read"))], responses=schemas.ERRORS, tags=["ask"]
)
FILES: tuple[MediumKind, ...] = ("image", "audio")
Asked = schemas.SearchRequest | schemas.MediaSearchRequest
_AS_JSON: dict[str, TypeAdapter[Any]] = {
    "history": TypeAdapter(schemas.HistoryList),
    "wishes": TypeAdapter(schemas.AskedWishes),
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
    return await _search(service, asked, query)


async def _search(service: Service, asked: Asked, query: Query) -> Response:
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
            _check_file(service, query, kind)
        return _Read(read_query(live, query, asked.by))

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


def _check_file(service: Service, query: Query, kind: MediumKind) -> None:
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
        raise Fault(422, "broken_medium", f"{kind}: {error}", field=kind) from None


def _asked_by(form: Form) -> schemas.MediaSearchRequest:
    """What the fields of a form ask.

    Raises:
        Fault: a field or a file is none of a search, or is wrong.
    """
    for name, given in form.kinds.items():
        if name not in FILES:
            raise Fault(
                422, "unknown_field",
                f"{name[:60]!r} is no file of a search, allowed are {', '.join(FILES)}",
                field=name[:60],
            )  # fmt: skip
        if given not in OPAQUE and given.partition("/")[0] != name:
            raise Fault(
                415, "wrong_type", f"{name}: Content-Type is {given[:60]!r}, wanted is {name}/*",
                field=name,
            )  # fmt: skip
    if len(form.user_ids) > 1:
        raise Fault(422, "invalid", "'user_id' comes twice", field="user_id")
    fields: dict[str, Any] = {**form.fields, "user_id": next(iter(form.user_ids), None)}
    for name, kind in _AS_JSON.items():
        if name in form.fields:
            try:
                fields[name] = kind.validate_json(form.fields[name])
            except ValidationError as error:
                raise _invalid(error, name) from None
    try:
        return schemas.MediaSearchRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, str(error.errors()[0]["loc"][0])[:60]) from None


def _invalid(error: ValidationError, field: str) -> Fault:
    return Fault(422, "invalid", f"{field}: {error.errors()[0]['msg']}", field=field)
