"""A request on the command line: when, by whom, and what the list is to be like."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mmrec.errors import UserError

if TYPE_CHECKING:
    from data_prep.catalogue import UsersSpec
    from mmrec.retrieval.wishes import Wishes


def read_time(given: str | None) -> float | None:
    """Unix seconds of `now`, a number or an ISO 8601 instant (UTC where it names no offset).

    Raises:
        UserError: it is none of these.
    """
    if given is None:
        return None
    if given == "now":
        return time.time()
    try:
        return float(given)
    except ValueError:
        pass
    try:
        instant = datetime.fromisoformat(given)
    except ValueError:
        raise UserError(
            f"--at is '{given}': give now, Unix seconds or ISO 8601 such as 2024-01-31T18:00"
        ) from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def read_pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE, each name once.

    Raises:
        UserError: one has no name, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for each in given or ():
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise UserError(f"{option} is '{each}': write NAME=VALUE")
        if name in pairs:
            raise UserError(f"{option} names '{name}' twice")
        pairs[name] = value
    return pairs


def typed_attributes(given: Mapping[str, str], users: UsersSpec | None) -> dict[str, Any]:
    """Attributes as the catalogue types them; names that it lacks stay as they are.

    Raises:
        UserError: a number is none.
    """
    specs = {} if users is None else users.attributes
    found: dict[str, Any] = {}
    for name, value in given.items():
        kind = specs[name].type if name in specs else "category"
        try:
            found[name] = (
                float(value) if kind == "number" else value.split(",") if kind == "set" else value
            )
        except ValueError:
            raise UserError(f"--attribute {name} is '{value}': it is a number") from None
    return found


def read_wishes(
    *,
    where: Sequence[str] | None = None,
    without: Sequence[str] = (),
    prefer: Sequence[str] | None = None,
    max_per: Sequence[str] | None = None,
    diversify_by: str = "mmr",
    why: str | None = None,
    **numbers: Any,
) -> Wishes:
    """Wishes as they are written on the command line.

    Args:
        where: conditions.
        without: ids.
        prefer: soft wishes.
        max_per: limits.
        diversify_by: a method.
        why: a language.
        numbers: the rest of `Wishes`, by its names.

    Raises:
        UserError: one cannot be read.
    """
    from mmrec.retrieval.explanation_words import as_language
    from mmrec.retrieval.filters import Condition
    from mmrec.retrieval.preferences import Preference
    from mmrec.retrieval.rerank import as_method
    from mmrec.retrieval.wishes import MaxPer, Wishes

    return Wishes(
        where=tuple(map(Condition.parse, where or ())),
        without=tuple(without),
        prefer=tuple(map(Preference.parse, prefer or ())),
        max_per=tuple(map(MaxPer.parse, max_per or ())),
        diversify_by=as_method(diversify_by),
        why=None if why is None else as_language(why),
        **numbers,
    )
