"""The routes that show what there is: columns, some users, their histories, items and pictures.

An id is any string, so it is the rest of a path, URL-encoded; what ends in `/image` is a picture.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from mmrec.serving import schemas
from mmrec.serving.faults import Fault
from mmrec.serving.live import Live
from mmrec.serving.page.page import unless_known
from mmrec.serving.pictures import CONTENT_TYPES, Pictures
from mmrec.serving.questions import Task
from mmrec.serving.routes import TheService, needs, sent
from mmrec.serving.service import Service

CACHE_S = 300
"""Seconds a picture is kept without asking: an added item may be replaced by another."""
router = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("read"))], responses=schemas.ERRORS, tags=["show"]
)
HowMany = Annotated[int, Query(ge=1, le=100, description="How many.")]


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogueAnswer(_Shown):
    """What a new item may consist of, by the catalogue's columns."""

    name: str
    text: list[str]
    image: list[str]
    audio: list[str]
    video: list[str]
    columns: dict[str, Any] = Field(
        description="How a table of items is read: `items` of the catalogue file."
    )


class UsersAnswer(_Shown):
    """Some users of the log."""

    user_ids: list[str]


class ShownItem(_Shown):
    """An item of the catalogue or an added one."""

    item_id: str
    title: str | None
    modalities: list[str]
    listed: bool


class PicturesAnswer(_Shown):
    """Those of some items that have a picture."""

    item_ids: list[str]


class HistoryAnswer(_Shown):
    """The last events of a user, oldest first."""

    user_id: str
    items: list[ShownItem]


@router.get("/catalogue", response_model=CatalogueAnswer)
async def catalogue(service: TheService) -> Response:
    """The columns that an upload may name."""

    def question(live: Live) -> CatalogueAnswer:
        columns = live.retriever.catalogue.items
        return CatalogueAnswer(
            name=live.retriever.catalogue.name,
            text=list(columns.text),
            image=list(columns.image),
            audio=list(columns.audio),
            video=list(columns.video),
            columns=columns.model_dump(mode="json", by_alias=True, exclude={"table", "where"}),
        )

    return sent((await service.ask(Task(question))).value)


@router.get("/users", response_model=UsersAnswer)
async def users(service: TheService, k: HowMany = 50) -> Response:
    """The first users of the log, to choose from."""

    def question(live: Live) -> UsersAnswer:
        return UsersAnswer(user_ids=list(islice(live.retriever.users.user_ids, k)))

    return sent((await service.ask(Task(question))).value)


@router.get("/users/{user_id:path}/history", response_model=HistoryAnswer)
async def history(user_id: schemas.Id, service: TheService, k: HowMany = 20) -> Response:
    """What a user met last, in the log and since."""

    def question(live: Live) -> HistoryAnswer:
        known = live.retriever.users
        row = known.index_of(user_id)
        if row is None:
            raise Fault(
                404, "not_found", f"nothing is known of user {user_id[:60]!r}", field="user_id"
            )
        rows = known.complete(row).item_index[-k:].tolist()
        return HistoryAnswer(user_id=user_id, items=[_shown(live, each) for each in rows])

    return sent((await service.ask(Task(question, (user_id,)))).value)


@router.get(
    "/items/{item_id:path}/image",
    response_class=Response,
    responses={
        200: {"content": dict.fromkeys(CONTENT_TYPES.values(), {}), "description": "A picture"},
        304: {"description": "The picture that If-None-Match names"},
    },
)
async def image(item_id: schemas.Id, request: Request, service: TheService) -> Response:
    """The first picture of an item, as it was stored."""
    pictures: Pictures = request.app.state.pictures
    picture = await asyncio.to_thread(pictures.first, item_id, _version(service))
    if picture is None:
        raise Fault(404, "not_found", f"item {item_id[:60]!r} has no picture", field="item_id")
    headers = {
        "Content-Type": CONTENT_TYPES[picture.extension],
        # private: a key may have been asked for
        "Cache-Control": f"private, max-age={CACHE_S}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'",
    }
    return unless_known(request, picture.data, headers)


@router.get("/pictures", response_model=PicturesAnswer)
async def pictures(
    request: Request,
    service: TheService,
    item_id: Annotated[list[schemas.Id], Query(min_length=1, max_length=100)],
) -> Response:
    """Which items have a picture, so that none is asked for in vain."""
    found: Pictures = request.app.state.pictures
    version = _version(service)

    def with_picture() -> list[str]:
        return [each for each in item_id if found.first(each, version) is not None]

    return sent(PicturesAnswer(item_ids=await asyncio.to_thread(with_picture)))


@router.get("/items/{item_id:path}", response_model=ShownItem)
async def item(item_id: schemas.Id, service: TheService) -> Response:
    """An item's title, what it is made of, and whether it is listed."""

    def question(live: Live) -> ShownItem:
        return _shown(live, live.retriever.item_index(item_id))

    return sent((await service.ask(Task(question))).value)


def _version(service: Service) -> str | None:
    return None if service.live is None else service.live.version


def _shown(live: Live, row: int) -> ShownItem:
    items = live.retriever.items
    item_id = items.item_ids[row]
    return ShownItem(
        item_id=item_id,
        title=items.titles[row],
        modalities=items.modalities(row),
        listed=live.lists(item_id),
    )
