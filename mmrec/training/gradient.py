"""Gradients of rows weighed one by one, where what they are computed from stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a weight per row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: D102
        (weight,) = ctx.saved_tensors
        return grad_outputs[0] * weight[:, None], None


def scale_gradient(values: Tensor, weight: Tensor) -> Tensor:
    """(M, D) values as they are; their gradient times weight (M,)."""
    scaled: Tensor = _ScaleGradient.apply(values, weight)
    return scaled
