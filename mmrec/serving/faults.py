"""What a request is answered with when it cannot be: one status, one code, one line.

    {"error": {"code": "invalid", "message": "k: Input should be …, given 0", "field": "k"}}

Every error of the library becomes one of these here and nowhere else; what is none of them is a
defect, logged with its traceback and answered with 500 and nothing more.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from data_prep.errors import BrokenMedium, DataError, ShardError
from mmrec.errors import ItemNotFound, UserError
from mmrec.serving.database import DATABASE_ERRORS

logger = logging.getLogger(__name__)
MAX_MESSAGE = 500
UNION_TAGS = ("as_id", "as_event")
UNION_BRANCH = re.compile(r"constrained-\w+|list\[.*\]|function-.*")
"""What pydantic says of the types that a value may have, behind the field's name."""
NOT_ALLOWED = "has a character that is not allowed, such as a control character"
UNREADABLE = "There was an error parsing the body"
"""What FastAPI says of a body whose JSON its parser gives up on."""
_CODES = {400: "malformed", 404: "not_found", 405: "wrong_method", 415: "wrong_type"}


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
        self.code, self.field = code, field
        self.message = " ".join(message.split())[:MAX_MESSAGE]
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

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error.errors()).response()

    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        message = str(error.detail)
        if message == UNREADABLE:
            message = (
                "the body cannot be read as JSON: it is nested too deeply, has a number of too "
                "many digits, or is not UTF-8"
            )
        answer = Fault(error.status_code, code, message).response()
        answer.headers.update(error.headers or {})  # of 405: what is allowed
        return answer

    for kind in (Fault, UserError, DataError, *DATABASE_ERRORS, Exception):
        app.add_exception_handler(kind, any_error)
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]


def _invalid(errors: Any) -> Fault:
    """The first of what is wrong with a body, and how many more there are."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Fault(400, "malformed", f"the body is no JSON: {first['ctx']['error']}")
    field = _field(first["loc"])
    shown = ""
    if isinstance(first["input"], str | int | float | bool):
        shown = f", given {str(first['input'])[:60]!r}"
    number = len({_field(each["loc"]) for each in errors}) - 1
    more = f" ({number} more field{'s are' if number > 1 else ' is'} wrong)" if number else ""
    what = first["msg"] if first["type"] != "string_pattern_mismatch" else NOT_ALLOWED
    return Fault(422, "invalid", f"{field or 'body'}: {what}{shown}{more}", field=field)


def _field(loc: Sequence[Any]) -> str | None:
    """The field that an error is about: its place without what tells one type from another."""
    # the first says where, body, query or path; a field may have the same name
    places = [str(each) for each in loc[1:] if each not in UNION_TAGS]
    if len(places) > 1 and UNION_BRANCH.fullmatch(places[-1]):
        places.pop()
    return ".".join(places)[:100] or None
