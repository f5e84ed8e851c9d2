"""Search by the words of items' texts: what is written is found, also what no model has met.

    texts ─ words ──► BM25 ─┐
          └ pieces ─► BM25 ─┴─► share of the query that an item's texts hold

An item is searchable as soon as it is added, and not any more once it is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mmrec.retrieval.bm25 import Bm25
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.terms import pieces, words

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
PIECES_SHARE = 0.25
"""What matches of three letters count beside whole words."""


class LexicalIndex:
    """The texts of items, by item_index.

    Args:
        texts: of each item in order; None or an empty text is never found.
    """

    def __init__(self, texts: Iterable[str | None] = ()) -> None:
        self._words, self._pieces = Bm25(), Bm25()
        for item_index, text in enumerate(texts):
            self.add(item_index, text)

    def __len__(self) -> int:
        """Items that can be found."""
        return len(self._words)

    def add(self, item_index: int, text: str | None) -> None:
        """Lets an item be found by a text, in place of what it was found by before."""
        self.remove(item_index)
        own = words(text or "")
        if own:
            self._words.add(item_index, own)
            self._pieces.add(item_index, pieces(text or ""))

    def remove(self, item_index: int) -> None:
        """Lets an item not be found any more."""
        self._words.remove(item_index)
        self._pieces.remove(item_index)

    def coverage(self, query: str, num_items: int) -> FloatArray:
        """How much of a query the texts of each item hold.

        Args:
            query: a text.
            num_items: N, above every item_index.

        Returns:
            (N,) from 0, nothing of it, to about 1, all its words in a text of usual length: BM25
            as a share of what such a text has. Rare words weigh more, and what no item
            holds counts as missing, so that a common word alone gives little.
        """
        by_word = _share(self._words, words(query), num_items)
        by_piece = _share(self._pieces, pieces(query), num_items)
        if by_piece is None or by_word is None:
            return np.zeros(num_items) if by_word is None else by_word
        return (1 - PIECES_SHARE) * by_word + PIECES_SHARE * by_piece


def read_words(retriever: Retriever) -> LexicalIndex:
    """The words of all items: a quarter of a millisecond each, of texts of thirty words."""
    items = retriever.items
    if items.read_texts is None:
        logger.warning(
            "%s holds no texts of items but titles, and these alone are searched by words; "
            "export the bundle again",
            retriever.path,
        )
    return LexicalIndex(
        None if gone else items.texts[row] for row, gone in enumerate(items.deleted)
    )


def _share(index: Bm25, terms: list[str], num_items: int) -> FloatArray | None:
    """(N,) scores as shares; None without terms."""
    if not terms:
        return None
    scores, full = index.scores(terms, num_items)
    return scores / full
