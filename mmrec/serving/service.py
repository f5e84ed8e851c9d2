"""One worker of the service: its database, its model, its lines of waiting requests.

lists     ─ Batcher ─ Answering ─ Live          short questions, many together
encoding  ─ Batcher ─ door, encoders            media of new items, one by one
writing   ─ Batcher ─ database                  events, many in a transaction
Beside                                          models that are loaded and looked at
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mmrec.errors import MmrecError
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.retriever import Asked
from mmrec.retrieval.wishes import NO_WISHES
from mmrec.serving.answering import Answering, encode_items
from mmrec.serving.asked_drift import AskedDrift
from mmrec.serving.auth import Keys, read_keys
from mmrec.serving.batching import Batcher
from mmrec.serving.beside import Beside
from mmrec.serving.database import DATABASE_ERRORS, Database, Event, StoredItem
from mmrec.serving.faults import Fault
from mmrec.serving.given_items import Upload, check_names, stored_item
from mmrec.serving.live import Live
from mmrec.serving.monitoring import Monitoring
from mmrec.serving.questions import Answer, Encoded, ListQuestion, ModelChanged, Question
from mmrec.serving.refused_media import refused_medium
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.showing import Showing
from mmrec.serving.versions import Versions

logger = logging.getLogger(__name__)
ENCODING_PATHS = frozenset(
    {"/v1/items", "/v1/score", "/v1/similar/media", "/v1/search/media", "/v1/embed/media"}
)
"""Routes that take media."""
EVENTS_PATH = "/v1/events"
LOOK_S = 1.0
_TRIES = 3
T = TypeVar("T")


class DatabaseAway(MmrecError):
    """The database does not answer a service that starts."""


class Service:
    """What the routes call.

    Args:
        settings: of the service.

    Raises:
        ConfigError: the keys cannot be read.
        UserError: the database's URL is of no known kind.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.keys = Keys(None if settings.keys is None else read_keys(settings.keys))
        self.database = Database(settings.database)
        self.answering = Answering(self.database)
        self.monitoring = Monitoring()
        self.drift = AskedDrift()
        self.answering.on_list = self._saw_list
        self.database_fails = False
        self._not_learnt: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self.lists = Batcher[Question, Answer](
            self.answering.answer,
            name="lists",
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            timeout_s=settings.timeout_s,
            wait_s=settings.max_wait_s,
        )
        self.encoding = Batcher[Callable[[], Any], Any](
            _one_by_one,
            name="encoding",
            max_batch=1,
            max_waiting=settings.max_encoding,
            timeout_s=settings.encode_timeout_s,
        )
        self.writing = Batcher[Sequence[Event], int](
            self._write,
            name="writing",
            max_batch=64,
            max_waiting=8 * settings.max_waiting,
            timeout_s=settings.timeout_s,
        )
        self.showing = Showing(settings, self.database)
        self.lists.on_batch = self.monitoring.batched
        self.beside = Beside()
        self.versions = Versions(
            settings,
            self.database,
            answering=self.answering,
            lists=self.lists,
            beside=self.beside,
            keep=self.keep,
            monitoring=self.monitoring,
        )

    @property
    def live(self) -> Live | None:
        """The model that answers."""
        return self.answering.live

    def load(self) -> None:
        """Opens the database and the model; what is not there yet is waited for.

        Raises:
            DatabaseAway: the database does not answer.
            MmrecError: the model cannot be loaded, and nothing is known that could be listed in
                its place.
            DataError: the same of its data.
        """
        try:
            self.database.prepare()
            self.showing.log.prepare()
            self.versions.load()
        except DATABASE_ERRORS as error:
            self._database_is_there(False)
            raise DatabaseAway(
                f"the database does not answer: {' '.join(str(error.args[0]).split())[:200]}; "
                "check --database"
            ) from None

    async def start(self) -> None:
        """Begins to watch the database for versions."""
        if self.live is None and not self.versions.refused:
            await asyncio.to_thread(self.load)
        self._watch = asyncio.create_task(self._keep_watch())

    async def close(self) -> None:
        """Ends what runs, once it has answered whom it has accepted."""
        if self._watch is not None:
            self._watch.cancel()
        await self.showing.close()
        for line in (self.lists, self.encoding, self.writing):
            await asyncio.to_thread(line.close)
        await asyncio.to_thread(self.beside.close)
        self.database.close()

    def let_in(self, path: str, authorization: str | None) -> None:
        """Refuses a request before its body is read; what its key may do is the route's question.

        Raises:
            Fault: 401, where no key is known by the header; 429, where as many wait as may.
        """
        if path.startswith("/v1/"):
            self.keys.find(authorization)
        if path in ENCODING_PATHS:
            self.encoding.refuse_if_full()
        elif path == EVENTS_PATH:
            self.writing.refuse_if_full()
        elif path.startswith("/v1/"):
            self.lists.refuse_if_full()

    async def ask(self, question: Question) -> Answer:
        """Answers a question.

        Raises:
            Fault: too many wait, or the model is not there.
            UserError: the question is wrong.
        """
        return await self.lists.submit(question)

    async def ask_encoded(
        self, encode: Callable[[Live], T], question: Callable[[T], Question]
    ) -> Answer:
        """Answers a question about something that has to be encoded first, on the same model.

        Args:
            encode: in the encoding thread.
            question: of what that gives.

        Raises:
            Fault: too many wait, or the model is not there.
            UserError: the question is wrong.
        """
        for _ in range(_TRIES):
            encoded = await self.encode(encode)
            try:
                return await self.lists.submit(question(encoded))
            except ModelChanged:
                continue
        raise Fault(503, "model", "the model is changing: try again", retry_after_s=1.0)

    async def encode(self, work: Callable[[Live], T]) -> T:
        """Does something in the encoding thread with the model that answers now."""

        def with_model() -> T:
            live = self.live
            if live is None:
                raise Fault(503, "model", "the model is not there: try again", retry_after_s=10.0)
            return work(live)

        found: T = await self.encoding.submit(with_model)
        return found

    async def keep(self, write: Callable[[], T]) -> T:
        """Writes to the database, off the event loop, behind the events that wait.

        Raises:
            Fault: 503, it is not written in time; if it is after that, it is no harm to repeat it.
        """
        timeout_s = self.settings.timeout_s
        try:
            return await asyncio.wait_for(self.writing.in_turn(write), timeout_s)
        except TimeoutError:
            message = f"the database did not answer within {timeout_s:g} s"
            raise Fault(503, "database", message, retry_after_s=1.0) from None

    def through_the_door(self, live: Live, upload: Upload) -> tuple[StoredItem, Encoded]:
        """An upload's item and its content; runs in the encoding thread.

        Raises:
            Fault: a field or a medium is at fault, or there is none that the model encodes.
        """
        retriever = live.retriever
        check_names(retriever.catalogue, upload)
        item = stored_item(
            upload, retriever.catalogue, image_side=retriever.image_side,
            limits=self.settings.limits,
        )  # fmt: skip
        new = encode_items(retriever, [item])
        if new.broken:
            broken = new.broken[0]
            of_kind = getattr(retriever.catalogue.items, broken.modality, ())
            field = next((each for each in of_kind if each in upload.files), broken.modality)
            raise refused_medium(
                field, upload.names.get(field), broken.modality, broken.reason,
                self.settings.limits,
            )  # fmt: skip
        if not new.item_ids:
            encodes = ", ".join(retriever.transforms)
            raise Fault(
                422,
                "no_medium",
                f"none of the media that the model encodes is there: {encodes}",
            )
        return item, Encoded(live.model_hash, new.content[0], new.modalities[0])

    def _write(self, jobs: list[Sequence[Event]]) -> list[int | Exception]:
        """Events of many requests in one transaction; of each how many were not there yet."""
        events = {event.event_id: event for job in jobs for event in job}
        fresh = self.database.add_events(list(events.values()))
        self._count_followed([events[event_id] for event_id in fresh])
        counts: list[int | Exception] = []
        for job in jobs:
            own = {event.event_id for event in job} & fresh
            fresh -= own
            counts.append(len(own))
        return counts

    def _count_followed(self, events: Sequence[Event]) -> None:
        """Counts events that name a list which their user was shown, for the model that made it."""
        named = [(each.request_id, each) for each in events if each.request_id is not None]
        if not named:
            return
        try:
            shown = self.showing.log.makers({request_id for request_id, _ in named})
            kept = {request_id for request_id, _ in named if request_id not in shown}
            for list_id, first in self.database.first_shown(kept).items() if kept else ():
                shown[list_id] = first.user_id, first.context.get("model")
        except DATABASE_ERRORS as error:  # the events are kept all the same
            logger.warning("events of lists are not counted: %s", type(error).__name__)
            return
        for request_id, event in named:
            user_id, model = shown.get(request_id, (None, None))
            if user_id == event.user_id:
                self.monitoring.followed(model)

    def _saw_list(
        self, live: Live, asked: Asked, question: ListQuestion, found: list[Recommendation]
    ) -> None:
        plain = question.wishes == NO_WISHES and question.taste is None and question.wanted is None
        self.drift.saw(live.model_hash, asked, found, plain=plain)

    async def _learn_users(self) -> None:
        """Looks at the users of a model that has come to answer, beside what is asked meanwhile."""
        live = self.live
        if live is None or live.model_hash in (self.drift.model_hash, self._not_learnt):
            return
        try:
            await self.beside.do(lambda: self.drift.learn(live.source))
        except Exception:  # of no use to whoever asks, so no reason to end
            self._not_learnt = live.model_hash
            logger.exception("what its users are like is not known; drift is not told")

    def _database_is_there(self, there: bool) -> None:
        self.database_fails = not there

    async def _keep_watch(self) -> None:
        """Follows the version that the database names, and sets the alarms."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                wanted = await asyncio.to_thread(self.database.version)
                self._database_is_there(True)
            except DATABASE_ERRORS:
                wanted = None
                self._database_is_there(False)
            self.showing.forget_in_turn()
            for line in (self.lists, self.encoding, self.writing):
                self.monitoring.waiting.labels(line.name).set(line.depth)
            full = max(each.depth / each.max_waiting for each in (self.lists, self.encoding))
            await self._learn_users()
            self.monitoring.look(full, self.database_fails, self.drift.figures())
            await self.versions.follow(wanted)


def _one_by_one(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of jobs, or their errors."""
    results: list[Any] = []
    for job in jobs:
        try:
            results.append(job())
        except Exception as error:
            results.append(error)
    return results
