"""The second stage: candidates that retrieval found attend to the history of the user.

    user, events of the history ─► keys and values (B, 1 + L, D)
    candidate's tokens (B, C, T, D) ─► blocks: attend to the history, to each other ─► mean ─┐
    score of retrieval, popularity, nearness to the history ─────────────────────────────────┴►
                                     correction of the logit (B, C), one more number for each head

The last layer starts at 0: an untrained ranker leaves retrieval's order as it is.

Legend: B users · C candidates · T tokens of a candidate · L history length · F features · D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.blocks import Dropout, MaskedAttention

NEARNESS = 2
"""Features the ranker makes itself: nearness to the nearest event and to the newest."""


@dataclass(frozen=True)
class Candidates:
    """What is known of the candidates of B users.

    Attributes:
        tokens: (B, C, T, D); the first of each is its embedding, unit.
        mask: (B, C, T) bool, True = real; the first token of a real candidate is.
        features: (B, C, F) numbers of about unit size.
    """

    tokens: Tensor
    mask: Tensor
    features: Tensor


@dataclass(frozen=True)
class Past:
    """What is known of B users.

    Attributes:
        user: (B, D) unit states that retrieval asks with; zeros where nothing is known.
        states: (B, L, D) unit states of the events, oldest first, padding at the end.
        items: (B, L, D) unit embeddings of their items.
        mask: (B, L) bool, True = real.
    """

    user: Tensor
    states: Tensor
    items: Tensor
    mask: Tensor


class RankerBlock(nn.Module):
    """A candidate's tokens attend to the history, then to each other, then pass a feed-forward.

    All pre-norm and residual; where a candidate is one token, it has nothing else to attend to.
    """

    def __init__(self, width: int, *, num_heads: int, num_tokens: int, dropout: float) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.cross = MaskedAttention(width, num_heads=num_heads)
        self.own: nn.ModuleList | None = None
        if num_tokens > 1:
            self.own = nn.ModuleList(
                [nn.LayerNorm(width), MaskedAttention(width, num_heads=num_heads)]
            )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor, past: Tensor, past_mask: Tensor) -> Tensor:
        """(B, C, T, D), (B, C, T) bool, (B, S, D), (B, S) bool -> (B, C, T, D)."""
        B, C, T, D = tokens.shape
        queries = self.cross_norm(tokens).reshape(B, C * T, D)  # a user's keys are made once
        mixed = self.cross(queries, past, past_mask)
        tokens = tokens + self.dropout(mixed.view(B, C, T, D))
        if self.own is not None:
            norm, attention = self.own
            inner = norm(tokens).view(B * C, T, D)
            mixed = attention(inner, inner, mask.reshape(B * C, T))
            tokens = tokens + self.dropout(mixed.view(B, C, T, D))
        return tokens + self.dropout(self.feed_forward(tokens))


class Ranker(nn.Module):
    """What a candidate's place should be beside where retrieval puts it.

    A candidate's number depends on the user and on itself alone, never on the other candidates.

    Args:
        width: D, a multiple of num_heads.
        num_tokens: T.
        num_features: F.
        max_history: most events L that a history may hold.
        num_blocks: depth.
        num_heads: of attention.
        dropout: on each branch.
        heads: names of what is told beside the order.
    """

    def __init__(
        self,
        width: int,
        *,
        num_tokens: int,
        num_features: int,
        max_history: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        heads: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.heads = tuple(heads)
        # unit vectors enter with entries of about 1
        self.scale = math.sqrt(width)
        self.token = nn.Linear(width, width)
        self.kind = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        self.features = nn.Linear(num_features + NEARNESS, width)
        self.user, self.state, self.item = (nn.Linear(width, width) for _ in range(3))
        self.recency = nn.Embedding(max_history, width)
        nn.init.normal_(self.recency.weight, std=0.02)
        self.past_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            RankerBlock(width, num_heads=num_heads, num_tokens=num_tokens, dropout=dropout)
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1 + len(self.heads))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, candidates: Candidates, past: Past) -> Tensor:
        """Corrections and what the heads add to what is expected anyway.

        Returns:
            (B, C, 1 + heads) fp32: first the correction of retrieval's logit, then the heads in
            their order. Of candidates that are not real it means nothing.
        """
        keys, keys_mask = self._keys(past)
        features = torch.cat([candidates.features, nearness(candidates.tokens, past)], dim=-1)
        tokens = self.token(F.layer_norm(candidates.tokens, candidates.tokens.shape[-1:]))
        tokens = tokens + self.kind + self.features(features)[:, :, None]
        mask = candidates.mask.clone()
        mask[..., 0] = True  # attention needs one, of padding too
        for block in self.blocks:
            tokens = block(tokens, mask, keys, keys_mask)
        pooled = (tokens * mask[..., None]).sum(2) / mask.sum(2)[..., None]  # (B, C, D)
        told: Tensor = self.out(F.gelu(self.hidden(self.norm(pooled))))
        return told.float()

    def _keys(self, past: Past) -> tuple[Tensor, Tensor]:
        """The user himself, who is always there, and his events: (B, 1 + L, D), (B, 1 + L) bool."""
        L = past.mask.shape[1]
        age = past.mask.sum(1, keepdim=True) - 1 - torch.arange(L, device=past.mask.device)
        age = age.clamp(0, self.recency.num_embeddings - 1)  # (B, L), 0 for the newest event
        events = self.state(past.states * self.scale) + self.item(past.items * self.scale)
        events = events + self.recency(age)
        user = self.user(past.user * self.scale)[:, None]
        mask = torch.cat([past.mask.new_ones(past.mask.shape[0], 1), past.mask], dim=1)
        return self.past_norm(torch.cat([user, events], dim=1)), mask


def nearness(tokens: Tensor, past: Past) -> Tensor:
    """(B, C, 2) cosine of each candidate with the nearest event's item and with the newest's.

    Both are 0 for a user without events. Attention would find them too, after longer training.
    """
    if not past.mask.shape[1]:
        return tokens.new_zeros(*tokens.shape[:2], NEARNESS)
    near = tokens[:, :, 0] @ past.items.transpose(1, 2)  # (B, C, L)
    near = near.masked_fill(~past.mask[:, None], -1.0)
    newest = (past.mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, near.shape[1], 1)
    found = torch.cat([near.amax(2, keepdim=True), near.gather(2, newest)], dim=-1)
    return found * past.mask.any(1)[:, None, None]
