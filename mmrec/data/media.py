"""Media of items as the model takes them: cached states, or what transforms give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from encoders.tokens import Tokens
from mmrec.data.histories import IntArray

ModalityInput = Tokens | dict[str, Tensor]
"""One modality of M items: cached states, or what a transform's collate gives."""


class ItemSource(Protocol):
    """Media (or cached states) of items by item index."""

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items, in their order; missing media are masked."""
        ...


def media_to(media: Mapping[str, ModalityInput], device: torch.device) -> dict[str, ModalityInput]:
    """Moves every modality to a device."""
    return {
        name: each.to(device)
        if isinstance(each, Tokens)
        else {key: value.to(device) for key, value in each.items()}
        for name, each in media.items()
    }
