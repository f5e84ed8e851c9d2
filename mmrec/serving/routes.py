"""The routes: each turns a request into a question, and its answer into a document."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from mmrec.request import Request as AskedAt
from mmrec.retrieval.explain import Explanation
from mmrec.retrieval.intent import Intent
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.recommend import RankedRecommendation, most_similar, most_similar_to
from mmrec.retrieval.search import Query
from mmrec.retrieval.wishes import NO_WISHES
from mmrec.serving import schemas
from mmrec.serving.asked import history_of, wishes_of
from mmrec.serving.auth import Role
from mmrec.serving.database import Event, place_id
from mmrec.serving.faults import Fault
from mmrec.serving.live import Live
from mmrec.serving.patches import typed_patch
from mmrec.serving.questions import (
    Answer,
    Encoded,
    ListQuestion,
    Task,
    Wanted,
    asked_of,
    content_of,
)
from mmrec.serving.reading import read_query, read_text
from mmrec.serving.service import Service
from mmrec.serving.tables import SHOWN
from mmrec.terminal import plain

_bearer = HTTPBearer(auto_error=False, description="A key that `mmrec keys add` made.")


def needs(role: Role) -> Callable[..., Awaitable[None]]:
    """A dependency that lets through whoever has a key of a role."""

    async def check(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> None:
        service_of(request).keys.allow(request.headers.get("authorization"), role)

    return check


def service_of(request: Request) -> Service:
    """The worker behind an app."""
    service: Service = request.app.state.service
    return service


def sent(document: BaseModel) -> Response:
    """A document as JSON, checked when it was made and not again."""
    return Response(document.model_dump_json(), media_type="application/json")


TheService = Annotated[Service, Depends(service_of)]
reading = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("read"))], responses=schemas.ERRORS, tags=["ask"]
)


@reading.post("/recommend", response_model=schemas.ListAnswer)
async def recommend(asked: schemas.RecommendRequest, service: TheService) -> Response:
    """The next items of a user, or of a history that comes with the request.

    A user of whom nothing is known is shown what is popular; `basis` says so. With a `query` the
    list holds what it finds, and `mix` says how much the user's taste counts beside it.
    """
    if asked.user_id is not None and (asked.history is not None or asked.attributes is not None):
        other = "history" if asked.history is not None else "attributes"
        raise Fault(
            422, "invalid", f"user_id and {other} are both given, allowed is one", field=other
        )
    if asked.keep and asked.user_id is None:
        raise Fault(422, "invalid", "keep: what is shown to nobody is not kept", field="keep")
    wishes = wishes_of(asked.wishes)
    intent = None if asked.query is None else Intent(Query(asked.query), asked.mix)
    if intent is not None:
        intent.refuse_second_stage(ranked=asked.ranked, calibrated=asked.calibrated)
    k = service.showing.num_ranked(asked)
    history = None if asked.history is None else history_of(asked.history)

    def read(live: Live) -> tuple[Encoded | None, Wanted | None]:
        taste = None if asked.taste is None else read_text(live, asked.taste)
        if intent is None or not intent.counts:
            return taste, None
        return taste, Wanted(intent, read_query(live, intent.query))

    def question(was_read: tuple[Encoded | None, Wanted | None] = (None, None)) -> ListQuestion:
        taste, wanted = was_read
        return ListQuestion(
            asked.user_id, history, asked.attributes, AskedAt(asked.time, asked.context), k,
            asked.time, wishes, taste, asked.ranked, asked.calibrated, wanted,
        )  # fmt: skip

    if asked.taste is None and (intent is None or not intent.counts):
        answer = await service.ask(question())
    else:
        answer = await service.ask_encoded(read, question)
    answer, request_id = await service.showing.show(asked, answer, service.live)
    list_id = None
    if asked.keep and asked.user_id is not None:
        list_id = request_id or uuid.uuid4().hex
        await service.writing.submit(_shown(list_id, asked.user_id, answer))
    if list_id is not None or request_id is not None:
        service.monitoring.shown(answer.model_hash, len(answer.value))
    return listed(service, answer, list_id, request_id)


@reading.post("/similar", response_model=schemas.ListAnswer)
async def similar(asked: schemas.SimilarRequest, service: TheService) -> Response:
    """Items whose content is nearest to an item's or a text's."""
    if (asked.item_id is None) == (asked.text is None):
        raise Fault(422, "invalid", "give one of item_id and text", field="item_id")
    if asked.by is not None and asked.item_id is None:
        raise Fault(422, "invalid", "by: goes with item_id alone", field="by")
    if asked.text is not None:
        return await _nearest(service, asked, asked.text)
    item_id = asked.item_id
    wishes = wishes_of(asked.wishes)

    def question(live: Live) -> Any:
        retriever = live.retriever
        retriever.require_media("similar items")
        row = retriever.item_index(str(item_id))
        if not live.lists(str(item_id)) or not retriever.items.any_medium[row]:
            raise Fault(404, "not_found", f"item {str(item_id)[:60]!r} has no content")
        return most_similar_to(retriever, row, asked.k, by=asked.by, at=asked.time, wishes=wishes)

    return listed(service, await service.ask(Task(question)))


@reading.post("/embed", response_model=schemas.EmbedAnswer)
async def embed(asked: schemas.EmbedRequest, service: TheService) -> Response:
    """Vectors of items of the catalogue and added ones, of users behind histories, of texts."""
    histories = [history_of(each) for each in asked.histories]

    def question(live: Live, texts: Sequence[Encoded] = ()) -> schemas.EmbedAnswer:
        retriever = live.retriever
        rows = [retriever.item_index(each) for each in asked.item_ids]
        users = []
        for history in histories:
            one = ListQuestion(None, history, None, AskedAt(), 1, None, NO_WISHES)
            users.append(asked_of(live, one))
        content = retriever.content
        return schemas.EmbedAnswer(
            model=live.model_hash,
            items=[
                schemas.ItemVectors(
                    item_id=item_id,
                    embedding=retriever.vectors.embedding[row].tolist(),
                    content=None if content is None else content[row].tolist(),
                    modalities=retriever.items.modalities(row),
                )
                for item_id, row in zip(asked.item_ids, rows, strict=True)
            ],
            users=retriever.user_vectors(users).tolist() if users else [],
            texts=[content_of(live, each).tolist() for each in texts],
        )

    if not asked.texts:
        answer = await service.ask(Task(question))
    else:
        answer = await service.ask_encoded(
            lambda live: [read_text(live, each) for each in asked.texts],
            lambda texts: Task(lambda live: question(live, texts)),
        )
    return sent(answer.value.model_copy(update={"degraded": answer.degraded}))


writing = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("write"))], responses=schemas.ERRORS, tags=["tell"]
)


@writing.post("/events", response_model=schemas.EventsAnswer)
async def events(asked: schemas.EventsRequest, service: TheService) -> Response:
    """Keeps what users did; it counts in every list that is asked for from now on.

    Once this is answered the events are on disk. Sent again with the same event_id they count once.
    """
    now = time.time()
    given = [
        Event(
            each.event_id or uuid.uuid4().hex, each.user_id, each.item_id, each.event, each.value,
            now if each.time is None else each.time, each.context, request_id=each.request_id,
        )
        for each in asked.events
    ]  # fmt: skip
    accepted = await service.writing.submit(given)
    service.monitoring.events.inc(accepted)
    return sent(schemas.EventsAnswer(accepted=accepted, known=len(given) - accepted))


@writing.put("/items/{item_id:path}", response_model=schemas.ListedAnswer)
async def list_item(
    item_id: schemas.Id, asked: schemas.ListedRequest, service: TheService
) -> Response:
    """Takes an item out of every list from now on, puts it back, or changes its attributes.

    It may be one of the catalogue, or added.
    """
    return await _list_item(service, item_id, asked.listed, asked.attributes)


@writing.delete("/items/{item_id:path}", response_model=schemas.ListedAnswer)
async def remove_item(item_id: schemas.Id, service: TheService) -> Response:
    """Takes an item out of every list from now on."""
    return await _list_item(service, item_id, False)


async def _list_item(
    service: Service,
    item_id: str,
    listed: bool | None,
    attributes: Mapping[str, schemas.Value | None] = MappingProxyType({}),
) -> Response:
    def look(live: Live) -> tuple[bool, dict[str, Any]]:
        if not live.knows(item_id):
            raise Fault(404, "not_found", f"item {item_id[:60]!r} is not known", field="item_id")
        specs = live.retriever.catalogue.items.attributes
        return live.lists(item_id), typed_patch(attributes, specs)

    was_listed, patch = (await service.ask(Task(look))).value
    wanted = was_listed if listed is None else listed
    if patch:
        await service.keep(lambda: service.database.patch_item(item_id, patch))
        service.monitoring.items.labels("patched").inc()
    if was_listed != wanted:
        await service.keep(lambda: service.database.list_item(item_id, wanted))
        service.monitoring.items.labels("restored" if wanted else "removed").inc()
    changed = was_listed != wanted or bool(patch)
    return sent(schemas.ListedAnswer(item_id=item_id, listed=wanted, changed=changed))


managing = APIRouter(
    prefix="/v1", dependencies=[Depends(needs("admin"))], responses=schemas.ERRORS, tags=["manage"]
)


@managing.post("/model", response_model=schemas.ModelAnswer)
async def change_model(asked: schemas.ModelRequest, service: TheService) -> Response:
    """Lets another version answer, here at once and in the other workers within seconds.

    It is loaded beside the one that answers, and checked. No request is dropped; where the check
    fails (409) all stays as it is.
    """
    live = await service.versions.change(asked.version)
    return sent(schemas.ModelAnswer(version=live.version, model=live.model_hash))


health = APIRouter(tags=["health"])


@health.get("/healthz", response_model=schemas.State)
async def healthz() -> Response:
    """Whether the process is alive."""
    return sent(schemas.State(status="ok"))


@health.get("/readyz", response_model=schemas.State, responses={503: {"model": schemas.State}})
async def readyz(service: TheService) -> Response:
    """Whether requests should be sent here: 503 where nothing can be listed."""
    live = service.live
    refused = service.versions.refused
    reasons = [] if live is not None else [f"{name}: {why}" for name, why in refused.items()]
    reasons += ["the database does not answer"] if service.database_fails else []
    nothing = live is None and service.database_fails
    state = schemas.State(
        status="unavailable" if nothing else "degraded" if reasons else "ok",
        model=None if live is None else live.model_hash,
        version=None if live is None else live.version,
        num_items=0 if live is None else len(live.retriever.items.item_ids),
        num_added=0 if live is None else live.num_added,
        reasons=reasons,
    )
    answer = sent(state)
    answer.status_code = 503 if nothing else 200
    return answer


@health.get("/metrics", response_class=Response, dependencies=[Depends(needs("read"))])
async def metrics(service: TheService) -> Response:
    """Counters in the text format of Prometheus."""
    return Response(service.monitoring.text(), media_type="text/plain; version=0.0.4")


async def _nearest(service: Service, asked: schemas.SimilarRequest, text: str) -> Response:
    wishes = wishes_of(asked.wishes)

    def question(query: Encoded) -> Task:
        return Task(
            lambda live: most_similar(
                live.retriever, content_of(live, query), asked.k, at=asked.time, wishes=wishes
            )
        )

    answer = await service.ask_encoded(lambda live: read_text(live, text), question)
    return listed(service, answer)


def _shown(list_id: str, user_id: str, answer: Answer) -> list[Event]:
    """What a list shows, as events; with which probability, the log of shown lists says."""
    now, model = time.time(), answer.model_hash or "none"
    return [
        Event(
            place_id(list_id, each.rank), user_id, each.item_id, SHOWN, None, now,
            {"list_id": list_id, "rank": str(each.rank), "model": model},
        )
        for each in answer.value
    ]  # fmt: skip


def listed(
    service: Service, answer: Answer, list_id: str | None = None, request_id: str | None = None
) -> Response:
    """A list as it is sent."""
    found: list[Recommendation] = answer.value
    basis = found[0].basis if found else None
    service.monitoring.listed(basis, answer.degraded)
    return sent(
        schemas.ListAnswer(
            model=answer.model_hash,
            degraded=answer.degraded,
            basis=basis,
            list_id=list_id,
            request_id=request_id,
            items=[_item(each) for each in found],
        )
    )


def _item(found: Recommendation) -> schemas.ListedItem:
    ranked = found if isinstance(found, RankedRecommendation) else None
    return schemas.ListedItem(
        rank=found.rank,
        item_id=found.item_id,
        score=found.score,
        title=found.title,
        basis=found.basis,
        probability=found.probability,
        similar=[_item(each) for each in found.similar],
        why=None if found.why is None else _reason(found.why),
        found_by=found.found_by,
        retrieval_rank=ranked.retrieval_rank if ranked else None,
        heads=dict(ranked.heads) if ranked else {},
    )


def _reason(why: Explanation) -> schemas.Reason:
    document = plain(why)
    del document["item_id"]  # beside it already
    return schemas.Reason(**document)
