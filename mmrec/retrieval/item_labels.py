"""Labels that the model tells of items from their content, known ones and new ones alike.

Legend: n items · D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrec.retrieval.retriever import Retriever

Told = dict[str, dict[str, float]]
"""Of each set of labels, label -> probability, the likeliest first."""


@torch.no_grad()
def tell_labels(retriever: Retriever, content: Tensor, k: int | None = None) -> list[Told]:
    """The labels of items with their probabilities.

    Args:
        retriever: of a model that tells labels.
        content: (n, D) unit vectors.
        k: how many of each set; None: all.
    """
    model = retriever.model
    found: list[Told] = [{} for _ in range(len(content))]
    for name, head in model.label_heads.items():
        labels = model.label_sets[name].labels
        told, order = head.probabilities(content).sort(dim=1, descending=True, stable=True)
        for item, values, places in zip(found, told[:, :k], order[:, :k], strict=True):
            pairs = zip(places.tolist(), values.tolist(), strict=True)
            item[name] = {labels[place]: value for place, value in pairs}
    return found
