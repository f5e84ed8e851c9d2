"""What a request asks of its list beside how long it is.

"under 20"          Condition("price", maximum=20)         never broken
"not these"         without=("item-3",)                    never broken
"less horror"       Preference("genre", less=True, values=("horror",))     weighed
"newer first"       half_life_hours=24, or Preference("year")              weighed
"less known"        novelty=1                              weighed
"something else"    diversity=0.5                          re-ranked
"not all of one"    MaxPer("artist", 2)                    never broken
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmrec.errors import UserError
from mmrec.retrieval.explanation_words import Language, as_language
from mmrec.retrieval.filters import Condition
from mmrec.retrieval.popular import Trend
from mmrec.retrieval.preferences import Preference
from mmrec.retrieval.rerank import Method, as_method


@dataclass(frozen=True)
class MaxPer:
    """At most so many listed items of one value of a category or set.

    Attributes:
        field: an attribute of items; an item of several values counts for each.
        most: how many.

    Raises:
        UserError: fewer than 1.
    """

    field: str
    most: int

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UserError(f"at most {self.most} of one '{self.field}': give 1 or more")

    @classmethod
    def parse(cls, text: str) -> MaxPer:
        """Reads "artist=2".

        Raises:
            UserError: it is not of this form.
        """
        field, _, most = text.rpartition("=")
        if not field.strip() or not most.strip().isdecimal():
            raise UserError(f"limit '{text}' cannot be read: write FIELD=NUMBER, such as artist=2")
        return cls(field.strip(), int(most))


@dataclass(frozen=True)
class Wishes:
    """All that a request asks of its list; by default nothing, and the list is that of the scores.

    Attributes:
        where: conditions that every listed item fulfils.
        without: ids that are not listed.
        at_least: least score of a listed item, in the list's own units.
        prefer: soft wishes.
        half_life_hours: age at which the odds of an item have halved: newer ones first. None: age
            does not count.
        novelty: strength, 0 or more, by which items that fewer users have met come sooner; 1 is as
            much as one standard deviation of the scores.
        unmet: items that no event of the data names are candidates as well.
        diversity: strength in [0, 1] of re-ranking for variety; 0 leaves the order as it is.
        diversify_by: how, by `mmr` (not like the nearest) or `dpp` (varied as a whole).
        max_per: limits of one value in the list.
        probabilities: say how likely each item is the next one, among all that may be listed.
        num_similar: items to show beside each listed one, nearest in content.
        trend: how the age of events counts where the list is made from popularity; None: it does
            not.
        why: language, `en` or `zh`, to say in why each item is listed; None: it is not said.

    Raises:
        UserError: a number is out of its range.
    """

    where: tuple[Condition, ...] = ()
    without: tuple[str, ...] = ()
    at_least: float | None = None
    prefer: tuple[Preference, ...] = ()
    half_life_hours: float | None = None
    novelty: float = 0.0
    unmet: bool = False
    diversity: float = 0.0
    diversify_by: Method = "mmr"
    max_per: tuple[MaxPer, ...] = ()
    probabilities: bool = False
    num_similar: int = 0
    trend: Trend | None = None
    why: Language | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise UserError(f"diversity is {self.diversity}: give a strength from 0 to 1")
        if not (self.novelty >= 0 and math.isfinite(self.novelty)):
            raise UserError(f"novelty is {self.novelty}: give a strength, 0 or more")
        as_method(self.diversify_by)
        if self.why is not None:
            as_language(self.why)
        if self.at_least is not None and not math.isfinite(self.at_least):
            raise UserError(f"at_least is {self.at_least}: give a number, the least score to list")
        if self.num_similar < 0:
            raise UserError(f"num_similar is {self.num_similar}: give 0 or more")

    def refuse_of_users(self, what: str) -> None:
        """Refuses what the list recommended to a user alone can show.

        Args:
            what: the list that is made instead.

        Raises:
            UserError: reasons or similar items are asked for.
        """
        for name, asked in (("why", self.why is not None), ("num_similar", self.num_similar > 0)):
            if asked:
                raise UserError(f"{name} belongs to what is recommended to a user, not to {what}")

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return self != NO_WISHES


NO_WISHES = Wishes()
