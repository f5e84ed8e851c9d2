"""What the service tells of itself to Prometheus, and alarms that do not flutter.

Every worker counts for itself; with several of them each scrape reaches one, so the commands start
them with a folder that they share (PROMETHEUS_MULTIPROC_DIR) and any of them tells of all.

    shown lists ─► the model that made them ◄─ events that name such a list: the click rate
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrec.drift.two_samples import Gap
from mmrec.serving.batching import Batched

logger = logging.getLogger(__name__)
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_KEPT = 2_000
_WINDOW_S = 60.0
_FEW = 20
"""Requests below which a share of errors or a quantile says little."""
DRIFTS = {
    "popularity_drift": "how popular the items are that users bring with them",
    "score_drift": "how high the best score of lists is",
    "unknown_items": "share of the items of histories that the model does not know",
}
"""Parts of `AskedDrift.figures`, and what they mean."""


class Monitoring:
    """Counters of one worker, and its alarms.

    Args:
        clock: seconds; None: time.monotonic.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or (lambda: time.monotonic())
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mmrec_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mmrec_request_seconds", "From the request's head to the answer's end.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "mmrec_batch_size", "Questions answered together.", buckets=_BATCHES, registry=registry
        )
        self.waited = Histogram(
            "mmrec_wait_seconds", "That a question waited for its batch.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "mmrec_batch_seconds", "That a batch of questions took.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.events = Counter("mmrec_events", "Events accepted.", registry=registry)
        self.items = Counter("mmrec_items", "Items added and removed.", ["what"], registry=registry)
        self.lists = Counter("mmrec_lists", "Lists, by what they were made from.", ["basis"],
                             registry=registry)  # fmt: skip
        self.degraded_lists = Counter(
            "mmrec_degraded_lists", "Lists, by what was out of order.", ["what"], registry=registry
        )
        self.shown_lists = Counter(
            "mmrec_shown_lists", "Lists that were kept as shown.", ["hash"], registry=registry
        )
        self.shown_items = Counter(
            "mmrec_shown_items", "Items of these lists.", ["hash"], registry=registry
        )
        self.list_events = Counter(
            "mmrec_list_events", "Events that name a list, by the model that made it.", ["hash"],
            registry=registry,
        )  # fmt: skip
        self.drift = _gauge(registry, "mmrec_drift", "How far requests are from the users that "
                            "the model knows.", ["what"], "livemax")  # fmt: skip
        self.waiting = _gauge(registry, "mmrec_waiting", "Jobs that wait.", ["line"], "livesum")
        self.degraded = _gauge(registry, "mmrec_degraded", "1: out of order.", ["what"], "livemax")
        self.model = _gauge(
            registry, "mmrec_model", "1: the model that answers.", ["version", "hash"], "livemax"
        )
        self.alarm = _gauge(registry, "mmrec_alarm", "1: the alarm is on.", ["alarm"], "livemax")
        self._serves: tuple[str, str] | None = None
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_KEPT)
        self._recent_lists: deque[tuple[float, bool]] = deque(maxlen=_KEPT)
        self.alarms = {each.name: each for each in standard_alarms()}

    def text(self) -> bytes:
        """Everything in Prometheus' text format, of all workers where they share a folder."""
        if not os.environ.get(SHARED_FOLDER):
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self._recent.append((self.clock(), status, seconds))

    def listed(self, basis: str | None, degraded: Sequence[str]) -> None:
        """Counts a list: what it was made from, and what was out of order."""
        self.lists.labels(basis or "nothing").inc()
        for what in degraded:
            self.degraded_lists.labels(what).inc()
        self._recent_lists.append((self.clock(), "model" in degraded))

    def shown(self, model_hash: str | None, num_items: int) -> None:
        """Counts a list that is kept as shown; an empty one is shown to nobody."""
        if num_items:
            label = _hash_label(model_hash)
            self.shown_lists.labels(label).inc()
            self.shown_items.labels(label).inc(num_items)
            self.list_events.labels(label)  # 0 from now on: a model without a click has a rate too

    def followed(self, model_hash: str | None) -> None:
        """Counts an event that names a list, which this model made."""
        self.list_events.labels(_hash_label(model_hash)).inc()

    def batched(self, batch: Batched) -> None:
        """Counts a batch of questions."""
        self.batches.observe(batch.size)
        self.batch_seconds.observe(batch.seconds)
        for seconds in batch.waited_s:
            self.waited.observe(seconds)

    def serves(self, version: str | None, model_hash: str | None) -> None:
        """Names the model that answers now."""
        if self._serves is not None:
            self.model.labels(*self._serves).set(0)
        self._serves = None
        if version is not None and model_hash is not None:
            self._serves = (version, model_hash[:12])
            self.model.labels(*self._serves).set(1)
        self.degraded.labels("model").set(version is None)

    def look(
        self, full: float, database_fails: bool, drift: Mapping[str, Gap] | None = None
    ) -> None:
        """Looks at the last minute and sets the alarms.

        Args:
            full: share of the longest line that is taken.
            database_fails: it does not answer.
            drift: what `AskedDrift` says; what is not in it is no reason for an alarm.
        """
        since = self.clock() - _WINDOW_S
        recent = [each for each in self._recent if each[0] >= since]
        enough = len(recent) >= _FEW
        errors = sum(status >= 500 for _, status, _ in recent) / max(len(recent), 1)
        seconds = sorted(each for _, _, each in recent)
        slow = seconds[int(0.95 * (len(seconds) - 1))] if enough else 0.0
        lists = [failed for at, failed in self._recent_lists if at >= since]
        without_model = sum(lists) / len(lists) if len(lists) >= _FEW else 0.0
        self.degraded.labels("database").set(database_fails)
        gaps = drift or {}
        for name in DRIFTS:
            self.drift.labels(name).set(gaps[name].figure if name in gaps else 0.0)
        seen = {
            "errors": errors if enough else 0.0,
            "slow": slow,
            "full": full,
            "database": float(database_fails),
            "model": without_model,
            **{
                name: gaps[name].figure / gaps[name].limit if name in gaps else 0.0
                for name in DRIFTS
            },
        }
        for name, value in seen.items():
            alarm = self.alarms[name]
            alarm.look(value)
            self.alarm.labels(name).set(alarm.is_on)


@dataclass
class Alarm:
    """A threshold that has to be passed several times in a row, and left as often.

    Attributes:
        name: of the alarm.
        above: values above it are bad.
        says: what it means.
        looks: in a row until it goes on, or off again.
    """

    name: str
    above: float
    says: str
    looks: int = 3
    is_on: bool = False
    _in_a_row: int = 0

    def look(self, value: float) -> bool:
        """Looks at a value; True where the alarm has gone on or off by it."""
        if (value > self.above) == self.is_on:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._in_a_row < self.looks:
            return False
        self._in_a_row, self.is_on = 0, not self.is_on
        state = "on" if self.is_on else "off"
        logger.warning("alarm %s is %s: %s (%.3g, limit %.3g)", self.name, state, self.says, value,
                       self.above)  # fmt: skip
        return True


def standard_alarms() -> Sequence[Alarm]:
    """What is looked at every few seconds."""
    return (
        Alarm("errors", 0.05, "share of answers with status 5xx in the last minute"),
        Alarm("slow", 1.0, "seconds that 95 of 100 answers of the last minute took at most"),
        Alarm("full", 0.8, "share of the line of waiting requests that is taken"),
        Alarm("database", 0.5, "the database does not answer"),
        Alarm("model", 0.05, "share of the lists of the last minute that no model made"),
        # of an hour of requests: what holds for seconds says nothing
        *(Alarm(name, 1.0, f"{says}, in parts of its limit", looks=60)
          for name, says in DRIFTS.items()),
    )  # fmt: skip


class Measured:
    """Counts and times requests; ASGI middleware, the outermost.

    Args:
        app: what answers.
        monitoring: that counts.
    """

    def __init__(self, app: ASGIApp, monitoring: Monitoring) -> None:
        self._app, self._monitoring = app, monitoring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clock = self._monitoring.clock
        status, began = 500, clock()

        async def noticing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noticing)
        finally:
            # not the path: whoever asks for a thousand paths would make a thousand series
            route = getattr(scope.get("route"), "path", "other")
            self._monitoring.answered(route, status, clock() - began)


def _hash_label(model_hash: str | None) -> str:
    """A model as `mmrec_model` names it; lists that no model made are those of "none"."""
    return "none" if model_hash is None else model_hash[:12]


def _gauge(
    registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], mode: str
) -> Gauge:
    return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
