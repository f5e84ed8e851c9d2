"""The ranker's heads on lists: losses in training, figures and calibration on held-out events."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.ranker import Ranker
from mmrec.data.ragged import IntArray
from mmrec.evaluation.heads import binary_figures, value_figures
from mmrec.ranking.calibrate import calibrate, refusal
from mmrec.ranking.lists import Frozen, Lists
from mmrec.retrieval.ranker_inputs import RankerInputs
from mmrec.retrieval.ranker_outputs import head_values, tell

TILE = 32


def head_losses(
    frozen: Frozen,
    lists: Lists,
    rows: IntArray,
    embedding: Tensor,
    told: Tensor,
    names: tuple[str, ...],
) -> list[Tensor]:
    """Mean loss of each head over the labels of some lists; 0 where they have none.

    Cross-entropy of a binary head; squared error in units of the values' variance of one of values.

    Args:
        frozen: the retriever.
        lists: all of them.
        rows: (B,).
        embedding: (B, C, D) of the candidates as they are shown.
        told: (B, C, 1 + heads) of the ranker.
        names: of the heads, in its order.
    """
    found = []
    for column, name in enumerate(names, start=1):
        labels = torch.from_numpy(lists.labels[name][rows]).to(told.device)
        known = ~labels.isnan()
        values = _values(frozen, lists, rows, embedding, told[..., column], name)[known]
        if frozen.loaded.model.head_specs[name].kind == "binary":
            terms = F.binary_cross_entropy_with_logits(values, labels[known], reduction="sum")
        else:
            spread = frozen.loaded.model.head_specs[name].spread
            terms = ((values - labels[known]) / spread).square().sum()
        found.append(terms / max(int(known.sum()), 1))
    return found


def _values(
    frozen: Frozen, lists: Lists, rows: IntArray, embedding: Tensor, added: Tensor, name: str
) -> Tensor:
    """(B, C) logits or values of a head."""
    at = torch.from_numpy(rows).to(added.device)
    expected = torch.from_numpy(lists.expected[name][rows]).to(added.device)
    return head_values(frozen.loaded.model, name, added, lists.users[at], embedding, expected)


@torch.no_grad()
def judge_heads(
    frozen: Frozen, inputs: RankerInputs, ranker: Ranker, lists: Lists | None
) -> dict[str, dict[str, Any]]:
    """Figures of each head on lists of held-out events, and the calibration of its probabilities.

    Args:
        frozen: the retriever.
        inputs: of its candidates.
        ranker: left in eval mode.
        lists: None where there are none.

    Returns:
        By head `figures` (see `mmrec.evaluation.heads`) of the ranker and of the retriever's head
        alone, and of a binary one `calibration`, or `refused` with the reason.
    """
    ranker.eval()
    found: dict[str, dict[str, Any]] = {}
    if lists is None:
        return {
            name: {"refused": refusal(np.zeros(0))}
            for name in ranker.heads
            if frozen.loaded.model.head_specs[name].kind == "binary"
        }
    told = _tell_all(inputs, ranker, lists)
    for column, name in enumerate(ranker.heads, start=1):
        spec = frozen.loaded.model.head_specs[name]
        labels = lists.labels[name]
        known = ~np.isnan(labels)
        wanted = labels[known].astype(np.float64)
        found[name] = {}
        if len(wanted):
            sides = {"ranker": told[..., column], "retriever": told[..., column] * 0}
            values = {
                side: _values_of_all(frozen, lists, added, name)[known]
                for side, added in sides.items()
            }
            expected = lists.expected[name][known]
            for side, own in values.items():
                found[name][side] = (
                    binary_figures(
                        1 / (1 + np.exp(-own)), wanted, rate=float(1 / (1 + np.exp(-spec.base)))
                    )
                    if spec.kind == "binary"
                    else value_figures(own, wanted, mean=spec.base, means=spec.base + expected)
                )
        if spec.kind == "binary":
            reason = refusal(wanted)
            if reason is not None:
                found[name]["refused"] = reason
            else:
                users = np.broadcast_to(lists.cases.user_index[:, None], labels.shape)[known]
                found[name]["calibration"] = calibrate(values["ranker"], wanted, users)
    return found


def _tell_all(inputs: RankerInputs, ranker: Ranker, lists: Lists) -> Tensor:
    """(U, C, 1 + heads) of the ranker."""
    parts = []
    for start in range(0, len(lists), TILE):
        rows = np.arange(start, min(start + TILE, len(lists)))
        at = torch.from_numpy(rows).to(lists.users.device)
        part = lists.cases.take(rows)
        asked = (lists.users[at], part.history, part.told, lists.items[rows], lists.scores[at])
        parts.append(tell(ranker, inputs, *asked))
    return torch.cat(parts)


def _values_of_all(
    frozen: Frozen, lists: Lists, added: Tensor, name: str
) -> npt.NDArray[np.float64]:
    """(U, C) logits or values of a head."""
    parts = []
    for start in range(0, len(lists), TILE):
        rows = np.arange(start, min(start + TILE, len(lists)))
        items = torch.from_numpy(np.maximum(lists.items[rows], 0)).to(added.device)
        embedding = frozen.vectors.embedding[items]
        parts.append(_values(frozen, lists, rows, embedding, added[rows[0] : rows[-1] + 1], name))
    return torch.cat(parts).double().cpu().numpy()
