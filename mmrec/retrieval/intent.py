"""What a user looks for now, beside what he likes: the query of a recommendation, and its weight.

mix 0 ─ what the query finds, without what he has met
mix 1 ─ his list, as if there were no query
between ─ what the query finds, in an order that he likes
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrec.errors import UserError
from mmrec.retrieval.retriever import Asked
from mmrec.retrieval.search import Query, Taste, check_mix


@dataclass(frozen=True)
class Intent:
    """What a user looks for.

    Attributes:
        query: of words and meaning.
        mix: weight of what he likes, from 0 (the query alone) to 1 (as if there were none).

    Raises:
        UserError: the mix is not from 0 to 1.
    """

    query: Query
    mix: float = 0.5

    def __post_init__(self) -> None:
        check_mix(self.mix)

    @property
    def counts(self) -> bool:
        """Whether the query has any part in the list."""
        return self.mix < 1

    def taste(self, asked: Asked) -> Taste:
        """Whose search it is."""
        return Taste(asked, self.mix, hide_seen=True)

    def refuse_second_stage(self, *, ranked: bool | None, calibrated: bool) -> None:
        """Refuses a second stage where the query counts.

        Args:
            ranked: whether it was asked for; None: where there is one.
            calibrated: whether it has to tell probabilities.

        Raises:
            UserError: it is asked for.
        """
        if self.counts and (ranked or calibrated):
            raise UserError(
                "a query and the second stage are both asked for, allowed is one of them: "
                "what a query finds is ordered by words, meaning and taste"
            )
