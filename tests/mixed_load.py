"""Callers who ask a service for everything at once, and keep what it told them.

    Caller (a thread) ─ one request after another ─► service
          └─ what it must keep, and what it answered ─► Told ─ judged when the load is over

Nobody looks at another caller's users and items, so each knows what its next list must hold,
whichever worker answers. A caller who has no answer, or is refused, sends the same again.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Question = tuple[str, str | tuple[str, ...]]
"""What is asked, and of what: ("user", id), ("history", ids), ("told", ids), ("similar", id),
("score", users). Of one who was told item after item the history has times, see `time_of`."""
Listed = tuple[tuple[str, float], ...]
"""Ids with their scores, best first."""

COMES_AND_GOES = "i12"
"""An item of the catalogue that is taken out of the lists and put back all the time."""
QUIET_USERS = ("u0", "u1", "u2", "u3", "u4", "u5")
TEXTS = ("the quiet river", "red storm", "old machine")
K = 5
REFUSED = (429, 503)
HANGS_S = 20.0
"""Longer than anything may take that is not an upload."""
_STAYS = 25
_ROUTES = {
    "recommend_user": 5, "recommend_history": 5, "tell": 8, "tell_again": 1, "keep_list": 1,
    "change_item": 4, "come_and_go": 1, "similar": 3, "score": 2, "search": 2, "look": 1,
}  # fmt: skip


@dataclass
class Told:
    """What callers were told; they share it.

    Attributes:
        events: (user, item) by the id of an event that was accepted.
        kept: item ids by the id of a list that was to be kept.
        answers: by question and model, every answer that came.
        statuses: how often each came, by route.
        slowest_s: seconds of the slowest answer, by route.
        broken: when connections broke, as `time.monotonic` has it.
        degraded: how many lists came without the database.
        wrong: what must not be.
    """

    events: dict[str, tuple[str, str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[tuple[Question, str | None], set[Listed]] = field(
        default_factory=lambda: defaultdict(set)
    )
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=dict)
    broken: list[float] = field(default_factory=list)
    degraded: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refused(self) -> int:
        """How many requests were told to come again."""
        return sum(number for (_, status), number in self.statuses.items() if status in REFUSED)


def time_of(place: int) -> float:
    """When an event was, Unix seconds, by its place in the history."""
    return 1e9 + 60 * place


def hidden(num_callers: int) -> list[str]:
    """Ids that may come and go; lists that must stay the same leave them out."""
    return [COMES_AND_GOES, *(name for n in range(num_callers) for name in _items_of(n))]


def _items_of(number: int) -> list[str]:
    return [f"new {number}-{each}" for each in range(2)]


class Caller:
    """One of those who ask.

    Args:
        number: of the caller.
        num_callers: there are.
        address: of the service.
        told: shared by all.
        posters: pictures of new items.
        histories: that users come with or make, of six items each.
    """

    def __init__(
        self,
        number: int,
        num_callers: int,
        address: str,
        told: Told,
        *,
        posters: Sequence[bytes],
        histories: Sequence[tuple[str, ...]],
    ) -> None:
        self._number, self._address, self._told = number, address, told
        self._posters, self._histories = posters, histories
        self._random = random.Random(number)
        self._without = {"without": hidden(num_callers)}
        self._http, self._asked = httpx.Client(base_url=address, timeout=HANGS_S), 0
        self._users = itertools.count()
        self._start_anew()
        self._mine: list[str] = []  # ids of events that were accepted
        self._unsure: list[dict[str, Any]] = []  # events that nobody has confirmed
        self._listed: dict[str, bool | None] = dict.fromkeys(_items_of(number))
        self._wanted: dict[str, dict[str, Any]] = {}  # changes of items nobody has confirmed

    def run(self, stop: threading.Event) -> None:
        """Asks until it is told to stop, and then until all that it has sent is confirmed."""
        actions = [getattr(self, f"_{name}") for name in _ROUTES]
        while not stop.is_set():
            self._random.choices(actions, list(_ROUTES.values()))[0]()
        until = time.monotonic() + 30
        while self._unsure and time.monotonic() < until:
            self._tell()
        if self._unsure:
            self._is_wrong("events are not accepted though nothing is out of order any more")
        self._http.close()

    def _recommend_user(self) -> None:
        user_id = self._random.choice(QUIET_USERS)
        self._ask(("user", user_id), "/v1/recommend", {"user_id": user_id})

    def _recommend_history(self) -> None:
        history = self._random.choice(self._histories)[: self._random.randint(1, 6)]
        self._ask(("history", history), "/v1/recommend", {"history": history})

    def _similar(self) -> None:
        item_id = f"i{self._random.randint(0, 2)}"
        self._ask(("similar", item_id), "/v1/similar", {"item_id": item_id})

    def _search(self) -> None:
        body = {"text": self._random.choice(TEXTS), "k": K, "wishes": self._without}
        answer = self._send("POST", "/v1/search", json=body)
        if answer is not None and not 0 < len(answer["items"]) <= K:
            self._is_wrong(f"a search found {len(answer['items'])} items")

    def _look(self) -> None:
        for path in ("/healthz", "/readyz"):
            self._send("GET", path)

    def _tell(self) -> None:
        """One to three events of a user of this caller's own, and the list they lead to."""
        if not self._unsure:
            if self._met == len(self._history):
                self._start_anew()
            more = self._history[self._met : self._met + self._random.randint(1, 3)]
            self._unsure = [
                {
                    "user_id": self._user,
                    "item_id": item,
                    "event_id": f"{self._user}-{place}",
                    "time": time_of(place),
                }
                for place, item in enumerate(more, self._met)
            ]
        answer = self._send("POST", "/v1/events", json={"events": self._unsure})
        if answer is None:
            return
        if answer["accepted"] + answer["known"] != len(self._unsure):
            self._is_wrong(f"of {len(self._unsure)} events the answer counts {answer}")
        with self._told.lock:
            self._told.events.update(
                {each["event_id"]: (each["user_id"], each["item_id"]) for each in self._unsure}
            )
        self._mine += [each["event_id"] for each in self._unsure]
        self._met += len(self._unsure)
        self._unsure = []
        known = self._history[: self._met]
        self._ask(("told", known), "/v1/recommend", {"user_id": self._user})

    def _tell_again(self) -> None:
        if not self._mine:
            return
        event_id = self._random.choice(self._mine)
        user_id, item_id = self._told.events[event_id]
        event = {"user_id": user_id, "item_id": item_id, "event_id": event_id}
        answer = self._send("POST", "/v1/events", json={"events": [event]})
        if answer is not None and (answer["accepted"], answer["known"]) != (0, 1):
            self._is_wrong(f"an event that was accepted counts again: {answer}")

    def _keep_list(self) -> None:
        body = {"user_id": self._random.choice(QUIET_USERS), "k": K, "keep": True}
        answer = self._send("POST", "/v1/recommend", json=body)
        if answer is not None:
            ids = [each["item_id"] for each in answer["items"]]
            with self._told.lock:
                self._told.kept[answer["list_id"]] = ids

    def _change_item(self) -> None:
        """Adds, removes or puts back an item of this caller's own, and looks for it."""
        item_id = self._random.choice(list(self._listed))
        if item_id not in self._wanted:
            is_there = self._listed[item_id]
            wants = {"listed": not is_there}
            if is_there is None:
                wants |= {"poster": self._random.choice(self._posters)}
            self._wanted[item_id] = wants
        wants = self._wanted[item_id]
        if "poster" in wants:
            form = {"item_id": item_id, "title": f"The quiet river {item_id}"}
            answer = self._send("POST", "/v1/items", data=form, files={"poster": wants["poster"]})
        else:
            answer = self._send("PUT", f"/v1/items/{item_id}", json={"listed": wants["listed"]})
        if answer is None:
            return
        self._listed[item_id] = wants["listed"]
        del self._wanted[item_id]
        answer = self._send("POST", "/v1/recommend", json={"history": ["i1"], "k": 100})
        if answer is None or answer["degraded"]:
            return
        is_there = item_id in [each["item_id"] for each in answer["items"]]
        if is_there != self._listed[item_id]:
            self._is_wrong(f"item {item_id}: listed {is_there}, told {self._listed[item_id]}")

    def _come_and_go(self) -> None:
        listed = self._random.random() < 0.5
        self._send("PUT", f"/v1/items/{COMES_AND_GOES}", json={"listed": listed})

    def _score(self) -> None:
        users = tuple(sorted(self._random.sample(QUIET_USERS, 2)))
        form = {"title": "The red river", "user_id": list(users)}
        answer = self._send("POST", "/v1/score", data=form, files={"poster": self._posters[0]})
        if answer is not None:
            scores = {each["user_id"]: each["score"] for each in answer["users"]}
            self._keep(("score", users), answer, [(each, scores[each]) for each in users])

    def _ask(self, question: Question, path: str, body: Mapping[str, Any]) -> None:
        """A list whose answer depends on nothing but the question and the model.

        Of one who was told on his events too, so where the database is away it says nothing.
        """
        answer = self._send("POST", path, json={**body, "k": K, "wishes": self._without})
        if answer is None or (question[0] == "told" and answer["degraded"]):
            return
        found = [(each["item_id"], each["score"]) for each in answer["items"]]
        self._keep(question, answer, found)

    def _keep(
        self, question: Question, answer: Mapping[str, Any], found: Sequence[tuple[str, float]]
    ) -> None:
        with self._told.lock:
            rounded = tuple((item_id, round(score, 4)) for item_id, score in found)
            self._told.answers[question, answer["model"]].add(rounded)

    def _start_anew(self) -> None:
        self._user, self._met = f"caller {self._number}, {next(self._users)}", 0
        self._history = self._random.choice(self._histories)

    def _send(self, method: str, path: str, **body: Any) -> Any:
        """The document that is answered; None where there is none and it may be tried again."""
        told, began = self._told, time.monotonic()
        self._asked += 1
        if self._asked % _STAYS == 0:  # else one worker has this caller for good
            self._connect_anew()
        route = "/v1/items/" if path.startswith("/v1/items/") else path
        try:
            answer = self._http.request(method, path, **body)
        except httpx.TimeoutException:
            self._is_wrong(f"{path}: no answer within {HANGS_S:g} s")
            self._connect_anew()
            return None
        except httpx.TransportError:
            with told.lock:
                told.broken.append(time.monotonic())
            self._connect_anew()
            time.sleep(0.1)
            return None
        seconds, status = time.monotonic() - began, answer.status_code
        with told.lock:
            told.statuses[route, status] += 1
            told.slowest_s[route] = max(seconds, told.slowest_s.get(route, 0.0))
        if status in REFUSED:
            if int(answer.headers.get("Retry-After", 0)) < 1:
                self._is_wrong(f"{path}: {status} without Retry-After")
            time.sleep(0.2)
            return None
        if status != 200:
            self._is_wrong(f"{path}: {status} {answer.text[:200]}")
            return None
        document = answer.json()
        if isinstance(document, dict) and document.get("degraded"):
            with told.lock:
                told.degraded += 1
        return document

    def _connect_anew(self) -> None:
        self._http.close()
        self._http = httpx.Client(base_url=self._address, timeout=HANGS_S)

    def _is_wrong(self, what: str) -> None:
        with self._told.lock:
            self._told.wrong.append(f"{what} (caller {self._number})")
