"""Whether age counts in a list whose request does not say so: a run's settings, a query's words.

wishes ─ a half-life of its own? ─ settings: in all lists, or where the query asks for the new
       └─► wishes with the half-life that counts
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.terms import words
from mmrec.retrieval.wishes import Wishes


def with_half_life(retriever: Retriever, wishes: Wishes, query: str | None = None) -> Wishes:
    """Wishes with the half-life of the run's settings, where they name none themselves.

    Args:
        retriever: of the run; `evaluation.half_life_hours` of its settings counts.
        wishes: of a request.
        query: what is looked for; None: nothing.
    """
    settings = retriever.config.evaluation
    if settings.half_life_hours is None or wishes.half_life_hours is not None:
        return wishes
    if settings.half_life_when == "asked" and not asks_for_new(query or "", settings.new_words):
        return wishes
    return replace(wishes, half_life_hours=settings.half_life_hours)


def asks_for_new(query: str, new_words: Iterable[str]) -> bool:
    """Whether a query has one of some words; of several in one entry, all of them."""
    asked = set(words(query))
    terms = (set(words(each)) for each in new_words)
    return any(each and each <= asked for each in terms)
