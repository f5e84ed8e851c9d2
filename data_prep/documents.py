"""Settings documents: read a YAML mapping, change single settings, explain what is wrong in a line.

In: a YAML file, overrides such as ``split.cold_test=0.1``, pydantic's errors. Out: plain mappings,
and messages that name the place, the value and the nearest key that exists.
"""

from __future__ import annotations

import copy
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from data_prep.errors import DataError


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file whose top is a mapping.

    Raises:
        DataError: no such file, no YAML, a key given twice (YAML would keep the last in silence),
            or something else than a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
        twice = _key_given_twice(yaml.compose(text, Loader=yaml.SafeLoader))
        document = yaml.safe_load(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        reason = getattr(error, "problem", None) or "is not YAML"
        raise DataError(f"{path}: {place}{reason}") from None
    if twice is not None:
        raise DataError(f"{path}: line {twice[1]}: key {twice[0]!r} is given twice")
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise DataError(f"{path}: must hold a mapping of keys to values, found {found}")
    return document


def _key_given_twice(node: Any) -> tuple[str, int] | None:
    """First key that a mapping holds twice, and its line (1-based)."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                return str(key.value), key.start_mark.line + 1
            seen.add(str(key.value))
            below = _key_given_twice(value)
            if below is not None:
                return below
    elif isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(_key_given_twice, node.value)), None)
    return None


def override(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets each ``section.field=value`` in a copy of a document.

    Values are YAML. Keys are not checked here: the document is validated afterwards.

    Raises:
        DataError: an override without ``=``, or one that goes below a plain value.
    """
    result = copy.deepcopy(document)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise DataError(f"override {override!r}: must be section.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise DataError(f"override {override!r}: the value is not YAML") from None
        section: Any = result
        for part in parts[:-1]:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise DataError(f"override {override!r}: {part!r} is a value, not a section")
        section[parts[-1]] = value
    return result


def explain_validation_error(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Says in one line what is wrong with a document: place, value, what is allowed.

    An unknown key comes first, since a misspelt required key is also reported as missing.

    Args:
        error: what pydantic found.
        model: the model that was validated.
        source: file or thing the document came from, put first in the line.
    """
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    location = fault["loc"]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        keys = sorted(set(_keys_at(model, location[:-1])))
        near = difflib.get_close_matches(str(location[-1]), keys, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        allowed = f" (allowed: {', '.join(keys)})" if keys else ""
        return f"{source}: {_dotted(location)}: unknown key{hint}{allowed}{more}"
    if fault["type"] == "missing":
        return f"{source}: {_dotted(location)}: this key is required and missing{more}"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f"{_shorten(repr(value))}: "
    place = f"{_dotted(location)}: " if location else ""
    return f"{source}: {place}{shown}{_shorten(' '.join(message.split()), 300)}{more}"


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The plain types inside Annotated and unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _step(annotation: Any, part: str | int) -> Any:
    """Type of one key or index below a type; the type itself where the part is a union's tag."""
    for kind in _alternatives(annotation):
        if _is_model(kind):
            for name, field in kind.model_fields.items():
                if part in (name, field.alias):
                    return field.annotation
        origin, args = get_origin(kind), get_args(kind)
        if origin in (dict, Mapping) and len(args) == 2:
            return args[1]
        if origin in (list, tuple) and isinstance(part, int):
            return args[0]
    return annotation


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys that are valid at a place of a document."""
    annotation: Any = model
    for part in location:
        annotation = _step(annotation, part)
    models = [kind for kind in _alternatives(annotation) if _is_model(kind)]
    return [field.alias or name for kind in models for name, field in kind.model_fields.items()]
