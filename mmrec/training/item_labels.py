"""The loss of item labels: what the labels of the fresh items cost, told from their content.

Legend: M fresh items of a step, over all ranks · D width · K labels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmrec.model import RecommenderModel


def label_losses(
    model: RecommenderModel, content: Tensor, weight: Tensor, labels: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean cost of the labels of an item, a number for each set.

        loss = sum_i w_i s_i / sum_i w_i,   s_i = -log p(labels of i | content of i)

    With w = 1 / pi items count alike, and not by how often they are met: a new item is none of
    those that many users meet.

    Args:
        model: in training mode.
        content: (M, D) of the fresh items as if never met, with dropout and media left out.
        weight: (M,) inverse probability of being fresh, capped.
        labels: (M, K) of each set, NaN for an item that is no example.
    """
    found = {}
    for name, head in model.label_heads.items():
        known = ~labels[name][:, 0].isnan()
        share = weight[known]
        cost = head.surprise(content[known], labels[name][known])
        found[name] = (share * cost).sum() / share.sum().clamp(min=1e-12)
    return found
