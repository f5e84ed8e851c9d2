"""Paths: several items in a row, each what the user would meet after those before it.

    user ─► next item ─► user who has met it ─► next item ─► …      the likeliest few go on (a beam)

    log p(path) = sum_j log p(item_j | history, item_1 .. item_{j-1})

p is the softmax of the model's scores over the candidates that the user has not met; an item of a
path is met, whether the catalogue lets items repeat or not. A rule takes items out of a step and
leaves the probabilities of the others as they are, so that paths under a rule compare with others.

Legend: W paths in the beam · C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.data.told import join_columns, unknown_events
from mmrec.errors import UserError
from mmrec.retrieval.known import Asked
from mmrec.retrieval.retriever import Retriever

Rule = Callable[[tuple[str, ...], str], bool]
"""Whether an item id may come behind the ids of a path so far, such as a course behind others."""


@dataclass(frozen=True)
class Path:
    """Items in a row.

    Attributes:
        item_ids: in the order in which they are to be met.
        log_probability: that the user meets them one after the other.
    """

    item_ids: tuple[str, ...]
    log_probability: float


@dataclass(frozen=True)
class _Begun:
    """A path so far, and the user who has met it."""

    path: Path
    asked: Asked


def best_paths(
    retriever: Retriever,
    asked: Asked,
    *,
    length: int,
    k: int = 1,
    beam: int = 32,
    rule: Rule | None = None,
    at: float | None = None,
) -> list[Path]:
    """The K likeliest paths that a beam search finds; with a beam wide enough, the likeliest.

    Args:
        retriever: the model and its candidates.
        asked: the user; what he meets on the way is of unknown type and time.
        length: items of a path.
        k: how many paths, likeliest first; fewer where no more are allowed.
        beam: W, paths that go on after each step, k at least.
        rule: which items may follow; None: all. It is asked likeliest first, W times at most for
            each item that it refuses.
        at: Unix seconds at which items must be available; None: whenever they are.

    Raises:
        UserError: length, k or beam is too small.
    """
    for name, value, least in (("length", length, 1), ("k", k, 1), ("beam", beam, k)):
        if value < least:
            raise UserError(f"{name} is {value}: give {least} at least")
    candidates = retriever.items.candidates
    if at is not None and retriever.items.available is not None:
        candidates = candidates[retriever.items.available.at(at)[candidates]]
    begun = [_Begun(Path((), 0.0), asked)]
    for _ in range(length):
        told = _log_probabilities(retriever, [each.asked for each in begun], candidates)
        longer = [
            _Begun(Path((*one.path.item_ids, item_id), one.path.log_probability + gain), one.asked)
            for one, gains in zip(begun, told, strict=True)
            for item_id, gain in _allowed(retriever, one, gains, candidates, rule, beam)
        ]
        longer.sort(key=lambda each: -each.path.log_probability)
        begun = [replace(each, asked=_having_met(retriever, each)) for each in longer[:beam]]
    return [each.path for each in begun[:k]]


@torch.no_grad()
def _log_probabilities(retriever: Retriever, users: list[Asked], candidates: IntArray) -> Tensor:
    """(W, C) of the next item; -inf for what has been met."""
    if not users:
        return torch.zeros(0, len(candidates))
    vectors = retriever.user_vectors(users)
    side = retriever.item_side[torch.from_numpy(candidates).to(retriever.device)]
    scores = torch.cat([vectors, vectors.new_ones(len(users), 1)], dim=1) @ side.T
    met = torch.from_numpy(np.stack([np.isin(candidates, each.seen) for each in users]))
    logits = (scores / retriever.model.temperature).masked_fill(met.to(scores.device), -torch.inf)
    return logits.log_softmax(dim=1).double().cpu()


def _allowed(
    retriever: Retriever,
    begun: _Begun,
    gains: Tensor,
    candidates: IntArray,
    rule: Rule | None,
    limit: int,
) -> Iterator[tuple[str, float]]:
    """The likeliest next items that the rule lets follow, with their log probabilities."""
    values, places = gains.sort(descending=True, stable=True)
    found = 0
    for gain, place in zip(values.tolist(), places.tolist(), strict=True):
        if found == limit or not gain > -np.inf:  # NaN where everything has been met
            return
        item_id = retriever.items.item_ids[int(candidates[place])]
        if rule is None or rule(begun.path.item_ids, item_id):
            found += 1
            yield item_id, gain


def _having_met(retriever: Retriever, begun: _Begun) -> Asked:
    """The user behind the last item of his path."""
    asked, row = begun.asked, retriever.items.rows[begun.path.item_ids[-1]]
    met = unknown_events(1, list(asked.events.context))
    return replace(
        asked,
        history=np.append(asked.history, row),
        seen=np.union1d(asked.seen, [row]),
        events=join_columns([asked.events, met]),
    )
