"""An item's tokens -> its content embedding.

    text   (M, T, W) ┐ norm, projection to D,
    image  (M, T, W) ├ + modality + position ─► tokens (M, S, D) ─► fusion ─► content (M, D), unit
    audio  (M, T, W) ┘

Legend: M items · T tokens of one modality · S tokens of all · Q latents · D width. What is not
there is masked, never filled with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.blocks import Dropout, MaskedAttention

# Weight of the latents' norm at the start: a tenth of the usual, beside a mean of about unit size.
FAINT = 0.1


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
        return _pool(self.norm(tokens.values[present].float()), tokens.mask[present])

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
        self.projections = _projections(modalities, width, feature_dropout)
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
        parts = [self.projections[_key(modality)](tokens[modality]) for modality in given]
        masks = [tokens[modality].mask for modality in given]
        M = masks[0].shape[0]
        plain = _mean_of_present(parts, masks, self.null_token)
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
        self.projections = _projections(modalities, width, feature_dropout)
        self.null = nn.Parameter(torch.zeros(width))
        self.out = Output(width, width)
        nn.init.normal_(self.null, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        given = [modality for modality in self.modalities if modality in tokens]
        parts = [self.projections[_key(modality)](tokens[modality]) for modality in given]
        masks = [tokens[modality].mask for modality in given]
        content: Tensor = self.out(_mean_of_present(parts, masks, self.null))
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
        self.projections = _projections(modalities, width, feature_dropout)
        self.missing = nn.Parameter(torch.zeros(len(self.modalities), width))
        self.hidden = nn.Linear(len(self.modalities) * width, 2 * width)
        self.out = Output(2 * width, width)
        nn.init.normal_(self.missing, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = _pool_each(self.projections, self.modalities, tokens)
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
        self.projections = _projections(modalities, width, feature_dropout)
        self.gate = nn.Parameter(torch.zeros(len(self.modalities), width))
        self.gate_bias = nn.Parameter(torch.zeros(len(self.modalities)))
        self.null = nn.Parameter(torch.zeros(width))
        self.out = Output(width, width)
        nn.init.normal_(self.null, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        pooled, present = _pool_each(self.projections, self.modalities, tokens)
        # a product and a sum: under autocast a matrix product would give the softmax bf16
        gates = _softmax_of_present((pooled * self.gate).sum(-1) + self.gate_bias, present)
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
        self.projections = _projections(modalities, width, feature_dropout)
        self.out = LateOutput(len(self.modalities), width)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """As LatentFusion.forward."""
        content: Tensor = self.out(*_pool_each(self.projections, self.modalities, tokens))
        return content


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
        weights = _softmax_of_present(self.weight.expand(present.shape), present)
        mixed = (weights[..., None] * torch.stack(units, dim=1)).sum(1)
        return F.normalize(torch.where(present.any(1, keepdim=True), mixed, self.null), dim=-1)

    @torch.no_grad()
    def spread(self, pooled: Tensor, present: Tensor) -> None:
        """`Output.spread` of each modality, over the items that have it."""
        for k, out in enumerate(self.outputs):
            assert isinstance(out, Output)
            if present[:, k].any():
                out.spread(pooled[present[:, k], k])


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
    modalities: Mapping[str, Modality], width: int, feature_dropout: float
) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            _key(name): TokenProjection(
                modalities[name], width=width, feature_dropout=feature_dropout
            )
            for name in sorted(modalities)
        }
    )


def _signed(directions: Tensor) -> Tensor:
    """Columns with their largest entry positive: an eigenvector's sign is the library's whim."""
    largest = directions.abs().argmax(0, keepdim=True)
    return directions * directions.gather(0, largest).sign()


def _key(modality: str) -> str:
    """A module's name may hold no dot (`vector.clip`)."""
    return modality.replace(".", "_")


def _pool(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens in fp32: (M, T, D), (M, T) bool -> (M, D); zeros where none is."""
    total = (tokens.float() * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def _pool_each(
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
            pooled[name] = _pool(projections[_key(name)](tokens[name]), mask)
            present[name] = mask.any(1)
    zeros = torch.zeros_like(next(iter(pooled.values())))
    absent = torch.zeros_like(next(iter(present.values())))
    return (
        torch.stack([pooled.get(name, zeros) for name in modalities], dim=1),
        torch.stack([present.get(name, absent) for name in modalities], dim=1),
    )


def _softmax_of_present(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over what is there: (M, K), (M, K) bool -> (M, K); zeros where nothing is."""
    least = torch.finfo(logits.dtype).min  # not -inf, whose softmax has no value where all are so
    return logits.masked_fill(~present, least).softmax(1) * present


def _mean_of_present(parts: Sequence[Tensor], masks: Sequence[Tensor], null: Tensor) -> Tensor:
    """Mean over an item's modalities of the means of their tokens.

    Args:
        parts: (M, T, D) of each modality.
        masks: (M, T) bool, True = real.
        null: (D,) for an item without any.

    Returns:
        (M, D) in fp32.
    """
    present = torch.stack([mask.any(1) for mask in masks], dim=1)  # (M, modalities)
    pooled = torch.stack([_pool(part, mask) for part, mask in zip(parts, masks, strict=True)], 1)
    count = present.sum(1, keepdim=True)
    return torch.where(count > 0, pooled.sum(1) / count.clamp(min=1), null.float())
