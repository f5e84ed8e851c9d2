"""Causal convolutions over packed histories: the user model of NextItNet.

Each event is mixed with two earlier ones of its own history, and every further convolution looks
twice as far back: with one block a state knows the last 7 events, with two 31, with three 127.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.blocks import Dropout, Packing

TAPS = 3


class CausalConvolution(nn.Module):
    """Mixes each event with those one and two dilations before it; zeros before the first.

    torch.nn.Conv1d padded at the start would give the same of one history alone. Here the taps are
    laid side by side and go through one linear layer, so that real events only are computed, in
    the few sizes that `Packing` allows.
    """

    def __init__(self, width: int, *, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.mix = nn.Linear(TAPS * width, width)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        taps = [packing.earlier(events, self.dilation * tap) for tap in range(TAPS)]
        return self.mix(torch.cat(taps, dim=-1))

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"dilation={self.dilation}"


class ConvolutionBlock(nn.Module):
    """NextItNet's residual block: two dilated convolutions, the second one twice as far.

    x + relu(norm(convolve(relu(norm(convolve(x)))))).
    Source: Yuan et al., arXiv 1808.05163, figure 3 (b).
    """

    def __init__(self, width: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConvolution(width, dilation=dilation)
        self.first_norm = nn.LayerNorm(width)
        self.second = CausalConvolution(width, dilation=2 * dilation)
        self.second_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        hidden = F.relu(self.first_norm(self.first(events, packing)))
        return events + self.dropout(F.relu(self.second_norm(self.second(hidden, packing))))
