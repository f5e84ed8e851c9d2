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
        refuse: raises a Fault for a path and an `Authorization` header that are not let in: no
            key is known by it, or too many requests of the path wait already. Before anything is
            read: a stranger's upload takes no memory, and a flood no time from those that were
            accepted.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        upload_paths: frozenset[str],
        refuse: Callable[[str, str | None], None] = lambda path, authorization: None,
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
            authorization = headers.get(b"authorization")
            self._refuse(scope["path"], authorization and authorization.decode("latin-1"))
            if not length.isdecimal():
                raise Fault(400, "malformed", "Content-Length is no number")
            if int(length[:20]) > most:
                raise _too_large(most)
        except Fault as fault:
            await fault.response()(scope, receive, send)
            return
        # of forms `read_form` says it: their parser reads nothing of what is none
        wanted = JSON if scope["method"] in ("POST", "PUT", "PATCH") and not is_upload else None
        given = headers.get(b"content-type", b"").decode("latin-1")
        bounded = _bounded(receive, most, limits.body_timeout_s, given=given, wanted=wanted)
        await self._app(scope, bounded, send)


def check_type(given: str, wanted: str) -> None:
    """Refuses a body of another type.

    Raises:
        Fault: 415, names both.
    """
    kind = given.partition(";")[0].strip().lower()
    if kind != wanted:
        shown = repr(kind[:60]) if kind else "not given"
        raise Fault(415, "wrong_type", f"Content-Type is {shown}, wanted is {wanted}")


def _bounded(
    receive: Receive, most: int, timeout_s: float, *, given: str, wanted: str | None
) -> Receive:
    """The same messages, while they are of the right type, not too many bytes and not too slow.

    They are asked for by a route that takes a body, so that a path that there is not, or not with
    this method, is answered with that.
    """
    seen, whole = 0, False
    until: float | None = None

    async def bounded() -> Message:
        nonlocal seen, whole, until
        if whole:  # what comes now is that the caller has gone, whenever that is
            return await receive()
        if wanted is not None:
            check_type(given, wanted)
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
