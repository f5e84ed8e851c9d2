"""What commands that tell something of items have in common: which items, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec.arguments import exactly_one, split_names
from mmrec.errors import UserError

if TYPE_CHECKING:
    from mmrec.data.items import Media
    from mmrec.recommender import Recommender


def check_items_asked(items: str | None, new: Path | None, source: Path | None) -> None:
    """Refuses options that name no items, or both known and new ones.

    Args:
        items: ids, comma-separated.
        new: a table of new items.
        source: folder that its paths start from.

    Raises:
        UserError: says what to give.
    """
    exactly_one({"--items": items, "--new": new})
    if new is not None and source is None:
        raise UserError("--new names a table; give --source, the folder that its paths start from")


def items_asked_for(
    recommender: Recommender, items: str | None, new: Path | None, source: Path | None
) -> Sequence[str] | Media:
    """The ids, or the new items, that `check_items_asked` has let pass."""
    if new is None:
        return split_names(items or "")
    assert source is not None
    return recommender.new_items(new, source)


def told_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row an item, each mapping of label to number in one cell, in its order."""
    return [
        {
            name: value
            if isinstance(value, str)
            else ", ".join(f"{label} {number:.2f}" for label, number in value.items())
            for name, value in each.items()
        }
        for each in found
    ]
