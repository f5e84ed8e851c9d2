"""The routes that take media, as multipart/form-data: add an item, score one, find what is like it.

Fields carry the catalogue's names: texts and attributes as they are, `vector.NAME` as a JSON list,
files by the columns of media. The body was bounded before it came here; so is each part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from mmrec.request import Request as AskedAt
from mmrec.retrieval.cold import score_tiles
from mmrec.retrieval.content import NewContent
from mmrec.retrieval.recommend import most_similar
from mmrec.retrieval.wishes import NO_WISHES
from mmrec.serving import schemas
from mmrec.serving.answering import content_bytes
from mmrec.serving.asked import history_of
from mmrec.serving.database import StoredItem
from mmrec.serving.faults import Fault, invalid
from mmrec.serving.given_items import Upload
from mmrec.serving.limits import MULTIPART, check_type
from mmrec.serving.live import Live
from mmrec.serving.questions import Encoded, ListQuestion, Task, asked_of, content_of
from mmrec.serving.refused_media import shown_name
from mmrec.serving.routes import TheService, listed, needs, sent
from mmrec.serving.service import Service
from mmrec.serving.settings import Limits

MAX_FIELDS = 100
_ID = TypeAdapter(schemas.Id)
_HISTORY = TypeAdapter(schemas.HistoryList)
_K = TypeAdapter(int)
_TEXT = TypeAdapter(schemas.FieldText)
comparing = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("read"))], responses=schemas.ERRORS, tags=["ask"]
)
adding = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("write"))], responses=schemas.ERRORS, tags=["tell"]
)
OPAQUE = ("", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True)
class Form:
    """A form whose size is bounded.

    Attributes:
        fields: single ones by name.
        user_ids: the field that may come several times.
        files: bytes by name.
        kinds: declared content type of each file.
        names: of each file, as it was uploaded.
    """

    fields: Mapping[str, str]
    user_ids: list[str]
    files: Mapping[str, bytes]
    kinds: Mapping[str, str]
    names: Mapping[str, str]

    def upload(self, item_id: str, *, without: tuple[str, ...]) -> Upload:
        """The item in it, without fields that mean something else."""
        fields = {name: value for name, value in self.fields.items() if name not in without}
        return Upload(item_id, fields, self.files, self.names)


async def read_form(request: Request, service: Service) -> Form:
    """Reads a form.

    Raises:
        Fault: it is no form, cannot be read, has too many parts, or a field comes twice.
    """
    limits: Limits = service.settings.limits
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    kinds: dict[str, str] = {}
    names: dict[str, str] = {}
    user_ids: list[str] = []
    check_type(request.headers.get("content-type", ""), MULTIPART)
    try:
        form = request.form(
            max_files=limits.max_media, max_fields=MAX_FIELDS, max_part_size=limits.max_text_bytes
        )
        async with form as parts:
            for name, value in parts.multi_items():
                if name == "user_id" and isinstance(value, str):
                    user_ids.append(checked(_ID, value, name))
                    continue
                if name in fields or name in files:
                    raise Fault(422, "invalid", f"{name[:60]!r} comes twice", field=name[:60])
                if isinstance(value, UploadFile):
                    files[name] = await value.read()
                    kinds[name] = (value.content_type or "").partition(";")[0].strip().lower()
                    names[name] = value.filename or ""
                else:
                    fields[name] = checked(_TEXT, value, name[:60])
    except Fault:
        raise
    except HTTPException as error:  # of the parser
        raise Fault(400, "malformed", f"the form cannot be read: {error.detail}") from None
    except (ValueError, LookupError) as error:
        raise Fault(400, "malformed", f"the form cannot be read: {error}") from None
    return Form(fields, user_ids, files, kinds, names)


def checked(
    adapter: TypeAdapter[Any], value: str, field: str, *, as_json: bool = False, kind: Any = None
) -> Any:
    """The value of a field of a form.

    Args:
        adapter: what it is to be.
        value: as it came.
        field: its name.
        as_json: it is written as JSON.
        kind: the type behind the adapter, to say which fields it has.

    Raises:
        Fault: it is none of that.
    """
    try:
        return adapter.validate_json(value) if as_json else adapter.validate_python(value)
    except ValidationError as error:
        raise invalid(of_form(error), kind, within=field) from None


def of_form(error: ValidationError) -> list[Any]:
    """What is wrong with a form, placed as FastAPI places what is wrong with a body."""
    return [{**each, "loc": ("form", *each["loc"])} for each in error.errors()]


def form_document(
    form: Mapping[str, str], *, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What OpenAPI says of a form.

    Args:
        form: what each field is, by name.
        files: what each file is, by name; None: more fields and files have the catalogue's names.
    """
    properties: dict[str, Any] = {
        name: {"type": "string", "description": text} for name, text in form.items()
    }
    if "user_id" in form and files is None:
        properties["user_id"] = {"type": "array", "items": {"type": "string"}}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [name for name in ("item_id",) if name in form],
        "additionalProperties": {
            "type": "string",
            "description": "A text, an attribute or a file, by the catalogue's names.",
        },
    }
    for name, text in (files or {}).items():
        properties[name] = {"type": "string", "format": "binary", "description": text}
        schema["additionalProperties"] = False
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


@adding.post(
    "/items",
    response_model=schemas.ItemAnswer,
    openapi_extra=form_document({"item_id": "External id; an added item of this id is replaced."}),
)
async def add_item(request: Request, service: TheService) -> Response:
    """Adds an item from its media: every worker lists it from its next request on."""
    form = await read_form(request, service)
    if "item_id" not in form.fields:
        raise Fault(422, "invalid", "item_id: Field required", field="item_id")
    item_id = checked(_ID, form.fields["item_id"], "item_id")
    upload = form.upload(item_id, without=("item_id",))

    def encode(live: Live) -> tuple[StoredItem, Encoded]:
        _check_kinds(live, form)
        return service.through_the_door(live, upload)

    known = await service.ask(Task(lambda live: live.is_of_catalogue(item_id)))
    if known.value:
        raise Fault(
            409, "of_catalogue",
            f"item {item_id[:60]!r} is of the catalogue; remove it first, or take another id",
            field="item_id",
        )  # fmt: skip
    item, encoded = await service.encode(encode)
    created = await service.keep(
        lambda: service.database.add_item(
            item,
            model_hash=encoded.model_hash,
            modalities=encoded.modalities,
            content=content_bytes(encoded.content),
        )
    )
    if created:
        service.monitoring.items.labels("added").inc()
    return sent(
        schemas.ItemAnswer(
            model=encoded.model_hash,
            item_id=item_id,
            modalities=list(encoded.modalities),
            created=created,
        )
    )


@comparing.post(
    "/score",
    response_model=schemas.ScoreAnswer,
    openapi_extra=form_document(
        {
            "user_id": "Users; may come several times.",
            "history": "In place of users: a JSON list, as /v1/recommend takes it.",
        }
    ),
)
async def score(request: Request, service: TheService) -> Response:
    """How users would like a new item, from its media alone; it is not kept."""
    form = await read_form(request, service)
    history = None
    if "history" in form.fields:
        given = form.fields["history"]
        history = history_of(
            checked(_HISTORY, given, "history", as_json=True, kind=schemas.HistoryList)
        )
        if not len(history):
            raise Fault(422, "invalid", "history: is empty, give an item or more", field="history")
    if (history is None) == (not form.user_ids):
        raise Fault(422, "invalid", "give one of user_id and history", field="user_id")
    upload = form.upload("new", without=("history",))
    asked_for: list[str | None] = [*form.user_ids] or [None]

    def question(encoded: Encoded) -> Task:
        def answer(live: Live) -> tuple[Encoded, list[schemas.UserScore]]:
            asked = [
                asked_of(live, ListQuestion(each, history, None, AskedAt(), 1, None, NO_WISHES))
                for each in asked_for
            ]
            unknown = [each.user_id for each in asked if not len(each.history)]
            if unknown:
                raise Fault(
                    404, "not_found", f"nothing is known of user {unknown[0][:60]!r}",
                    field="user_id",
                )  # fmt: skip
            content = content_of(live, encoded)[None]
            made_of = [list(encoded.modalities)]
            embedding = live.retriever.embeddings_of_new(content, made_of)
            new = NewContent([upload.item_id], content, embedding, made_of, [], [])
            scores = []
            for tile in score_tiles(live.retriever, new, asked):
                rows = zip(
                    tile.user_ids,
                    tile.score[:, 0].tolist(),
                    tile.rank[:, 0].tolist(),
                    tile.confidence[:, 0].tolist(),
                    strict=True,
                )
                scores += [
                    schemas.UserScore(
                        user_id=user_id, score=value, rank=rank,
                        confidence=None if math.isnan(sure) else sure,
                    )
                    for user_id, value, rank, sure in rows
                ]  # fmt: skip
            return encoded, sorted(scores, key=lambda each: -each.score)

        return Task(answer, tuple(form.user_ids))

    answer = await service.ask_encoded(_encodes(service, form, upload), question)
    encoded, users = answer.value
    return sent(
        schemas.ScoreAnswer(
            model=answer.model_hash,
            degraded=answer.degraded,
            modalities=list(encoded.modalities),
            users=users,
        )
    )


@comparing.post(
    "/similar/media",
    response_model=schemas.ListAnswer,
    openapi_extra=form_document({"k": "How many items; 10 unless given."}),
)
async def similar_to_media(request: Request, service: TheService) -> Response:
    """Items whose content is nearest to a picture's, a sound's, or several media's."""
    form = await read_form(request, service)
    k = checked(_K, form.fields.get("k", "10"), "k")
    if not 1 <= k <= schemas.MAX_K:
        raise Fault(422, "invalid", f"k is {k}, allowed is 1 to {schemas.MAX_K}", field="k")
    upload = form.upload("query", without=("k",))

    def question(query: Encoded) -> Task:
        return Task(lambda live: most_similar(live.retriever, content_of(live, query), k))

    answer = await service.ask_encoded(_encodes(service, form, upload), question)
    return listed(service, answer)


@comparing.post("/embed/media", response_model=schemas.EmbedAnswer, openapi_extra=form_document({}))
async def embed_media(request: Request, service: TheService) -> Response:
    """Vector of a new item from its media; it is not kept."""
    form = await read_form(request, service)
    encoded = await service.encode(_encodes(service, form, form.upload("new", without=())))
    vector = encoded.content.tolist()
    item = schemas.ItemVectors(
        item_id="new", embedding=vector, content=vector, modalities=list(encoded.modalities)
    )
    return sent(schemas.EmbedAnswer(model=encoded.model_hash, items=[item]))


def _encodes(service: Service, form: Form, upload: Upload) -> Callable[[Live], Encoded]:
    def encode(live: Live) -> Encoded:
        _check_kinds(live, form)
        return service.through_the_door(live, upload)[1]

    return encode


def wrong_type(form: Form, name: str, wanted: Sequence[str]) -> Fault:
    """The answer to a file whose content type is none of those that its field takes."""
    return Fault(
        415, "wrong_type",
        f"{name}: {shown_name(form.names[name])}: Content-Type is {form.kinds[name][:60]!r}, "
        f"allowed is {' or '.join(f'{kind}/*' for kind in wanted)}",
        field=name,
    )  # fmt: skip


def _check_kinds(live: Live, form: Form) -> None:
    """Refuses a file whose content type says that it is something else than its column holds.

    Raises:
        Fault: 415, names both.
    """
    items = live.retriever.catalogue.items
    for name, given in form.kinds.items():
        wanted = [kind for kind in ("image", "audio", "video") if name in getattr(items, kind)]
        if wanted and given not in OPAQUE and given.partition("/")[0] not in wanted:
            raise wrong_type(form, name, wanted)
