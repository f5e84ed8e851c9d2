"""A typed client of the service; it needs httpx and pydantic, and neither torch nor a model.

with Client("http://127.0.0.1:8000", key="mmrec_…") as client:
    client.send_events([GivenEvent(user_id="42", item_id="260")])
    client.recommend(user_id="42", k=5).items
    client.add_item("new-1", fields={"title": "The Sea"}, files={"poster": "poster.jpg"})
"""

from __future__ import annotations

import json
import mimetypes
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from mmrec.errors import MmrecError
from mmrec.serving.schemas import (
    EmbedAnswer,
    EventsAnswer,
    GivenEvent,
    HistoryItem,
    ItemAnswer,
    ListAnswer,
    ListedAnswer,
    ModelAnswer,
    ScoreAnswer,
    State,
    Value,
)

Document = TypeVar("Document", bound=BaseModel)
History = Sequence[str | HistoryItem]
File = str | os.PathLike[str] | bytes
Files = Mapping[str, File]
Way = Literal["hybrid", "lexical", "dense"]
_AGAIN = (429, 503)
_LONGEST_WAIT_S = 30.0


class _Columns(BaseModel):
    columns: dict[str, Any]


class ServiceError(MmrecError):
    """A request that the service refused.

    Attributes:
        status: of HTTP; 0 where the service could not be reached.
        code: a word for programs.
        field: of the request, where one is at fault.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field


class Client:
    """A connection to a service.

    Args:
        url: of the service.
        key: API key; None: the service wants none.
        timeout_s: seconds until an answer is given up.
        tries: how often a request is sent in all where the service is busy or not there.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = 30.0, tries: int = 3
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        self._tries = tries

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def recommend(
        self,
        user_id: str | None = None,
        *,
        history: History | None = None,
        k: int = 10,
        query: str | None = None,
        mix: float = 0.5,
        **asked: Any,
    ) -> ListAnswer:
        """The next items of a user or behind a history.

        Args:
            user_id: of the log, or of events since.
            history: in place of a user, oldest first.
            k: how many.
            query: what the user looks for now.
            mix: with a query, weight of what he likes: 0 is the query alone, 1 his list as if
                there were no query.
            asked: other fields of `RecommendRequest`: taste, attributes, time, context, wishes,
                ranked, calibrated, keep.

        Raises:
            ServiceError: the service refuses it or cannot be reached.
        """
        body = {"user_id": user_id, "history": history, "k": k, "query": query, "mix": mix,
                **asked}  # fmt: skip
        return self._post("/v1/recommend", body, ListAnswer)

    def similar(
        self, item_id: str | None = None, *, text: str | None = None, k: int = 10, **asked: Any
    ) -> ListAnswer:
        """Items like an item or a text. Raises `ServiceError`."""
        return self._post(
            "/v1/similar", {"item_id": item_id, "text": text, "k": k, **asked}, ListAnswer
        )

    def search(
        self,
        text: str | None = None,
        *,
        image: File | None = None,
        audio: File | None = None,
        by: Way = "hybrid",
        user_id: str | None = None,
        history: History | None = None,
        mix: float = 0.5,
        k: int = 10,
        **asked: Any,
    ) -> ListAnswer:
        """Items that a text, a picture, a sound, or several of these ask for.

        Args:
            text: in any language that the items' texts have.
            image: path or bytes of a picture.
            audio: path or bytes of a sound.
            by: words and meaning (`hybrid`), words (`lexical`), or meaning (`dense`).
            user_id: whose taste orders what is found.
            history: the same, in place of a user, oldest first.
            mix: weight of the taste: 0 is the search alone, 1 what is recommended.
            k: how many.
            asked: other fields of `SearchRequest`: time, wishes.

        Raises:
            ServiceError: the service refuses it or cannot be reached.
        """
        body = {"text": text, "by": by, "user_id": user_id, "history": history, "mix": mix,
                "k": k, **asked}  # fmt: skip
        files = {
            name: each for name, each in (("image", image), ("audio", audio)) if each is not None
        }
        if not files:
            return self._post("/v1/search", body, ListAnswer)
        form = {
            name: value if isinstance(value, str) else json.dumps(_plain(value))
            for name, value in body.items()
            if value is not None
        }
        return self._upload("/v1/search/media", form, files, ListAnswer)

    def embed(
        self,
        *,
        item_ids: Sequence[str] = (),
        histories: Sequence[History] = (),
        texts: Sequence[str] = (),
    ) -> EmbedAnswer:
        """Vectors of items, of users behind histories, of texts. Raises `ServiceError`."""
        body = {"item_ids": item_ids, "histories": histories, "texts": texts}
        return self._post("/v1/embed", body, EmbedAnswer)

    def send_events(self, events: Sequence[GivenEvent]) -> EventsAnswer:
        """Tells what users did; events without an id are given one, so that none counts twice.

        Raises:
            ServiceError: as ever; then none of them is known to be kept, and all can be sent again.
        """
        named = [
            each if each.event_id else each.model_copy(update={"event_id": uuid.uuid4().hex})
            for each in events
        ]
        return self._post("/v1/events", {"events": named}, EventsAnswer)

    def add_item(
        self, item_id: str, *, fields: Mapping[str, str] | None = None, files: Files | None = None
    ) -> ItemAnswer:
        """Adds an item from its media.

        Args:
            item_id: external id.
            fields: texts and attributes by the catalogue's names.
            files: paths or bytes by the catalogue's columns.

        Raises:
            ServiceError: as ever, for media that cannot be used too.
        """
        return self._upload("/v1/items", {"item_id": item_id, **(fields or {})}, files, ItemAnswer)

    def item_columns(self) -> Mapping[str, Any]:
        """How a table of new items is read, as the catalogue file says. Raises `ServiceError`."""
        columns: Mapping[str, Any] = self._send("GET", "/v1/catalogue", _Columns).columns
        return columns

    def list_item(
        self,
        item_id: str,
        listed: bool | None = None,
        attributes: Mapping[str, Value | None] | None = None,
    ) -> ListedAnswer:
        """Takes an item out of every list, puts it back, or changes its attributes.

        Raises `ServiceError`.
        """
        path = f"/v1/items/{quote(item_id, safe='')}"
        told = {"listed": listed, "attributes": attributes or {}}
        return self._send("PUT", path, ListedAnswer, json=told)

    def score(
        self,
        *,
        user_ids: Sequence[str] = (),
        fields: Mapping[str, str] | None = None,
        files: Files | None = None,
    ) -> ScoreAnswer:
        """How users would like a new item, best first. Raises `ServiceError`."""
        form = {"user_id": list(user_ids), **(fields or {})}
        return self._upload("/v1/score", form, files, ScoreAnswer)

    def embed_media(
        self, *, fields: Mapping[str, str] | None = None, files: Files | None = None
    ) -> EmbedAnswer:
        """Vector of a new item from its media. Raises `ServiceError`."""
        return self._upload("/v1/embed/media", dict(fields or {}), files, EmbedAnswer)

    def similar_to_media(
        self, *, fields: Mapping[str, str] | None = None, files: Files | None = None, k: int = 10
    ) -> ListAnswer:
        """Items like a picture, a sound, or several media of one item. Raises `ServiceError`."""
        form = {"k": str(k), **(fields or {})}
        return self._upload("/v1/similar/media", form, files, ListAnswer)

    def change_model(self, version: str) -> ModelAnswer:
        """Lets another version answer. Raises `ServiceError`, with 409 where its check fails."""
        return self._post("/v1/model", {"version": version}, ModelAnswer)

    def ready(self) -> State:
        """How the worker is that is reached. Raises `ServiceError`."""
        return self._send("GET", "/readyz", State)

    def _post(self, path: str, body: Mapping[str, Any], kind: type[Document]) -> Document:
        plain = {name: _plain(value) for name, value in body.items() if value is not None}
        return self._send("POST", path, kind, json=plain)

    def _upload(
        self, path: str, form: Mapping[str, Any], files: Files | None, kind: type[Document]
    ) -> Document:
        parts: list[tuple[str, tuple[str | None, bytes] | tuple[str, bytes, str]]] = []
        for name, value in form.items():
            values = value if isinstance(value, list) else [value]
            parts += [(name, (None, each.encode())) for each in values]
        for name, file in (files or {}).items():
            if isinstance(file, bytes):
                parts.append((name, (name, file, "application/octet-stream")))
            else:
                guessed = mimetypes.guess_type(os.fspath(file))[0] or "application/octet-stream"
                parts.append((name, (name, Path(file).read_bytes(), guessed)))
        return self._send("POST", path, kind, files=parts)

    def _send(self, method: str, path: str, kind: type[Document], **body: Any) -> Document:
        for left in reversed(range(self._tries)):
            try:
                answer = self._http.request(method, path, **body)
            except httpx.TransportError as error:
                if left:
                    time.sleep(1.0)
                    continue
                raise ServiceError(0, "unreachable", f"{path}: {error}", None) from None
            if answer.status_code in _AGAIN and left:
                wait_s = float(answer.headers.get("Retry-After", "1"))
                time.sleep(min(wait_s, _LONGEST_WAIT_S))
                continue
            break
        if answer.is_success:
            return kind.model_validate_json(answer.content)
        raise _error_of(answer)


def _plain(value: Any) -> Any:
    """A value as JSON has it, of documents only what they say."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _error_of(answer: httpx.Response) -> ServiceError:
    try:
        error = answer.json()["error"]
        return ServiceError(answer.status_code, error["code"], error["message"], error["field"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(
            answer.status_code, "unknown", f"status {answer.status_code} without a reason", None
        )
