"""Settings of evaluation: baselines, popularity in use, groups, and users who are held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrec.config.section import Section


class EvaluationConfig(Section):
    """What `evaluate` runs, how new items' offset is chosen, how much popularity counts in use."""

    baselines: tuple[
        Literal["random", "popularity", "item_knn", "ease", "als", "markov", "content_knn"], ...
    ] = ("random", "popularity", "item_knn", "ease", "als", "markov", "content_knn")
    warm_cost: float = Field(0.05, ge=0, lt=1)
    """Share of warm NDCG@10 that the offset of items without events may cost on validation."""
    expected_popularity: bool = True
    """New items get a share of the popularity that their content lets expect, beside the offset;
    which share, validation says. False: the offset alone."""
    popularity_share: float = Field(1.0, ge=0, le=1)
    """Share of the learned popularity term that scores keep: 1 as trained, less for more of the
    tail in the lists, at a cost in the head that report.html shows. The loss always has all of it;
    validation, from which epoch and offset are chosen, has the share. A trained run can be given
    another on the line of evaluate, recommend, score and export."""
    new_last: int | None = Field(None, ge=1)
    """Of the first so many places of what is recommended, items without training events take the
    last ones: who is listed stays, so their hits cost the others less. The offset that lets them in
    is chosen for such lists at the end of training. None: every item stands where its score puts
    it, as it does in vectors that are exported. A trained run can be given another on the line of
    evaluate and recommend; its offset stays."""
    new_boost: float = Field(0.0, allow_inf_nan=False)
    """Added to the score of items without training events, in units of cosine, beside the offset
    that training chose: more of them in all lists, at the price that report.html shows. A trained
    run can be given another on the line of evaluate, recommend, score and export."""
    half_life_hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Age at which the odds of an item have halved in what is recommended and searched, where a
    request names no half-life itself; age is counted from items.available.from of the catalogue
    file. None: age counts where a request asks for it. `evaluate` ranks without it. A trained run
    can be given another on the line of recommend."""
    half_life_when: Literal["always", "asked"] = "always"
    """Which lists the half-life counts in: all of them, or those whose query has one of
    `new_words`."""
    new_words: tuple[Annotated[str, Field(min_length=1)], ...] = (
        "new", "newest", "newly", "latest", "recent",
        "新款", "最新", "新品", "新出", "新歌", "新片", "新书", "近期",
    )  # fmt: skip
    """Words of a query that ask for what is new, with `half_life_when: asked`; of an entry of
    several words, all of them."""
    groups: tuple[str, ...] = ()
    """Categories and sets by which the report tells accuracy apart: users.gender, items.genres. The
    worst group of each stands in the scorecard. A trained run can be given others on the line of
    evaluate."""
    first_events: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 3, 5), min_length=1)
    """How many events are known of users whom data.new_users held out when they are asked; their
    targets lie behind the largest number. A trained run can be given others on the line of
    evaluate."""
