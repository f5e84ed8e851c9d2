"""What the heads tell of a user and some items: probabilities and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shards import History
from mmrec.data.labels import user_offsets
from mmrec.retrieval.known import Asked
from mmrec.retrieval.retriever import Retriever


@torch.no_grad()
def predict(retriever: Retriever, asked: Asked, rows: Sequence[int]) -> dict[str, list[float]]:
    """One number an item of each head.

    Args:
        retriever: of a model with heads.
        asked: the user; the values of his events count for heads of values.
        rows: item_index of the items.

    Returns:
        By head, (n,): the probability of yes among the events that are its examples, or a value.
    """
    model, device = retriever.model, retriever.device
    user = retriever.user_vectors([asked])
    items = retriever.vectors.embedding[torch.tensor(rows, dtype=torch.int64, device=device)]
    found = {}
    for name, head in model.heads.items():
        offsets = expected_beside(retriever, asked, rows, name)
        told = head(user.expand(len(rows), -1), items, torch.from_numpy(offsets).to(device))
        is_binary = model.head_specs[name].kind == "binary"
        found[name] = (told.sigmoid() if is_binary else told).tolist()
    return found


def expected_beside(
    retriever: Retriever, asked: Asked, rows: Sequence[int], name: str
) -> npt.NDArray[np.float32]:
    """(n,) what a head is told of user and items by their means alone; 0 of a binary one."""
    model, spec = retriever.model, retriever.model.head_specs[name]
    if spec.kind != "value":
        return np.zeros(len(rows), np.float32)
    of_items = np.zeros(len(retriever.items.item_ids), np.float32)
    of_items[retriever.item_index_of] = model.value_offsets[name].cpu().numpy()
    events = asked.events
    history = History(-1, asked.history, events.time, events.event, events.value, None)
    of_user = user_offsets(spec, spec.labels(history), of_items[asked.history])[-1]
    offsets: npt.NDArray[np.float32] = of_items[list(rows)] + of_user
    return offsets
