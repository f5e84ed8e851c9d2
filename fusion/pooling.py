"""Means and softmaxes over what an item has; what is not there is masked, never zero-filled.

Legend: M items · T tokens of one modality · K modalities · D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens in fp32: (M, T, D), (M, T) bool -> (M, D); zeros where none is."""
    total = (tokens.float() * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def softmax_of_present(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over what is there: (M, K), (M, K) bool -> (M, K); zeros where nothing is."""
    least = torch.finfo(logits.dtype).min  # not -inf, whose softmax has no value where all are so
    return logits.masked_fill(~present, least).softmax(1) * present


def mean_of_present(parts: Sequence[Tensor], masks: Sequence[Tensor], null: Tensor) -> Tensor:
    """Mean over an item's modalities of the means of their tokens.

    Args:
        parts: (M, T, D) of each modality.
        masks: (M, T) bool, True = real.
        null: (D,) for an item without any.

    Returns:
        (M, D) in fp32.
    """
    present = torch.stack([mask.any(1) for mask in masks], dim=1)  # (M, modalities)
    pooled = torch.stack([pool(part, mask) for part, mask in zip(parts, masks, strict=True)], 1)
    count = present.sum(1, keepdim=True)
    return torch.where(count > 0, pooled.sum(1) / count.clamp(min=1), null.float())
