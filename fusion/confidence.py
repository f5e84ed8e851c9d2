"""How sure a user's score of an item is that nobody has met.

    cosine, the item's modalities ─ slope and intercept of that set ─► probability

Of one who met the item and one who did not, drawn with equal odds: the chance that this user, with
this score, is the one who did. So .5 says nothing, and .9 that such a score is nine times as
frequent among those who met. What an item has decides how far its score is to be trusted: a cosine
of .4 by text and picture says more than one by its sound alone, so each set of modalities has a
scaling of its own, fitted on new items of validation with those modalities alone.

Legend: b users · n items · M modalities · S = 2^M sets of them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from fusion.completion import MOST_MODALITIES


class Confidence(nn.Module):
    """A sigmoid of the score for each set of modalities that an item may have.

    Args:
        modalities: M names, in the order of the bits.
    """

    scaling: Tensor

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        sets = 2 ** len(self.modalities) if len(self.modalities) <= MOST_MODALITIES else 1
        # (S, 2) slope and intercept; zeros where nothing is known
        self.register_buffer("scaling", torch.zeros(sets, 2))

    def forward(self, score: Tensor, has: Tensor) -> Tensor:
        """Confidence in scores.

        Args:
            score: (b, n) cosines.
            has: (n, M) bool, what the items have.

        Returns:
            (b, n) in 0 to 1, NaN where none was fitted for what an item has.
        """
        known = self.scaling.new_zeros(len(has), 2)
        if len(self.scaling) == 2 ** len(self.modalities):
            bits = 2 ** torch.arange(len(self.modalities), device=has.device)
            known = self.scaling[(has * bits).sum(1)]
        told = torch.sigmoid(score * known[:, 0] + known[:, 1])
        return torch.where(known[:, 0] > 0, told, torch.nan)

    @torch.no_grad()
    def set_scaling(self, present: Set[str], slope: float, intercept: float) -> None:
        """Keeps what was fitted for one set of modalities; a slope of 0 or less says nothing."""
        row = sum(2**bit for bit, name in enumerate(self.modalities) if name in present)
        self.scaling[row] = torch.tensor([slope, intercept] if slope > 0 else [0.0, 0.0])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Models from before there was a confidence tell none."""
        state_dict.setdefault(f"{prefix}scaling", torch.zeros_like(self.scaling))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
