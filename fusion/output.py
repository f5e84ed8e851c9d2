"""The way out of item fusion: contents of unit length, centred on those of the catalogue.

Legend: M items · K modalities · D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.pooling import softmax_of_present


class Output(nn.Module):
    """Last layer of a fusion: projection, centring, unit length.

        c = normalise(x - m),   x = W h

    All items share most of what a fresh fusion computes, and what they share says nothing: a
    softmax does not see it. Yet the shared part grew until every item had the same vector (mean
    cosine .99 on MovieLens-1M after 130 steps, and no further learning to speak of). So m
    follows the mean output of the catalogue, as the running mean of BatchNorm does, and the
    gradient's mean over the items of a step is taken out. The result for an item never depends on
    its neighbours: m is what earlier steps left, and the second change touches gradients alone.

    Args:
        width_in: width of h.
        width: D.
        momentum: share of m that a step keeps.
    """

    mean: Tensor

    def __init__(self, width_in: int, width: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        # no bias: m takes its place, and its gradient would be rounding noise, which Adam scales up
        self.projection = nn.Linear(width_in, width, bias=False)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, hidden: Tensor, present: Tensor | None = None) -> Tensor:
        """(M, width_in) -> (M, D) unit vectors in fp32; rows not `present`, (M,) bool, are void."""
        output = self.projection(hidden).float()
        centred = output - self.mean
        real = output if present is None or not self.training else output[present]
        if self.training and real.shape[0] > 1:
            mean = real.mean(0)
            centred = centred - (mean - mean.detach())
            self.mean = self.momentum * self.mean + (1 - self.momentum) * mean.detach()
        return F.normalize(centred, dim=-1)

    @torch.no_grad()
    def spread(self, hidden: Tensor, *, ridge: float = 0.1) -> None:
        """Starts contents apart: centred, and about equally long in every direction.

        Args:
            hidden: (n, width_in) of items of the catalogue, with fresh weights.
            ridge: share of the mean variance added to every direction, so that directions which
                only noise tells apart are not blown up.
        """
        output = self.projection(hidden).double()
        mean = output.mean(0)
        centred = output - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(output.shape[0] - 1, 1))
        values = values.clamp(min=0)
        scale = (values + ridge * values.mean()).clamp(min=1e-12).rsqrt()
        whiten = vectors @ torch.diag(scale) @ vectors.T
        self.projection.weight.copy_(whiten @ self.projection.weight.double())
        self.mean.copy_(whiten @ mean)


class LateOutput(nn.Module):
    """Last layer of late fusion: an `Output` for each of K modalities, and the sum of their units.

    Args:
        num_modalities: K.
        width: D.
    """

    def __init__(self, num_modalities: int, width: int) -> None:
        super().__init__()
        self.outputs = nn.ModuleList(Output(width, width) for _ in range(num_modalities))
        self.weight = nn.Parameter(torch.zeros(num_modalities))  # logits: equal at the start
        self.null = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.null, std=0.02)

    def forward(self, pooled: Tensor, present: Tensor) -> Tensor:
        """(M, K, D), (M, K) bool -> (M, D) unit vectors in fp32."""
        units = [out(pooled[:, k], present[:, k]) for k, out in enumerate(self.outputs)]
        weights = softmax_of_present(self.weight.expand(present.shape), present)
        mixed = (weights[..., None] * torch.stack(units, dim=1)).sum(1)
        return F.normalize(torch.where(present.any(1, keepdim=True), mixed, self.null), dim=-1)

    @torch.no_grad()
    def spread(self, pooled: Tensor, present: Tensor) -> None:
        """`Output.spread` of each modality, over the items that have it."""
        for k, out in enumerate(self.outputs):
            assert isinstance(out, Output)
            if present[:, k].any():
                out.spread(pooled[present[:, k], k])
