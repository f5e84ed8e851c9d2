"""Fits how far users' scores of new items can be trusted, on new items of validation.

    cold cases of validation: users ─┐
                                     ├─ cosines of who met an item and who did not ─► Platt scaling
    cold items by each set of media ─┘

See `fusion.confidence` for what is told. Test items are not looked at.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion.completion import MOST_MODALITIES
from mmrec.data.media import media_to
from mmrec.platt import platt

if TYPE_CHECKING:
    from mmrec.build import Assembly
    from mmrec.data.ragged import IntArray
    from mmrec.evaluation.protocol import Cases
    from mmrec.training.validate import Validation

LEAST_ITEMS = 10
LEAST_PAIRS = 100
"""Of fewer a scaling would be chance, and none is told."""
MOST_ITEMS = 1_000
MOST_CASES = 20_000
TILE = 256


@torch.no_grad()
def fit_confidence(assembly: Assembly, looked: Validation) -> None:
    """Learns the scalings of `model.confidence`; does nothing without new items in validation.

    Every set of modalities has the items that have all of it, seen by it alone, so that its scaling
    is that of items which have no more. Beside each user who met an item stands another user of
    validation who did not, drawn at random: at most 1,000 items and 20,000 users are taken.

    Args:
        assembly: the run's parts, with the weights of its end.
        looked: validation under them.
    """
    model, source, cases = assembly.model, assembly.source, assembly.validation
    if source is None or cases is None or model.confidence is None or model.completion is None:
        return
    names = model.confidence.modalities
    model.confidence.scaling.zero_()
    cold = cases.candidates[cases.candidate_is_cold]
    rows = np.flatnonzero(np.array(cases.slice) == "cold")
    if len(names) > MOST_MODALITIES or len(cold) < LEAST_ITEMS or not len(rows):
        return
    cold = cold[_evenly(len(cold), MOST_ITEMS)]
    rows = rows[_evenly(len(rows), MOST_CASES)]
    pairs = pairs_of(cases.take(rows), cold)
    if not len(pairs):
        return
    users = looked.users[torch.from_numpy(rows).to(looked.users.device), :-1]
    sets = [set(each) for size in range(1, len(names) + 1) for each in combinations(names, size)]
    contents, has = _contents(assembly, cold, sets)
    for present, content in zip(sets, contents, strict=True):
        wanted = torch.tensor([name in present for name in names], device=has.device)
        usable = has[:, wanted].all(1)
        embedding = model.completion.of_new(content, wanted.expand_as(has))
        kept = pairs[usable.cpu().numpy()[pairs[:, 2]]]
        if len(kept) >= LEAST_PAIRS and len(np.unique(kept[:, 2])) >= LEAST_ITEMS:
            scores = _scores(users, embedding, kept)
            labels = np.repeat([1.0, 0.0], len(kept))
            model.confidence.set_scaling(present, *platt(scores, labels))


def _evenly(num: int, most: int) -> IntArray:
    return np.linspace(0, num - 1, min(num, most)).astype(np.int64)


def pairs_of(cases: Cases, cold: IntArray) -> IntArray:
    """(P, 3) case who met an item, case who did not, place of the item among the cold ones.

    Who did not is drawn from all cases; one who met the item as well, now or before, is drawn
    again, a few times.
    """
    place = np.full(cases.num_items, -1)
    place[cold] = np.arange(len(cold))
    met = np.repeat(np.arange(len(cases)), cases.targets.lengths)
    item = place[cases.targets.values]
    met, item = met[item >= 0], item[item >= 0]
    before = np.repeat(np.arange(len(cases)), cases.seen.lengths)
    old = place[cases.seen.values]
    everybody = np.concatenate([met * len(cold) + item, (before * len(cold) + old)[old >= 0]])
    generator = np.random.default_rng(0)
    other = generator.integers(0, len(cases), len(met))
    for _ in range(20):
        again = np.isin(other * len(cold) + item, everybody)
        if not again.any():
            break
        other[again] = generator.integers(0, len(cases), int(again.sum()))
    pairs = np.stack([met, other, item], 1)
    return pairs[~np.isin(other * len(cold) + item, everybody)]


def _contents(
    assembly: Assembly, items: IntArray, sets: list[set[str]]
) -> tuple[list[Tensor], Tensor]:
    """(n, D) content of the items by each set of modalities, and (n, M) what they have."""
    model, source = assembly.model, assembly.source
    assert source is not None and model.fusion is not None and model.confidence is not None
    model.eval()
    by_set: list[list[Tensor]] = [[] for _ in sets]
    has: list[Tensor] = []
    for start in range(0, len(items), TILE):
        tokens = model.tokens(
            media_to(source.collate(items[start : start + TILE]), assembly.device)
        )
        has.append(
            torch.stack([tokens[name].mask.any(1) for name in model.confidence.modalities], 1)
        )
        for each, present in zip(by_set, sets, strict=True):
            each.append(model.fusion({k: v for k, v in tokens.items() if k in present}))
    return [torch.cat(each) for each in by_set], torch.cat(has)


def _scores(users: Tensor, items: Tensor, pairs: IntArray) -> np.ndarray[tuple[int], np.dtype]:
    """(2 P,) cosines: of those who met, then of those who did not."""
    met, other, item = (torch.from_numpy(pairs[:, n]).to(users.device) for n in range(3))
    both = torch.cat([met, other]), torch.cat([item, item])
    return (users[both[0]] * items[both[1]]).sum(1).double().cpu().numpy()
