"""What a request asks, from the service's types to the library's."""

from __future__ import annotations

from collections.abc import Sequence

from mmrec.retrieval.filters import Condition
from mmrec.retrieval.preferences import Preference
from mmrec.retrieval.retriever import HistoryEvent
from mmrec.retrieval.wishes import MaxPer, Wishes
from mmrec.serving.schemas import AskedWishes, HistoryItem


def history_of(given: Sequence[str | HistoryItem]) -> list[HistoryEvent]:
    """A history as the library takes it."""
    return [
        each if isinstance(each, str) else (each.item_id, each.event, each.time, each.value)
        for each in given
    ]


def wishes_of(given: AskedWishes) -> Wishes:
    """Wishes as the library takes them.

    Raises:
        UserError: a condition asks for nothing.
    """
    return Wishes(
        where=tuple(
            Condition(
                each.field, each.minimum, each.maximum, tuple(each.any_of), tuple(each.none_of)
            )
            for each in given.where
        ),
        without=tuple(given.without),
        at_least=given.at_least,
        prefer=tuple(
            Preference(each.field, tuple(each.values), each.less, each.strength)
            for each in given.prefer
        ),
        half_life_hours=given.half_life_hours,
        novelty=given.novelty,
        unmet=given.unmet,
        diversity=given.diversity,
        diversify_by=given.diversify_by,
        max_per=tuple(MaxPer(field, most) for field, most in given.max_per.items()),
        probabilities=given.probabilities,
        num_similar=given.num_similar,
        why=given.why,
    )
