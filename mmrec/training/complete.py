"""Fits what contents that lack a modality are completed by, from the items of training."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion.completion import EXPECTED_SHARE
from mmrec.data.media import media_to

if TYPE_CHECKING:
    from mmrec.build import Assembly

FEWEST_ITEMS = 2
MOST_ITEMS = 5_000
TILE = 256


@torch.no_grad()
def fit_completion(assembly: Assembly) -> None:
    """Learns the maps of `model.completion`; does nothing for ids alone, or one modality.

    Every set of modalities but that of all is left out in turn, and its map is fitted to the items
    that have it and something else. What nearly all items have is expected of new ones. At most
    5,000 items are taken, evenly.
    """
    model, source = assembly.model, assembly.source
    completion = model.completion
    if source is None or completion is None or len(completion.maps) == 1:
        return
    assert model.fusion is not None
    names = completion.modalities
    rows = assembly.item_index_of
    if len(rows) > MOST_ITEMS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_ITEMS).astype(np.int64)]
    sets = [set(each) for size in range(1, len(names)) for each in combinations(names, size)]
    if not sets:
        return
    model.eval()
    whole: list[Tensor] = []
    has: list[Tensor] = []
    without: list[list[Tensor]] = [[] for _ in sets]
    for start in range(0, len(rows), TILE):
        media = media_to(source.collate(rows[start : start + TILE]), assembly.device)
        tokens = model.tokens(media)
        whole.append(model.fusion(tokens))
        has.append(torch.stack([tokens[name].mask.any(1) for name in names], 1))
        for each, missing in zip(without, sets, strict=True):
            rest = {name: of_one for name, of_one in tokens.items() if name not in missing}
            each.append(model.fusion(rest))
    having = torch.cat(has)
    completion.expected.copy_(having.double().mean(0) >= EXPECTED_SHARE)
    for missing, contents in zip(sets, without, strict=True):
        gone = torch.tensor([name in missing for name in names], device=having.device)
        chosen = having[:, gone].all(1) & having[:, ~gone].any(1)
        if int(chosen.sum()) >= FEWEST_ITEMS:
            completion.fit(missing, torch.cat(contents)[chosen], torch.cat(whole)[chosen])
