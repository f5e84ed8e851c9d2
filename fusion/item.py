"""An item's tokens -> its content embedding.

    text   (M, T, W) ┐ norm, projection to D,
    image  (M, T, W) ├ + modality + position ─► tokens (M, S, D) ─► fusion ─► content (M, D), unit
    audio  (M, T, W) ┘

Legend: M items · T tokens of one modality · S tokens of all · Q latents · D width. What is not
there is masked, never filled with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.blocks import MaskedAttention


class TokenProjection(nn.Module):
    """One modality's tokens in the common width, marked with modality and position."""

    def __init__(self, token_width: int, *, num_tokens: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_width)
        self.projection = nn.Linear(token_width, width)
        self.modality = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(num_tokens, width))
        nn.init.normal_(self.modality, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens (M, T, W) -> (M, T, D)."""
        T = tokens.values.shape[1]
        return self.projection(self.norm(tokens.values)) + self.modality + self.position[:T]


class LatentLayer(nn.Module):
    """Latents attend to the tokens, then to each other, then pass a feed-forward; all pre-norm.

    Source: Jaegle et al., Perceiver IO, arXiv 2107.14795.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.cross = MaskedAttention(width, num_heads=num_heads)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MaskedAttention(width, num_heads=num_heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(M, Q, D), (M, S, D), (M, S) bool -> (M, Q, D)."""
        latents = latents + self.dropout(self.cross(self.cross_norm(latents), tokens, mask))
        queries = self.self_norm(latents)
        latents = latents + self.dropout(self.self_attention(queries, queries))
        return latents + self.dropout(self.feed_forward(latents))


class LatentFusion(nn.Module):
    """Learned latents cross-attend to all tokens present and are pooled to one vector.

    A learned null token can always be attended, so that an item without any medium the model
    knows has a finite content: the average item.

    Args:
        token_widths: width W of each modality's tokens.
        num_tokens: most tokens T of each modality.
        width: D.
        num_latents: Q.
        num_layers: latent layers.
        num_heads: attention heads; they divide the width.
        dropout: on each branch.
    """

    def __init__(
        self,
        token_widths: Mapping[str, int],
        num_tokens: Mapping[str, int],
        *,
        width: int,
        num_latents: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.modalities = tuple(sorted(token_widths))
        self.projections = _projections(token_widths, num_tokens, width)
        self.null_token = nn.Parameter(torch.zeros(width))
        self.latents = nn.Parameter(torch.zeros(num_latents, width))
        self.token_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            LatentLayer(width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(num_latents * width)
        self.out = nn.Linear(num_latents * width, width)
        nn.init.normal_(self.null_token, std=0.02)
        nn.init.normal_(self.latents, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Content of M items.

        Args:
            tokens: a modality's tokens (M, T, W) by its name; a modality may be left out.

        Returns:
            (M, D) unit vectors in fp32.
        """
        parts, masks = [], []
        for modality in self.modalities:
            if modality in tokens:
                parts.append(self.projections[_key(modality)](tokens[modality]))
                masks.append(tokens[modality].mask)
        M = parts[0].shape[0]
        parts.append(self.null_token.to(parts[0].dtype).expand(M, 1, -1))
        masks.append(masks[0].new_ones(M, 1))
        merged = self.token_norm(torch.cat(parts, dim=1))  # (M, S + 1, D)
        mask = torch.cat(masks, dim=1)
        latents = self.latents.expand(M, -1, -1)
        for layer in self.layers:
            latents = layer(latents, merged, mask)
        return _unit(self.out, self.norm(latents.flatten(1)))


class MeanFusion(nn.Module):
    """Mean over modalities of their projected mean tokens: the plainest fusion, for comparison."""

    def __init__(
        self, token_widths: Mapping[str, int], num_tokens: Mapping[str, int], *, width: int
    ) -> None:
        super().__init__()
        self.width = width
        self.modalities = tuple(sorted(token_widths))
        self.projections = _projections(token_widths, num_tokens, width)
        self.null = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.null, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = _pooled(self, tokens)
        total = (pooled * present[..., None]).sum(1)
        count = present.sum(1, keepdim=True)
        mean = total / count.clamp(min=1)
        return _unit(self.out, torch.where(count > 0, mean, self.null))


class ConcatFusion(nn.Module):
    """Two-layer perceptron over the modalities' projected mean tokens, side by side.

    A missing modality enters as a learned vector of its own.
    """

    def __init__(
        self, token_widths: Mapping[str, int], num_tokens: Mapping[str, int], *, width: int
    ) -> None:
        super().__init__()
        self.width = width
        self.modalities = tuple(sorted(token_widths))
        self.projections = _projections(token_widths, num_tokens, width)
        self.missing = nn.Parameter(torch.zeros(len(self.modalities), width))
        self.hidden = nn.Linear(len(self.modalities) * width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        nn.init.normal_(self.missing, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = _pooled(self, tokens)
        pooled = torch.where(present[..., None], pooled, self.missing.to(pooled.dtype))
        return _unit(self.out, F.gelu(self.hidden(pooled.flatten(1))))


def _unit(out: nn.Linear, hidden: Tensor) -> Tensor:
    """The last layer and the norm, in fp32 where the weights are: the bank compares these."""
    return F.normalize(out(hidden).float(), dim=-1)


@torch.no_grad()
def spread(out: nn.Linear, contents: Tensor, *, ridge: float = 0.01) -> None:
    """Changes a fusion's last layer so that given contents are centred and point everywhere.

    A fusion with fresh weights gives every item nearly the same vector: on MovieLens-1M the mean
    cosine of two items was .99, and still .99 after four epochs, since the gradient through the
    norm is as small as the differences are. After this it starts near 0, as random ids do.

    Args:
        out: the last layer, before the norm.
        contents: (n, D) its outputs for items of the catalogue, before the norm.
        ridge: share of the mean variance added to every direction, so that directions which only
            noise tells apart are not blown up.
    """
    contents = contents.double()
    mean = contents.mean(0)
    centred = contents - mean
    covariance = centred.T @ centred / max(contents.shape[0] - 1, 1)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    scale = (values + ridge * values.mean()).clamp(min=1e-12).rsqrt()
    whiten = vectors @ torch.diag(scale) @ vectors.T
    weight = whiten @ out.weight.double()
    bias = whiten @ (out.bias.double() - mean)
    out.weight.copy_(weight)
    out.bias.copy_(bias)


def drop_modalities(tokens: Mapping[str, Tokens], keep: Mapping[str, Tensor]) -> dict[str, Tokens]:
    """Masks whole modalities of items.

    Args:
        tokens: a modality's tokens (M, T, W) by its name.
        keep: (M,) bool by modality; False masks that item's modality.
    """
    return {
        modality: Tokens(values=each.values, mask=each.mask & keep[modality][:, None])
        for modality, each in tokens.items()
    }


def _projections(
    token_widths: Mapping[str, int], num_tokens: Mapping[str, int], width: int
) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            _key(name): TokenProjection(
                token_widths[name], num_tokens=num_tokens[name], width=width
            )
            for name in sorted(token_widths)
        }
    )


def _key(modality: str) -> str:
    """A module's name may hold no dot (`vector.clip`)."""
    return modality.replace(".", "_")


def _pooled(
    fusion: MeanFusion | ConcatFusion, tokens: Mapping[str, Tokens]
) -> tuple[Tensor, Tensor]:
    """Projected mean tokens (M, modalities, D) and their presence (M, modalities) bool."""
    first = next(iter(tokens.values()))
    M, width = first.values.shape[0], fusion.width
    pooled, present = [], []
    for modality in fusion.modalities:
        if modality not in tokens:
            pooled.append(first.values.new_zeros(M, width))
            present.append(first.mask.new_zeros(M))
            continue
        mask = tokens[modality].mask
        projected = fusion.projections[_key(modality)](tokens[modality])
        total = (projected * mask[..., None]).sum(1)
        pooled.append(total / mask.sum(1, keepdim=True).clamp(min=1))
        present.append(mask.any(1))
    return torch.stack([each.float() for each in pooled], dim=1), torch.stack(present, dim=1)
