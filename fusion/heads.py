"""Heads: what a user would do with an item, from his state and the item's embedding.

    user u (D), item e (D) ─ scorer ─► f(u, e) ─ + what is expected anyway ─► logit or value

Every scorer starts at 0, so that a head begins with what is expected of anybody: the rate of the
events, the mean of the values.

Legend: n pairs of a user's state and an item · D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scorer = Literal["cosine", "bilinear", "mlp"]


class CosineScorer(nn.Module):
    """a <u, e>, of unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(n, D), (n, D) -> (n,)."""
        return self.scale * (users * items).sum(-1)


class BilinearScorer(nn.Module):
    """u M e: each pair of channels has a weight of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(width, width))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(n, D), (n, D) -> (n,)."""
        return ((users @ self.matrix) * items).sum(-1)


class PerceptronScorer(nn.Module):
    """A perceptron over u, e and their product channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * width, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(n, D), (n, D) -> (n,)."""
        both = torch.cat([users, items, users * items], dim=-1)
        found: Tensor = self.out(F.gelu(self.hidden(both * users.shape[-1] ** 0.5)))
        return found.squeeze(-1)


class Head(nn.Module):
    """A score of pairs on the scale of what is asked for.

    Args:
        width: D.
        scorer: how the pair is compared.
        base: logit or value that is expected of anybody.
        spread: unit of the score: 1 for a logit, the standard deviation of values.
    """

    base: Tensor
    spread: Tensor

    def __init__(self, width: int, *, scorer: Scorer, base: float, spread: float) -> None:
        super().__init__()
        self.register_buffer("base", torch.tensor(base))
        self.register_buffer("spread", torch.tensor(spread))
        self.scorer: nn.Module
        if scorer == "cosine":
            self.scorer = CosineScorer()
        elif scorer == "bilinear":
            self.scorer = BilinearScorer(width)
        else:
            self.scorer = PerceptronScorer(width)

    def forward(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Logits or values.

        Args:
            users: (n, D) states.
            items: (n, D) embeddings.
            offsets: (n,) what is known of this user and this item by their means alone.

        Returns:
            (n,) fp32.
        """
        found: Tensor = self.scorer(users, items).float()
        return self.base + offsets + self.spread * found
