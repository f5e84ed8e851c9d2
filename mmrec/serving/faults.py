"""What a request is answered with when it cannot be: one status, one code, one line.

    {"error": {"code": "invalid", "message": "k: Input should be …, given 0", "field": "k"}}

Every error of the library becomes one of these here and nowhere else; what is none of them is a
defect, logged with its traceback and answered with 500 and nothing more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from data_prep.errors import BrokenMedium, DataError, ShardError
from mmrec.errors import ItemNotFound, UserError
from mmrec.serving.database import DATABASE_ERRORS
from mmrec.serving.invalid import NO_JSON, told

logger = logging.getLogger(__name__)
MAX_MESSAGE = 500
UNREADABLE = "There was an error parsing the body"
"""What FastAPI says of a body whose JSON its parser gives up on."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_CODES = {400: "malformed", 404: "not_found", 415: "wrong_type"}


class Fault(HTTPException):
    """A request that is refused.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: one line for people.
        field: of the request, where one is at fault.
        retry_after_s: seconds after which it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.code = code
        self.field = None if field is None else _printable(field)
        self.message = _printable(" ".join(message.split()))[:MAX_MESSAGE]
        headers = {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, self.message, headers)

    def response(self) -> JSONResponse:
        """As it is sent."""
        error = {"code": self.code, "message": self.message, "field": self.field}
        return JSONResponse({"error": error}, self.status_code, self.headers)


def _printable(text: str) -> str:
    """A text with what does not print escaped: it may be the name of a field, as it came."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def fault_of(error: Exception) -> Fault:
    """The fault that an error is; of a defect 500."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ItemNotFound):
        return Fault(404, "not_found", str(error))
    if isinstance(error, BrokenMedium):
        return Fault(422, "broken_medium", str(error))
    if isinstance(error, UserError) or (
        isinstance(error, DataError) and not isinstance(error, ShardError)
    ):
        return Fault(422, "refused", str(error))
    if isinstance(error, DATABASE_ERRORS):
        logger.warning("the database does not answer: %s", " ".join(str(error).split())[:200])
        return Fault(503, "database", "the database does not answer: try again", retry_after_s=1.0)
    logger.error("a request failed", exc_info=error)
    return Fault(500, "internal", "the service failed to answer; its log has the reason")


def install(app: FastAPI) -> None:
    """Answers every error of an app this way."""

    async def any_error(request: Request, error: Exception) -> JSONResponse:
        return fault_of(error).response()

    async def of_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        body = getattr(request.scope.get("route"), "body_field", None)
        return invalid(error.errors(), body and body.field_info.annotation).response()

    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            return wrong_method(request).response()
        code = _CODES.get(error.status_code, "refused")
        message = str(error.detail)
        if message == UNREADABLE:
            message = (
                "the body cannot be read as JSON: it is nested too deeply, has a number of too "
                "many digits, or is not UTF-8"
            )
        elif error.status_code == 404:
            message = f"there is nothing at {request.scope['path'][:100]!r}; /docs has every route"
        answer = Fault(error.status_code, code, message).response()
        answer.headers.update(error.headers or {})
        return answer

    for kind in (Fault, UserError, DataError, *DATABASE_ERRORS, Exception):
        app.add_exception_handler(kind, any_error)
    app.add_exception_handler(RequestValidationError, of_fields)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]


def invalid(errors: Sequence[Any], kind: Any = None, *, within: str | None = None) -> Fault:
    """The fault that pydantic's errors are; arguments as of `mmrec.serving.invalid.told`."""
    first = errors[0]
    if first["type"] == NO_JSON and within is None:
        return Fault(400, "malformed", f"the body is no JSON: {first['ctx']['error']}")
    message, field = told(errors, kind, within=within)
    return Fault(422, "invalid", message, field=field)


def wrong_method(request: Request) -> Fault:
    """The answer to a method that a path does not take: names those that it does."""
    routes = request.app.router.routes
    # asked of every route: several have the same path, one for each method
    allowed = [
        method
        for method in METHODS
        if any(each.matches({**request.scope, "method": method})[0] is Match.FULL
               for each in routes)
    ]  # fmt: skip
    names, path = ", ".join(allowed), request.scope["path"][:100]
    line = f"{request.method[:20]} of {path!r} is not possible, allowed is {names}"
    fault = Fault(405, "wrong_method", line)
    fault.headers = {**(fault.headers or {}), "Allow": names}
    return fault
