"""Which names of the stamps are hidden, what is asked, and how well scores answer.

    items.csv ─ hide_names ─► the table that is indexed, with gaps
              └ questions ──► names of both languages, each with the items that carry it

Legend: N items · Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
COLUMN = {"en": "name_en", "zh": "name_zh"}
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """Names in one language that somebody types.

    Attributes:
        texts: Q names.
        own: (Q,) row of the item that each is asked for.
        answers: (Q, N) bool, every item that has the name, whether it is indexed with it or not.
    """

    texts: list[str]
    own: IntArray
    answers: BoolArray

    def take(self, chosen: BoolArray) -> Questions:
        """Some of them."""
        texts = [text for text, kept in zip(self.texts, chosen, strict=True) if kept]
        return Questions(texts, self.own[chosen], self.answers[chosen])


def hide_names(items: pl.DataFrame, *, share: float, seed: int) -> pl.DataFrame:
    """The table with some names taken out, of items that have both: in each language a share.

    A name is taken from all items that carry it, so that no item is indexed with it; and each item
    keeps the other language's.

    Args:
        items: item_id, name_en, name_zh; one row an item.
        share: of the items with two names that lose one of a language.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    free = np.logical_and.reduce([items[name].is_not_null().to_numpy() for name in COLUMN.values()])
    count = round(share * free.sum())
    for column in COLUMN.values():
        lost = _draw_names(items[column].to_list(), free, count, random)
        free = free & ~lost
        kept = pl.when(pl.Series(~lost)).then(pl.col(column)).otherwise(None)
        items = items.with_columns(kept.alias(column))
    return items


def _draw_names(
    names: list[str | None], free: BoolArray, count: int, random: np.random.Generator
) -> BoolArray:
    """(N,) True for at least `count` items, where there are as many: all that carry drawn names."""
    lost = np.zeros(len(names), np.bool_)
    for name in random.permutation(sorted({names[row] or "" for row in np.flatnonzero(free)})):
        carry = np.array([each == name for each in names])
        if lost.sum() < count and free[carry].all():
            lost |= carry
    return lost


def questions(items: pl.DataFrame, rows: IntArray, language: Language) -> Questions:
    """The names of some items as questions.

    Args:
        items: the whole table.
        rows: items that have a name in this language.
        language: of the names.
    """
    names = items[COLUMN[language]].to_list()
    texts = [names[row] for row in rows]
    return Questions(texts, rows, np.array([[name == text for name in names] for text in texts]))


def hits(scores: FloatArray, asked: Questions, k: int) -> FloatArray:
    """Whether each question's item is among the first k, other items of the same name left out.

    Of items with equal scores any may come first: an item that ties with others at the edge of the
    list counts as the share of orders in which it is on it.

    Args:
        scores: (Q, N), larger is better.
        asked: the questions.
        k: length of the list.

    Returns:
        (Q,) between 0 and 1.
    """
    rows = np.arange(len(asked.own))
    rivals = ~asked.answers
    own = scores[rows, asked.own][:, None]
    above = ((scores > own) & rivals).sum(1)
    level = 1 + ((scores == own) & rivals).sum(1)
    share: FloatArray = np.clip((k - above) / level, 0.0, 1.0)
    return share


def match_characters(indexed: pl.DataFrame, texts: list[str]) -> FloatArray:
    """Cosine of tf-idf over one to three characters, between texts and what items are indexed by.

    It learns nothing of what names mean, and needs no training.

    Returns:
        (Q, N).
    """
    columns = [indexed[COLUMN[language]].fill_null("") for language in LANGUAGES]
    documents = [" ".join(names) for names in zip(*columns, strict=True)]
    vectoriser = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    known = vectoriser.fit_transform(documents)
    found: FloatArray = (vectoriser.transform(texts) @ known.T).toarray()
    return found
