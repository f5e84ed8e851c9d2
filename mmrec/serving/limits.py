"""What a request's body may be, held while it is read: its type, its size, the time it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrec.serving.faults import Fault
from mmrec.serving.settings import Limits

JSON, MULTIPART = "application/json", "multipart/form-data"


class BodyLimits:
    """Refuses bodies of the wrong type, too large ones and endless ones; ASGI middleware.

    Args:
        app: what answers.
        limits: of bodies.
        upload_paths: that take media, as multipart/form-data; all others take JSON.
        refuse: raises a Fault where too many requests of a path wait already. Before
            anything is read, since reading a flood takes its time from those that were accepted.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        upload_paths: frozenset[str],
        refuse: Callable[[str], None] = lambda path: None,
    ) -> None:
        self._app, self._limits, self._upload_paths = app, limits, upload_paths
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers that it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"] in self._upload_paths
        limits = self._limits
        most = limits.max_upload_bytes if is_upload else limits.max_json_bytes
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0").decode("latin-1")
        try:
            self._refuse(scope["path"])
            if not length.isdecimal():
                raise Fault(400, "malformed", "Content-Length is no number")
            if int(length[:20]) > most:
                raise _too_large(most)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                _check_type(headers.get(b"content-type", b"").decode("latin-1"), is_upload)
        except Fault as fault:
            await fault.response()(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, most, limits.body_timeout_s), send)


def _check_type(given: str, is_upload: bool) -> None:
    wanted = MULTIPART if is_upload else JSON
    kind = given.partition(";")[0].strip().lower()
    if kind != wanted:
        shown = repr(kind[:60]) if kind else "not given"
        raise Fault(415, "wrong_type", f"Content-Type is {shown}, wanted is {wanted}")


def _bounded(receive: Receive, most: int, timeout_s: float) -> Receive:
    """The same messages, while they are not too many bytes and not too slow."""
    seen, whole = 0, False
    until: float | None = None

    async def bounded() -> Message:
        nonlocal seen, whole, until
        if whole:  # what comes now is that the caller has gone, whenever that is
            return await receive()
        now = asyncio.get_running_loop().time()
        until = now + timeout_s if until is None else until
        try:
            message = await asyncio.wait_for(receive(), max(until - now, 0.001))
        except TimeoutError:
            raise Fault(
                408, "slow_body", f"the body did not arrive within {timeout_s:g} s"
            ) from None
        seen += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if seen > most:
            raise _too_large(most)
        return message

    return bounded


def _too_large(most: int) -> Fault:
    return Fault(413, "too_large", f"the body is too large: at most {most} bytes")
