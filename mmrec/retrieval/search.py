"""Search: items by what is asked for, in words and in meaning, mixed with a user's taste if wanted.

    text ────────────────► words ──── coverage (N,) ─┐
    text, picture, sound ─► content ─ cosine (N,) ───┴─ mix ─► candidates ─ taste ─► list

Every item is searched that is not deleted, whether anybody met it or not.

Legend: N items of the catalogue · D width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmrec.errors import UserError
from mmrec.retrieval.freshness import with_half_life
from mmrec.retrieval.known import Asked, BoolArray
from mmrec.retrieval.lexical import LexicalIndex, read_words
from mmrec.retrieval.lists import (
    FoundBy,
    Recommendation,
    Scored,
    allowed_items,
    check_k,
    make_list,
)
from mmrec.retrieval.query_encoder import QueryEncoder
from mmrec.retrieval.recommend import basis_of, recommend_next
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.wishes import NO_WISHES, Wishes

logger = logging.getLogger(__name__)

Way = Literal["hybrid", "lexical", "dense"]
WAYS: tuple[Way, ...] = ("hybrid", "lexical", "dense")
LEXICAL_SHARE, LEXICAL_POWER = 0.7, 3
"""What words count beside meaning, and how fast that falls where some of the query is missing: of
half of it an eighth is left. Chosen on stamps, on questions set aside: with a power of 1 common
words bury what meaning finds (Recall@10 of names that no item has .12 and .19, not .17 and .25),
and at a share of .3 some names that an item has are missed."""
POOL, FEWEST = 3, 30
"""Candidates of a query, among which taste chooses: so many a listed item, at least so many."""
LEAST_SPREAD = 1e-3
"""Deviation that scores of candidates count as having at least, where a taste orders them."""


def as_way(name: str) -> Way:
    """A way to search by its name.

    Raises:
        UserError: there is no such way.
    """
    for way in WAYS:
        if way == name:
            return way
    raise UserError(f"search by '{name}': allowed is one of {', '.join(WAYS)}")


@dataclass(frozen=True)
class Query:
    """What is looked for; of several things each counts.

    Attributes:
        text: in any language.
        image: path of a picture, or its bytes.
        audio: path of a sound, or its bytes.

    Raises:
        UserError: nothing is given, or a text without anything in it.
    """

    text: str | None = None
    image: Path | bytes | None = None
    audio: Path | bytes | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise UserError(f"the query is {self.text!r}: give a text with a word in it")
        if not self.media:
            raise UserError("the query is empty: give a text, a picture or a sound")

    @property
    def media(self) -> dict[str, Path | str | bytes]:
        """What is given, by modality."""
        given = {"text": self.text, "image": self.image, "audio": self.audio}
        return {name: each for name, each in given.items() if each is not None}


@dataclass(frozen=True)
class Match:
    """How well each item answers a query.

    Attributes:
        scores: (N,) what the list is ordered by, -inf of what is not found.
        lexical: (N,) the same by words alone; None where words have no part.
        dense: (N,) the same by content alone; None where content has no part.
    """

    scores: Tensor
    lexical: Tensor | None
    dense: Tensor | None


@dataclass(frozen=True)
class Taste:
    """Whose search it is.

    Attributes:
        asked: the user.
        mix: weight of his taste: 0 is search alone, 1 recommendation alone. Between them the
            query's own candidates are ordered anew.
        hide_seen: leave out what he has met, where the catalogue forbids repeats.

    Raises:
        UserError: the mix is not from 0 to 1.
    """

    asked: Asked
    mix: float = 0.5
    hide_seen: bool = False

    def __post_init__(self) -> None:
        check_mix(self.mix)


def check_mix(mix: float) -> None:
    """Refuses a weight that is none.

    Raises:
        UserError: it is not from 0 to 1.
    """
    if not 0 <= mix <= 1:
        raise UserError(f"mix is {mix}: give a weight of the user's taste from 0 to 1")


class Searcher:
    """Searches the items of a retriever; their words are read when they are first asked about.

    Args:
        retriever: the model and its items.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.encoder = QueryEncoder(retriever)
        self._lexical: LexicalIndex | None = None

    @property
    def lexical(self) -> LexicalIndex:
        """The words of all items."""
        if self._lexical is None:
            self._lexical = read_words(self.retriever)
        return self._lexical

    @property
    def has_words(self) -> bool:
        """Whether the words of the items have been read."""
        return self._lexical is not None

    def take_words(self, words: LexicalIndex, of: Retriever) -> None:
        """Takes words that were read elsewhere, and what has become of items since.

        Args:
            words: as `read_words` gives them.
            of: the retriever they were read of.
        """
        now = self.retriever
        self._lexical, self.retriever = words, of
        self.follow(now)

    def follow(self, retriever: Retriever) -> None:
        """Goes on with items as they are now: added rows are found from here on, deleted ones not.

        A deleted one that is there again is found again. Only what has changed is read.

        Args:
            retriever: of the same model, whose first rows are the items known so far.
        """
        assert retriever.model is self.retriever.model
        before, self.retriever = self.retriever.items, retriever
        if self._lexical is None:
            return
        items = retriever.items
        was_there = np.zeros(len(items.deleted), np.bool_)
        was_there[: len(before.deleted)] = ~before.deleted
        for row in np.flatnonzero(was_there & items.deleted).tolist():
            self._lexical.remove(row)
        for row in np.flatnonzero(~was_there & ~items.deleted).tolist():
            self._lexical.add(row, items.texts[row])

    def search(
        self,
        query: Query,
        k: int,
        *,
        by: Way = "hybrid",
        taste: Taste | None = None,
        at: float | None = None,
        wishes: Wishes = NO_WISHES,
        content: Tensor | None = None,
    ) -> list[Recommendation]:
        """The K items that answer a query best.

        Args:
            query: what is looked for.
            k: how many; fewer where not as many are found.
            by: words (`lexical`), content (`dense`) or both (`hybrid`).
            taste: whose search it is; None: anybody's.
            at: Unix seconds at which items must be available; None: now.
            wishes: what the list is asked to be like.
            content: (D,) as `content` gives it, where that was asked before; None: it is asked
                here.

        Raises:
            UserError: k is below 1, the model cannot read what is given and words are not enough,
                or as `make_list`.
            DataError: a file is no picture or sound.
        """
        check_k(k)
        now = time.time() if at is None else at
        retriever = self.retriever
        if taste is not None and taste.mix == 1:
            return recommend_next(retriever, taste.asked, k, at=now, wishes=wishes)
        wishes.refuse_of_users("a search")
        wishes = with_half_life(retriever, wishes, query.text)
        match = self.match(query, by, content)
        scores, num_candidates = match.scores, k
        if taste is not None and taste.hide_seen and retriever.repeats_forbidden:
            scores = scores.clone()
            scores[torch.from_numpy(taste.asked.seen).to(scores.device)] = -torch.inf
        if taste is not None and taste.mix > 0 and self._knows(taste):
            num_candidates = max(POOL * k, FEWEST)
            scores = self._personal(scores, num_candidates, taste, now, wishes)
        rows = np.arange(len(scores), dtype=np.int64)
        found = make_list(retriever, Scored(rows, scores, "search"), k, now=now, wishes=wishes)
        told, row_of = _Finders(match, num_candidates), retriever.items.rows
        return [replace(each, found_by=told.of(row_of[each.item_id])) for each in found]

    def content(self, query: Query, by: Way = "hybrid") -> Tensor | None:
        """Content (D,) that items are compared with; None where words alone count.

        It needs nothing that `follow` changes, so that another thread may ask for it.

        Raises:
            UserError: the model cannot read what is given, and words are not enough.
            DataError: a file is no picture or sound.
        """
        media = self._read_by_model(query, by)
        if by == "hybrid" and query.text is not None and "text" not in media:
            logger.warning(
                "the model in %s reads no text: by the query's text items are found by words alone",
                self.retriever.path,
            )
        return self.encoder.media(media) if media else None

    def match(self, query: Query, by: Way = "hybrid", content: Tensor | None = None) -> Match:
        """Scores of all items, whether they may be listed now or not.

        Args:
            query: what is looked for.
            by: words, content or both; without a text, or without a model that reads what is
                given, `hybrid` is what remains.
            content: as in `search`.

        Raises:
            UserError: nothing remains.
        """
        if as_way(by) == "lexical" and query.text is None:
            raise UserError("a search by words needs a text: give one, or search by dense")
        if content is None:
            content = self.content(query, by)
        lexical = None if by == "dense" else self._lexical_scores(query)
        dense = None
        if content is not None:
            dense = self._dense_scores(self._read_by_model(query, by), content)
        gone = torch.from_numpy(self.retriever.items.deleted).to(self.retriever.device)
        return Match(_mixed(lexical, dense).masked_fill(gone, -torch.inf), lexical, dense)

    def _lexical_scores(self, query: Query) -> Tensor | None:
        if query.text is None:
            return None
        num_items = len(self.retriever.items.item_ids)
        covered = torch.from_numpy(self.lexical.coverage(query.text, num_items))
        scores = covered.float().to(self.retriever.device)
        return scores.masked_fill(scores <= 0, -torch.inf)

    def _read_by_model(self, query: Query, by: Way) -> dict[str, Path | str | bytes]:
        """What of a query the model is asked to read; a text it cannot read is left to words."""
        if by == "lexical":
            return {}
        media = query.media
        if by == "hybrid" and "text" not in self.retriever.transforms:
            media.pop("text", None)
        return media

    def _dense_scores(self, media: Collection[str], content: Tensor) -> Tensor:
        """Cosines (N,) of a query's content, which is made of some media."""
        retriever = self.retriever
        assert retriever.content is not None
        items = retriever.items
        alike = np.logical_and.reduce([items.has[name] for name in media])
        scores = _levelled(
            retriever.content @ content, alike, items.any_medium & ~alike, items.deleted
        )
        usable = torch.from_numpy(items.any_medium).to(retriever.device)
        return scores.masked_fill(~usable, -torch.inf)

    def _knows(self, taste: Taste) -> bool:
        known = basis_of(self.retriever, taste.asked) != "popularity"
        if not known:
            logger.warning("nothing is known of the user: the list is that of the search alone")
        return known

    def _personal(
        self, scores: Tensor, num_candidates: int, taste: Taste, now: float, wishes: Wishes
    ) -> Tensor:
        """Scores (N,) of which the taste has its part; all but the query's candidates are -inf.

        Taste is put on the scale that the query's scores have among its candidates: at a mix of a
        the score is (1 - a) s + a (mean(s) + deviation(s) z(t)), so that it stays in units of s.
        """
        retriever = self.retriever
        allowed = allowed_items(retriever, now, wishes)
        if allowed is not None:
            scores = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
        rows = _best(scores, num_candidates)
        if not len(rows):
            return scores
        found, user = scores[rows], retriever.user_vectors([taste.asked])[0]
        liking = retriever.item_side[rows] @ torch.cat([user, user.new_ones(1)])
        deviation = liking.std(correction=0).clamp(min=1e-6)
        # of what a query finds equally, as by the word of a category, taste alone says the order
        spread = found.std(correction=0).clamp(min=LEAST_SPREAD)
        scaled = found.mean() + spread * (liking - liking.mean()) / deviation
        mixed = torch.full_like(scores, -torch.inf)
        mixed[rows] = (1 - taste.mix) * found + taste.mix * scaled
        return mixed


class _Finders:
    """Says by what an item was found: it is among the best by words, by content, or by the sum."""

    def __init__(self, match: Match, num: int) -> None:
        self._text = _rows(match.lexical, num)
        self._meaning = _rows(match.dense, num)
        self._alone: FoundBy | None = None
        if match.lexical is None:
            self._alone = "meaning"
        elif match.dense is None:
            self._alone = "text"

    def of(self, item_index: int) -> FoundBy:
        if self._alone is not None:
            return self._alone
        by_text, by_meaning = item_index in self._text, item_index in self._meaning
        if by_text == by_meaning:
            return "both"
        return "text" if by_text else "meaning"


def _levelled(scores: Tensor, alike: BoolArray, others: BoolArray, gone: BoolArray) -> Tensor:
    """Cosines (N,), of which those of items that lack a medium of the query are made comparable.

    What is made of other media lies elsewhere in the space: of 50 stamps without a text none was
    among the first ten for its name, and with this 4 % of English and 10 % of Chinese names find
    theirs. Their scores are given the mean and the deviation of those of items that are alike.
    """
    near, far = (torch.from_numpy(each & ~gone).to(scores.device) for each in (alike, others))
    if not near.any() or not far.any():
        return scores
    wanted, own = scores[near], scores[far]
    scale = wanted.std(correction=0) / own.std(correction=0).clamp(min=1e-6)
    levelled = wanted.mean() + (scores - own.mean()) * scale
    return torch.where(torch.from_numpy(others).to(scores.device), levelled, scores)


def _mixed(lexical: Tensor | None, dense: Tensor | None) -> Tensor:
    """(N,) What is not found in one way has 0 of it; in neither it is not found."""
    if lexical is None or dense is None:
        only = dense if lexical is None else lexical
        assert only is not None
        return only
    words, content = (each.masked_fill(torch.isinf(each), 0) for each in (lexical, dense))
    mixed = LEXICAL_SHARE * words**LEXICAL_POWER + (1 - LEXICAL_SHARE) * content
    return mixed.masked_fill(torch.isinf(lexical) & torch.isinf(dense), -torch.inf)


def _best(scores: Tensor, num: int) -> Tensor:
    """Rows of the best finite scores, ties in the order of the catalogue."""
    order = scores.sort(descending=True, stable=True).indices[:num]
    return order[torch.isfinite(scores[order])]


def _rows(scores: Tensor | None, num: int) -> set[int]:
    return set() if scores is None else set(_best(scores, num).tolist())
