"""The scores of all candidates for some cases at a time, for figures that need more than ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import Scorer

# Scores held at once (64 MB): memory does not grow with the catalogue or with the users.
MAX_SCORES = 2**24


def masked_scores(
    scorer: Scorer, cases: Cases, *, device: torch.device | str = "cpu"
) -> Iterator[tuple[IntArray, Tensor]]:
    """Walks through the cases, a tile at a time.

    Yields:
        rows: (b,) of the cases.
        scores: (b, C) float32, -inf where the item was seen or could not be shown.
    """
    num_candidates = len(cases.candidates)
    column_of = np.full(cases.num_items, -1, dtype=np.int64)
    column_of[cases.candidates] = np.arange(num_candidates)
    tile = min(1024, max(1, MAX_SCORES // max(num_candidates, 1)))
    for start in range(0, len(cases), tile):
        rows = np.arange(start, min(start + tile, len(cases)))
        scores = scorer.score(rows, slice(0, num_candidates)).to(device, torch.float32)
        seen = cases.seen.take(rows)
        column = column_of[seen.values]
        row = seen.row_of_value[column >= 0]
        scores[torch.from_numpy(row), torch.from_numpy(column[column >= 0])] = -torch.inf
        unavailable = cases.unavailable(rows, 0, num_candidates)
        if unavailable is not None:
            scores[torch.from_numpy(unavailable).to(device)] = -torch.inf
        yield rows, scores
