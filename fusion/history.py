"""User history -> user embedding: blocks over item embeddings.

    item embeddings (P, D) packed ─► blocks ─► norm, projection ─► unit user states (P, D)

State p is the user after event p, so one pass serves every position in training and the last one
in use. Read both ways (BERT4Rec), state p is instead what the user met at a hidden event p, and use
hides one more event behind the last. Order enters by the distance between events alone
(`fusion.blocks.rotate`, a learned bias, the taps of a convolution), or by reading one event after
the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.blocks import (
    Dropout,
    GatedBlock,
    Packing,
    PlainBlock,
    PointwiseBlock,
    round_rows,
)
from fusion.convolution import ConvolutionBlock
from fusion.recurrent import RecurrentBlock

Block = Literal["gated", "plain", "pointwise", "gru", "cnn"]
BOTH_WAYS = ("gated", "plain")
"""Blocks in which an event may see later ones."""
Ask = Callable[[Tensor], Tensor]
"""Normed states (n, D) and what is known of n requests -> (n, D)."""


class HistoryEncoder(nn.Module):
    """Blocks over the item embeddings of histories, in which no event sees a later one, or all do.

    Args:
        width: D, of item embeddings, states and blocks.
        max_length: L, most events a history may hold.
        num_blocks: depth; of `gru` its layers, of `cnn` pairs of convolutions.
        num_heads: attention heads, twice of which divide the width; `gru` and `cnn` have none and
            ignore them.
        dropout: on embeddings and on each branch, of `gru` on each layer.
        block: a transformer's, `gated` (LiGR), `plain` (SASRec) or `pointwise` (HSTU); or `gru`
            (GRU4Rec) or `cnn` (NextItNet).
        num_head_tokens: H, tokens in front of every history; see `forward`.
        both_ways: events see later ones too, and hidden ones can be told; of `gated` and `plain`.
        start: `start` (D,), a learned event, may stand before a user's first, beside max_length.

    Raises:
        ValueError: the heads do not fit the width, or the block cannot read both ways.
    """

    def __init__(
        self,
        width: int,
        *,
        max_length: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        block: Block = "gated",
        num_head_tokens: int = 0,
        both_ways: bool = False,
        start: bool = False,
    ) -> None:
        super().__init__()
        if both_ways and block not in BOTH_WAYS:
            raise ValueError(
                f"block '{block}' reads forwards only: both ways do {' and '.join(BOTH_WAYS)}"
            )
        self.width, self.max_length, self.both_ways = width, max_length, both_ways
        self.num_head_tokens = num_head_tokens
        # unit-length items enter with entries of about 1, so that branches do not drown them
        self.scale = math.sqrt(width)
        self.blocks = nn.ModuleList(
            _make_block(
                block,
                depth,
                width=width,
                max_length=max_length + num_head_tokens + start,
                num_heads=num_heads,
                dropout=dropout,
                both_ways=both_ways,
            )
            for depth in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.mask: nn.Parameter | None = None
        if both_ways:  # about as long as an item
            self.mask = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.start: nn.Parameter | None = None
        if start:
            self.start = nn.Parameter(torch.randn(width) / math.sqrt(width))

    def forward(
        self,
        items: Tensor,
        offsets: Tensor,
        head: Tensor | None = None,
        hidden: Tensor | None = None,
        ask: Ask | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Encodes packed histories.

        Args:
            items: (P, D) unit item embeddings, histories one after the other, oldest first.
            offsets: (B + 1,) int64, where each history starts; the last is P.
            head: (H, D) tokens of about unit length that stand in front of every history, as if
                they were its first events, and have no state of their own, or (B, H, D), those of
                each; None for none.
            hidden: (P,) bool, events whose item is not shown; None for none. Of a model that reads
                both ways, which takes one of them beside max_length others.
            ask: turns normed states (n, D) into what is asked for then; None: as they are.
            wanted: (n,) int64 rows of the events whose states are wanted; None: all P.

        Returns:
            (n, D) unit states in fp32; read forwards, row offsets[b + 1] - 1 is user b's query.

        Raises:
            ValueError: a history is longer than max_length.
        """
        events, rows, num_events = self._read(items, offsets, head, hidden)
        if ask is None:  # linear layers run on the blocks' rows, which come in few sizes
            states = _take(self.out(self.norm(events)), rows, num_events)
            return F.normalize((states if wanted is None else states[wanted]).float(), dim=-1)
        states = _take(self.norm(events), rows, num_events)
        asked = ask(states if wanted is None else states[wanted])
        filled = F.pad(asked, (0, 0, 0, round_rows(asked.shape[0]) - asked.shape[0]))
        return F.normalize(self.out(filled)[: asked.shape[0]].float(), dim=-1)

    def query(
        self,
        items: Tensor,
        offsets: Tensor,
        head: Tensor | None = None,
        ask: Ask | None = None,
    ) -> Tensor:
        """What each user meets next: (P, D), (B + 1,) -> (B, D); no history may be empty.

        `ask` takes the normed states (B, D) of the last events alone.
        """
        hidden = None
        if self.both_ways:
            items, offsets, hidden = _with_one_more(items, offsets)
        return self(items, offsets, head, hidden, ask, offsets[1:] - 1)

    def _read(
        self, items: Tensor, offsets: Tensor, head: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """What the blocks make of packed histories.

        Returns:
            Their rows, (R, D), heads and filling included; (P,) which of them the events are, None
            for the first ones; and how many rows belong to somebody.
        """
        rows = None
        if hidden is not None:
            assert self.mask is not None
            items = torch.where(hidden[:, None], self.mask.to(items.dtype), items)
        if head is not None:
            rows, offsets = rows_behind_heads(offsets, head.shape[-2])
            items = _with_heads(items, head, rows, num_rows=int(offsets[-1]))
        packing = Packing(offsets)
        longest = packing.longest_history - (0 if head is None else head.shape[-2])
        if longest > self.max_length + (self.both_ways or self.start is not None):
            raise ValueError(
                f"history of {longest} events: at most {self.max_length} "
                "(data.max_history) can be encoded"
            )
        events = packing.fill(self.dropout(items * self.scale))
        for block in self.blocks:
            events = block(events, packing)
        return events, rows, packing.num_events

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"max_length={self.max_length}"


def _make_block(
    block: Block,
    depth: int,
    *,
    width: int,
    max_length: int,
    num_heads: int,
    dropout: float,
    both_ways: bool,
) -> nn.Module:
    """The block of a depth, counted from 0 below; see `HistoryEncoder`."""
    if block == "gru":
        return RecurrentBlock(width, dropout=dropout)
    if block == "cnn":
        # two convolutions each, so that dilations go on doubling from block to block
        return ConvolutionBlock(width, dilation=4**depth, dropout=dropout)
    if width % (2 * num_heads):
        raise ValueError(
            f"width {width} and {num_heads} heads: the width must be a multiple of twice the "
            "heads, since positions turn pairs of a head's entries"
        )
    if block == "pointwise":
        return PointwiseBlock(width, num_heads=num_heads, dropout=dropout, max_length=max_length)
    kind = GatedBlock if block == "gated" else PlainBlock
    return kind(width, num_heads=num_heads, dropout=dropout, both_ways=both_ways)


def rows_behind_heads(offsets: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Where events go when H tokens are put in front of each history.

    Args:
        offsets: (B + 1,) int64.
        num_tokens: H.

    Returns:
        (P,) int64, the new row of each event, and the new offsets (B + 1,).
    """
    number = torch.arange(offsets.shape[0], device=offsets.device)
    history = torch.repeat_interleave(offsets[1:] - offsets[:-1])
    event = torch.arange(history.shape[0], device=offsets.device)
    return event + num_tokens * (history + 1), offsets + num_tokens * number


def _with_heads(items: Tensor, head: Tensor, rows: Tensor, *, num_rows: int) -> Tensor:
    """(P, D) events at their rows, (H, D) or (B, H, D) tokens in the others: (num_rows, D)."""
    is_head = torch.ones(num_rows, dtype=torch.bool, device=rows.device)
    is_head[rows] = False
    (places,) = is_head.nonzero(as_tuple=True)
    tokens = head.to(items.dtype).reshape(-1, head.shape[-1])
    tokens = tokens.repeat(places.shape[0] // tokens.shape[0], 1)
    whole = items.new_zeros(num_rows, items.shape[1])
    return whole.index_copy(0, rows, items).index_copy(0, places, tokens)


def _take(states: Tensor, rows: Tensor | None, num_events: int) -> Tensor:
    """The rows of events among those of the blocks."""
    states = states[:num_events]
    return states if rows is None else states.index_select(0, rows)


def _with_one_more(items: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Histories with one hidden event behind the last: (P + B, D), (B + 1,), (P + B,) bool."""
    longer = offsets + torch.arange(offsets.shape[0], device=offsets.device)
    history = torch.repeat_interleave(offsets[1:] - offsets[:-1])
    shown = torch.arange(items.shape[0], device=offsets.device) + history
    whole = items.new_zeros(int(longer[-1]), items.shape[1]).index_copy(0, shown, items)
    hidden = torch.ones(whole.shape[0], dtype=torch.bool, device=offsets.device)
    hidden[shown] = False
    return whole, longer, hidden


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
