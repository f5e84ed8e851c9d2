"""What is wrong with the fields of a request, from pydantic's errors to one line.

wishes.foo: no such field, allowed are where, without, …, given '1' (2 more fields are wrong)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

UNION_TAGS = ("as_id", "as_event")
UNION_BRANCH = re.compile(r"constrained-\w+|list\[.*\]|function-.*")
"""What pydantic says of the types that a value may have, behind the field's name."""
NOT_ALLOWED = "has a character that is not allowed, such as a control character"
NO_JSON = "json_invalid"
"""Type of the error of a text that is no JSON."""


def told(
    errors: Sequence[Any], kind: Any = None, *, within: str | None = None
) -> tuple[str, str | None]:
    """The first of what is wrong, how many fields more there are, and the first one's name.

    Args:
        errors: of pydantic; the first part of a place says where, body, query or path.
        kind: of the body, to say which fields there are in place of one that is unknown.
        within: name of the field that the body is; None: it is the whole of it.
    """
    first = errors[0]
    fields = [field_of(each["loc"], within) for each in errors]
    shown = ""
    if isinstance(first["input"], str | int | float | bool):
        shown = f", given {str(first['input'])[:60]!r}"
    number = len(set(fields)) - 1
    more = f" ({number} more field{'s are' if number > 1 else ' is'} wrong)" if number else ""
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        what = NOT_ALLOWED
    elif first["type"] == NO_JSON:
        what = f"is no JSON: {first['ctx']['error']}"
    elif first["type"] == "extra_forbidden":
        allowed = ", ".join(fields_at(kind, first["loc"][1:-1]))
        what = "no such field" + (f", allowed are {allowed}" if allowed else "")
    return f"{fields[0] or 'body'}: {what}{shown}{more}", fields[0]


def field_of(loc: Sequence[Any], within: str | None = None) -> str | None:
    """The field that an error is about: its place without what tells one type from another."""
    # the first says where, body, query or path; a field may have the same name
    places = [str(each) for each in loc[1:] if each not in UNION_TAGS]
    if len(places) > 1 and UNION_BRANCH.fullmatch(places[-1]):
        places.pop()
    return ".".join([within, *places] if within else places)[:100] or None


def fields_at(kind: Any, place: Sequence[Any]) -> list[str]:
    """Names of the fields of the model at a place of a type, through lists and unions."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        inner = (fields_at(each, place) for each in get_args(kind))
        return next((each for each in inner if each), [])
    names = [each for each in place if isinstance(each, str) and each not in UNION_TAGS]
    if not names:
        return list(kind.model_fields)
    found = kind.model_fields.get(names[0])
    return fields_at(found.annotation, names[1:]) if found else []
