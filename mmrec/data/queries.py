"""Pseudo-queries: a piece of an item's own text, by which search should find the item.

    texts of a step's items ─ some fields, whole or a sentence of each ─► Queries

A query goes the way of a text that somebody types: through the text's transform, with no other
medium. So it is encoded in the step, below the cut too (see `mmrec.data.live`): a cache would have
to hold every subset of an item's fields, and every sentence, in as many states as a whole text has.
On a GPU that is little beside the rest of a step; on a CPU a pretrained text model takes most of
it, and `training.query_items` says how many queries a step has.

Legend: M items of a step, over all ranks · m of them encoded by this rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoders.encoder import Inputs, Transform
from mmrec.data.cache import StateDtype
from mmrec.data.ragged import IntArray
from mmrec.errors import ConfigError

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")

Text = Mapping[str, str]
"""Texts of an item, or a part of them, by field."""


@dataclass(frozen=True)
class Queries:
    """The queries of a step.

    Attributes:
        inputs: what the text's transform gives, a row for each item that this rank encodes; an
            item that is not asked for, or has no text to ask by, is not `present`.
        answers: (m, M) bool, the items that hold all of a query; its own item is one.
        dtype: that states are rounded to at the cut; None where text trains from raw pieces.
    """

    inputs: Inputs
    answers: Tensor
    dtype: StateDtype | None

    def to(self, device: torch.device) -> Queries:
        """The same queries on a device."""
        inputs = {name: each.to(device) for name, each in self.inputs.items()}
        return replace(self, inputs=inputs, answers=self.answers.to(device))


class QuerySource:
    """Draws queries for items of a step; a query is a function of (seed, epoch, batch, item) alone.

    Args:
        texts: gives the texts of an item of the catalogue by its index.
        transform: of the text encoder.
        dtype: see Queries.
        size: most queries of a step, over all ranks; None: of every item.
        seed: of the run.
    """

    def __init__(
        self,
        texts: Callable[[int], Text],
        transform: Transform,
        *,
        dtype: StateDtype | None,
        size: int | None,
        seed: int,
    ) -> None:
        self.texts, self.transform, self.dtype, self.seed = texts, transform, dtype, seed
        self.size = size

    def draw(
        self, item_index: IntArray, places: Sequence[int], *, epoch: int, batch: int
    ) -> Queries:
        """The queries of a step.

        Args:
            item_index: (M,) catalogue index of the items of all ranks.
            places: m places of those that this rank encodes.
            epoch: of the batch.
            batch: its number in the epoch.
        """
        texts = [self.texts(int(each)) for each in item_index]
        order = np.random.default_rng((self.seed, epoch, 10, batch)).permutation(len(texts))
        asked = {*order[: self.size].tolist()}
        drawn = []
        for place in places:
            random = np.random.default_rng((self.seed, epoch, 8, batch, int(item_index[place])))
            drawn.append(draw_query(texts[place], random) if place in asked else None)
        samples = [None if query is None else self.transform(query) for query in drawn]
        answers = torch.from_numpy(find_answers(drawn, texts))
        return Queries(self.transform.collate(samples), answers, self.dtype)


def open_queries(
    texts: Callable[[int], Text],
    transform: Transform,
    item_index: IntArray,
    *,
    dtype: StateDtype | None,
    size: int | None,
    seed: int,
) -> QuerySource:
    """The source of a run's queries.

    Args:
        texts: see QuerySource, as are the others.
        transform: of the text encoder.
        item_index: items of training.
        dtype: that states are rounded to at the cut.
        size: most queries of a step.
        seed: of the run.

    Raises:
        ConfigError: no item of training has a text that can be asked for by a part of it.
    """
    random = np.random.default_rng(0)
    if all(draw_query(texts(int(each)), random) is None for each in item_index):
        raise ConfigError(
            "training.query_weight is set, but no item of training has a text of two fields or two "
            "sentences, to be found by a part of it: name more fields under items.text of the "
            "catalogue, or set training.query_weight=0"
        )
    return QuerySource(texts, transform, dtype=dtype, size=size, seed=seed)


def sentences(text: str) -> list[str]:
    """A text cut behind the marks that end a sentence."""
    return [part for each in SENTENCE_END.split(text) if (part := each.strip())]


def draw_query(text: Text, random: np.random.Generator) -> Text | None:
    """A random part of a text: never nothing, never all of it.

    Of several fields each non-empty proper subset is equally likely; a field of several sentences
    is then one of them half of the time. Of a single field it is always one sentence.

    Returns:
        The part by field, in the fields' order; None for a text of a single sentence.
    """
    parts = {name: sentences(each) for name, each in text.items()}
    names = [name for name, each in parts.items() if each]
    if len(names) < 2:
        several = [name for name in names if len(parts[name]) > 1]
        return {name: _one_of(parts[name], random) for name in several} or None
    chosen = int(random.integers(1, 2 ** len(names) - 1))  # a bit a field, neither none nor all
    query = {}
    for bit, name in enumerate(names):
        if chosen >> bit & 1:
            one = len(parts[name]) > 1 and random.random() < 0.5
            query[name] = _one_of(parts[name], random) if one else text[name].strip()
    return query


def _one_of(parts: Sequence[str], random: np.random.Generator) -> str:
    return parts[int(random.integers(len(parts)))]


def find_answers(queries: Sequence[Text | None], texts: Sequence[Text]) -> npt.NDArray[np.bool_]:
    """Which texts hold all parts of each query: (m, M) bool; of no query, no text."""
    holders: dict[tuple[str, str], set[int]] = {}
    for place, text in enumerate(texts):
        for name, each in text.items():
            for part in (each.strip(), *sentences(each)):
                holders.setdefault((name, part), set()).add(place)
    answers = np.zeros((len(queries), len(texts)), np.bool_)
    for row, query in enumerate(queries):
        if query is not None:
            found = set.intersection(*(holders[part] for part in query.items()))
            answers[row, sorted(found)] = True
    return answers
