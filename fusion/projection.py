"""The way into item fusion: a modality's tokens in the common width, by learned projections.

Legend: M items · T tokens of one modality · K modalities · W width of their tokens · D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.pooling import pool


@dataclass(frozen=True)
class Modality:
    """What a fusion is told of one modality.

    Attributes:
        token_width: W of the tokens that come in.
        num_tokens: most tokens T.
        components: k, how many directions of the tokens are read; None: all W channels.
        scale: how much its projected tokens weigh at the start beside others'.
    """

    token_width: int
    num_tokens: int
    components: int | None = None
    scale: float = 1.0


class TokenProjection(nn.Module):
    """One modality's tokens in the common width, marked with modality and position.

        all channels      LayerNorm ─────────────────────────────────────► W D + b ─► x scale
        k components      LayerNorm, less mean, k directions, one scale ─► k D + b ─► x scale

    The states of a pretrained encoder have hundreds of channels, a catalogue a few thousand items:
    weights for every channel learn the items of training by heart and nothing of the next one. The
    k directions in which the catalogue's items differ most are kept (principal components of their
    mean tokens; all divided by one number, so that the lesser stay the lesser). They are found once
    by `fit`, before the first step, and stay.

    Args:
        modality: what comes in.
        width: D.
        feature_dropout: chance that a channel or component is silent in training, for all tokens
            of an item.
    """

    centre: Tensor
    basis: Tensor

    def __init__(self, modality: Modality, *, width: int, feature_dropout: float) -> None:
        super().__init__()
        W, k = modality.token_width, modality.components
        self.num_components = None if k is None else min(k, W)
        self.scale = modality.scale
        self.feature_dropout = nn.Dropout1d(feature_dropout)
        self.norm = nn.LayerNorm(W, elementwise_affine=k is None)
        self.projection = nn.Linear(self.num_components or W, width)
        self.modality = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(modality.num_tokens, width))
        nn.init.normal_(self.modality, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        if self.num_components:
            self.register_buffer("centre", torch.zeros(W))
            self.register_buffer("basis", torch.eye(W, self.num_components))

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens (M, T, W) -> (M, T, D)."""
        T = tokens.values.shape[1]
        values = self.norm(tokens.values)
        if self.num_components:
            values = (values - self.centre) @ self.basis
        values = self.feature_dropout(values.transpose(1, 2)).transpose(1, 2)  # (M, T, W or k)
        projected = self.projection(values) + self.modality + self.position[:T]
        return projected if self.scale == 1 else projected * self.scale

    def pooled(self, tokens: Tokens) -> Tensor:
        """What `fit` reads: means of the normed tokens of those n items that have any, (n, W)."""
        present = tokens.mask.any(1)
        return pool(self.norm(tokens.values[present].float()), tokens.mask[present])

    @torch.no_grad()
    def fit(self, pooled: Tensor) -> None:
        """Finds the components; nothing where all channels are read.

        Args:
            pooled: (n, W) of items of the catalogue.
        """
        if self.num_components and pooled.shape[0] > 1:
            values = pooled.double()
            self.centre.copy_(values.mean(0))
            centred = values - values.mean(0)
            variances, directions = torch.linalg.eigh(centred.T @ centred / values.shape[0])
            kept = directions.flip(1)[:, : self.num_components]
            scale = variances.flip(0)[: self.num_components].clamp(min=0).mean().clamp(min=1e-12)
            self.basis.copy_(_signed(kept) * scale.rsqrt())


def make_projections(
    modalities: Mapping[str, Modality], width: int, feature_dropout: float
) -> nn.ModuleDict:
    """A projection for each modality by its module's name, in the order of the names."""
    return nn.ModuleDict(
        {
            module_name(name): TokenProjection(
                modalities[name], width=width, feature_dropout=feature_dropout
            )
            for name in sorted(modalities)
        }
    )


def _signed(directions: Tensor) -> Tensor:
    """Columns with their largest entry positive: an eigenvector's sign is the library's whim."""
    largest = directions.abs().argmax(0, keepdim=True)
    return directions * directions.gather(0, largest).sign()


def module_name(modality: str) -> str:
    """A module's name may hold no dot (`vector.clip`)."""
    return modality.replace(".", "_")


def pool_each(
    projections: nn.ModuleDict, modalities: Sequence[str], tokens: Mapping[str, Tokens]
) -> tuple[Tensor, Tensor]:
    """Projected mean token of each of K modalities, and which of them each item has.

    Returns:
        (M, K, D) in fp32, zeros where there is nothing to pool, and (M, K) bool.
    """
    pooled, present = {}, {}
    for name in modalities:
        if name in tokens:
            mask = tokens[name].mask
            pooled[name] = pool(projections[module_name(name)](tokens[name]), mask)
            present[name] = mask.any(1)
    zeros = torch.zeros_like(next(iter(pooled.values())))
    absent = torch.zeros_like(next(iter(present.values())))
    return (
        torch.stack([pooled.get(name, zeros) for name in modalities], dim=1),
        torch.stack([present.get(name, absent) for name in modalities], dim=1),
    )
