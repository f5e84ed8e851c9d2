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
from fusion.blocks import Dropout, MaskedAttention
from fusion.output import LateOutput, Output
from fusion.pooling import mean_of_present, softmax_of_present
from fusion.projection import Modality, TokenProjection, make_projections, module_name, pool_each

__all__ = [
    "ConcatFusion",
    "FAINT",
    "GatedFusion",
    "LateFusion",
    "LateOutput",
    "LatentFusion",
    "LatentLayer",
    "MeanFusion",
    "Modality",
    "Output",
    "TokenProjection",
    "drop_modalities",
]

# Weight of the latents' norm at the start: a tenth of the usual, beside a mean of about unit size.
FAINT = 0.1


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
        self.dropout = Dropout(dropout)

    def forward(self, latents: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(M, Q, D), (M, S, D), (M, S) bool -> (M, Q, D)."""
        latents = latents + self.dropout(self.cross(self.cross_norm(latents), tokens, mask))
        queries = self.self_norm(latents)
        latents = latents + self.dropout(self.self_attention(queries, queries))
        return latents + self.dropout(self.feed_forward(latents))


class LatentFusion(nn.Module):
    """Learned latents cross-attend to all tokens present; what they find is added to a plain mean.

        x = mean over modalities of mean over tokens + mean over latents of norm(latent)

    The mean is what a few thousand items can teach without being learnt by heart, the latents say
    what it cannot: which token beside which, and one medium in the light of another. They start
    faint. On MovieLens-1M latents alone were the worse on new items the longer they trained (see
    docs/log.md).

    A learned null token can always be attended, so that an item without any medium the model
    knows has a finite content: the average item.

    Args:
        modalities: what comes in, by name.
        width: D.
        num_latents: Q.
        num_layers: latent layers.
        num_heads: attention heads; they divide the width.
        dropout: on each branch of a latent layer.
        feature_dropout: of token channels.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        width: int,
        num_latents: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(sorted(modalities))
        self.projections = make_projections(modalities, width, feature_dropout)
        self.null_token = nn.Parameter(torch.zeros(width))
        self.latents = nn.Parameter(torch.zeros(num_latents, width))
        self.token_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            LatentLayer(width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = Output(width, width)
        nn.init.constant_(self.norm.weight, FAINT)
        nn.init.normal_(self.null_token, std=0.02)
        nn.init.normal_(self.latents, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Content of M items.

        Args:
            tokens: a modality's tokens (M, T, W) by its name; a modality may be left out.

        Returns:
            (M, D) unit vectors in fp32.
        """
        plain, latents = self.read(tokens)
        content: Tensor = self.out(plain + latents.mean(1))
        return content

    def read(self, tokens: Mapping[str, Tokens]) -> tuple[Tensor, Tensor]:
        """Plain mean (M, D) and normed latents (M, Q, D), which content is made of."""
        given = [modality for modality in self.modalities if modality in tokens]
        parts = [self.projections[module_name(modality)](tokens[modality]) for modality in given]
        masks = [tokens[modality].mask for modality in given]
        M = masks[0].shape[0]
        plain = mean_of_present(parts, masks, self.null_token)
        parts.append(self.null_token.to(parts[0].dtype).expand(M, 1, -1))
        masks.append(masks[0].new_ones(M, 1))
        merged = self.token_norm(torch.cat(parts, dim=1))  # (M, S + 1, D)
        mask = torch.cat(masks, dim=1)
        latents = self.latents.expand(M, -1, -1)
        for layer in self.layers:
            latents = layer(latents, merged, mask)
        return plain, self.norm(latents)


class MeanFusion(nn.Module):
    """Mean over modalities of their projected mean tokens: the plainest fusion, for comparison."""

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        width: int,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.modalities = tuple(sorted(modalities))
        self.projections = make_projections(modalities, width, feature_dropout)
        self.null = nn.Parameter(torch.zeros(width))
        self.out = Output(width, width)
        nn.init.normal_(self.null, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        given = [modality for modality in self.modalities if modality in tokens]
        parts = [self.projections[module_name(modality)](tokens[modality]) for modality in given]
        masks = [tokens[modality].mask for modality in given]
        content: Tensor = self.out(mean_of_present(parts, masks, self.null))
        return content


class ConcatFusion(nn.Module):
    """Two-layer perceptron over the modalities' projected mean tokens, side by side.

    A missing modality enters as a learned vector of its own.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        width: int,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(sorted(modalities))
        self.projections = make_projections(modalities, width, feature_dropout)
        self.missing = nn.Parameter(torch.zeros(len(self.modalities), width))
        self.hidden = nn.Linear(len(self.modalities) * width, 2 * width)
        self.out = Output(2 * width, width)
        nn.init.normal_(self.missing, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = pool_each(self.projections, self.modalities, tokens)
        pooled = torch.where(present[..., None], pooled, self.missing.to(pooled.dtype))
        content: Tensor = self.out(F.gelu(self.hidden(pooled.flatten(1))))
        return content


class GatedFusion(nn.Module):
    """Weighted mean over modalities, in which the item itself says what each counts.

        x = sum_k g_k h_k,   g = softmax over the modalities present of (a_k h_k + b_k),

    with h_k the projected mean token of modality k. Gates start equal, where this is MeanFusion.
    What a mean cannot do is leave out what says nothing of this item: a grey picture, a text of
    two words.

    After the gated multimodal unit, Arevalo et al., arXiv 1702.01992. Here a modality has one gate,
    not one a channel, and reads it from itself alone; a softmax stands in place of sigmoids, so
    that the gates of what is there sum to one and what is missing takes no part.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        width: int,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(sorted(modalities))
        self.projections = make_projections(modalities, width, feature_dropout)
        self.gate = nn.Parameter(torch.zeros(len(self.modalities), width))
        self.gate_bias = nn.Parameter(torch.zeros(len(self.modalities)))
        self.null = nn.Parameter(torch.zeros(width))
        self.out = Output(width, width)
        nn.init.normal_(self.null, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = pool_each(self.projections, self.modalities, tokens)
        # a product and a sum: under autocast a matrix product would give the softmax bf16
        gates = softmax_of_present((pooled * self.gate).sum(-1) + self.gate_bias, present)
        mixed = (gates[..., None] * pooled).sum(1)
        content: Tensor = self.out(torch.where(present.any(1, keepdim=True), mixed, self.null))
        return content


class LateFusion(nn.Module):
    """Late fusion: each modality scores by itself, and the scores are added with learned weights.

        c = normalise(sum_k w_k e_k),   w = softmax over the modalities present of learned numbers,

    with e_k the unit vector that modality k alone would be, from a projection and an `Output` of
    its own. For a user u of any kind

        <u, c> = sum_k w_k <u, e_k> / s,   s = |sum_k w_k e_k|,

    the convex combination of the scores of the modalities present, up to one scale s for all of
    them and all users: nothing of one modality is ever seen in the light of another. s is at most
    1, and is 1 where the modalities agree on an item; it keeps contents unit vectors, as the id
    part, the index and the second loss want them.

    An item without any modality has a learned vector for its content.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        width: int,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(sorted(modalities))
        self.projections = make_projections(modalities, width, feature_dropout)
        self.out = LateOutput(len(self.modalities), width)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        content: Tensor = self.out(*pool_each(self.projections, self.modalities, tokens))
        return content


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
