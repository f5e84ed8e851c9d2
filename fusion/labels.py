"""Labels of an item from its content: one of several categories, or any of a set of tags.

    content c (D) ─ W c + what is expected anyway ─► logits (K) ─┬─ softmax: a category
                                                                 └─ sigmoid of each: a set

W starts at 0, so that a head begins with how common each label is.

Legend: n items · D width · K labels.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

LabelKind = Literal["category", "set"]


class LabelHead(nn.Module):
    """Tells labels of items nobody has labelled.

    Args:
        width: D.
        kind: `category`, an item has one label; `set`, each label by itself.
        base: (K,) logits that are expected of any item.
    """

    base: Tensor

    def __init__(self, width: int, *, kind: LabelKind, base: Tensor) -> None:
        super().__init__()
        self.kind: LabelKind = kind
        self.register_buffer("base", base)
        self.out = nn.Linear(width, base.shape[0])
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, content: Tensor) -> Tensor:
        """Logits: (n, D) unit vectors -> (n, K) fp32."""
        found: Tensor = self.out(content * content.shape[-1] ** 0.5)
        return self.base + found.float()

    def probabilities(self, content: Tensor) -> Tensor:
        """(n, D) -> (n, K); of a category they sum to 1."""
        logits = self(content)
        return logits.softmax(-1) if self.kind == "category" else logits.sigmoid()

    def surprise(self, content: Tensor, labels: Tensor) -> Tensor:
        """What the labels of each item cost: -log of the probability of all of them together.

        Cross-entropy of a category; of a set the sum of each label's binary cross-entropy.

        Args:
            content: (n, D).
            labels: (n, K), 1 and 0; of a category 1 once.

        Returns:
            (n,) fp32.
        """
        logits = self(content)
        if self.kind == "category":
            return -(labels * logits.log_softmax(-1)).sum(-1)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)
