"""User history -> user embedding: a causal transformer over item embeddings.

    item embeddings (P, D) packed ─► blocks ─► norm, projection ─► unit user states (P, D)

State p is the user after event p, so one pass serves every position in training and the last
one in use. Order enters by the distance between events alone (`fusion.blocks.rotate`, or a
learned bias).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.blocks import Dropout, GatedBlock, Packing, PlainBlock, PointwiseBlock

BLOCKS = {"gated": GatedBlock, "plain": PlainBlock, "pointwise": PointwiseBlock}


class HistoryEncoder(nn.Module):
    """Causal transformer over the item embeddings of histories.

    Args:
        width: D, of item embeddings, states and blocks.
        max_length: L, most events a history may hold.
        num_blocks: depth.
        num_heads: attention heads; they divide the width.
        dropout: on embeddings and on each branch.
        block: `gated` (LiGR), `plain` (SASRec) or `pointwise` (HSTU).
    """

    def __init__(
        self,
        width: int,
        *,
        max_length: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        block: Literal["gated", "plain", "pointwise"] = "gated",
    ) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(
                f"width {width} and {num_heads} heads: the width must be a multiple of twice the "
                "heads, since positions turn pairs of a head's entries"
            )
        self.width, self.max_length = width, max_length
        # unit-length items enter with entries of about 1, so that branches do not drown them
        self.scale = math.sqrt(width)
        sizes: dict[str, Any] = {"num_heads": num_heads, "dropout": dropout}
        if block == "pointwise":
            sizes["max_length"] = max_length
        self.blocks = nn.ModuleList(BLOCKS[block](width, **sizes) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Encodes packed histories.

        Args:
            items: (P, D) unit item embeddings, histories one after the other, oldest first.
            offsets: (B + 1,) int64, where each history starts; the last is P.

        Returns:
            (P, D) unit states in fp32; row offsets[b + 1] - 1 is user b's query.

        Raises:
            ValueError: a history is longer than max_length.
        """
        packing = Packing(offsets)
        if packing.longest_history > self.max_length:
            raise ValueError(
                f"history of {packing.longest_history} events: at most {self.max_length} "
                "(data.max_history) can be encoded"
            )
        events = packing.fill(self.dropout(items * self.scale))
        for block in self.blocks:
            events = block(events, packing)
        states = self.out(self.norm(events))[: packing.num_events]
        return F.normalize(states.float(), dim=-1)

    def query(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The last state of each history: (P, D), (B + 1,) -> (B, D); no history may be empty."""
        return self(items, offsets).index_select(0, offsets[1:] - 1)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"max_length={self.max_length}"


def truncate(offsets: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Rows of the last max_length events of each packed history, and their offsets.

    Args:
        offsets: (B + 1,) int64.
        max_length: most events to keep of one history.

    Returns:
        rows (P',) int64 into the packed events, and the new offsets (B + 1,).
    """
    lengths = torch.clamp(offsets[1:] - offsets[:-1], max=max_length)
    kept = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    history = torch.repeat_interleave(lengths)
    position = torch.arange(history.shape[0], device=offsets.device) - kept[history]
    return offsets[1:][history] - lengths[history] + position, kept
