"""Transformer blocks over packed sequences: the pieces that item fusion and user history share.

Legend: B users in a batch · L longest history · P events of all histories · H heads · D width.

Sequences are packed, (P, D) with offsets (B + 1,): linear layers see real events only. Attention
alone needs a rectangle; it pads at the END, where a causal mask keeps every real event from
seeing padding, so that no mask has to be built. Where events see later ones too, one is.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# Kernels for bf16 on a CPU are made and kept for every new shape, a thousand of them: with P as it
# comes a run held 2.5 GB after 240 small steps. Eight sizes an octave come back before their
# kernels are gone: 1.6 GB and steady on MovieLens-1M, where multiples of 256 had 2.2 GB after a
# hundred steps and grew on. At most an eighth of the rows is empty.
LEAST_ROWS = 256
SIZES_AN_OCTAVE = 8
LENGTH_MULTIPLE = 8
# Histories are some hundred events long, not the thousands of tokens that 10,000 is meant for.
ROTATION_BASE = 1000.0


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


def round_rows(number: int) -> int:
    """Rows that hold a number of events: one of few sizes, at most an eighth above it."""
    octave = 1 << (max(number, 1).bit_length() - 1)
    return round_up(max(number, 1), max(LEAST_ROWS, octave // SIZES_AN_OCTAVE))


class Packing:
    """Where each event of packed histories stands in the padded rectangle.

    Args:
        offsets: (B + 1,) int64, start of each history in the packed rows; the last is P.

    Attributes:
        num_rows: P filled up by `round_rows`; the rows after P belong to nobody.
        longest: L, events of the longest history, filled up to a multiple of LENGTH_MULTIPLE.
    """

    def __init__(self, offsets: Tensor) -> None:
        lengths = offsets[1:] - offsets[:-1]
        self.num_histories = lengths.shape[0]
        self.num_events = int(offsets[-1])
        self.num_rows = round_rows(self.num_events)
        self.longest_history = int(lengths.max()) if lengths.numel() else 0
        self.longest = round_up(max(self.longest_history, 1), LENGTH_MULTIPLE)
        self.lengths, self.history = lengths, torch.repeat_interleave(lengths)
        events = torch.arange(self.history.shape[0], device=offsets.device)
        self.position = events - offsets[self.history]
        self.place = self.history * self.longest + self.position

    def fill(self, packed: Tensor) -> Tensor:
        """(P, D) -> (num_rows, D), zeros after the last event."""
        return F.pad(packed, (0, 0, 0, self.num_rows - self.num_events))

    def pad(self, packed: Tensor) -> Tensor:
        """(num_rows, D) -> (B, L, D), zeros after the last event of each history."""
        padded = packed.new_zeros(self.num_histories * self.longest, packed.shape[1])
        padded = padded.index_copy(0, self.place, packed[: self.num_events])
        return padded.view(self.num_histories, self.longest, -1)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, D) -> (num_rows, D)."""
        flat = padded.reshape(self.num_histories * self.longest, -1)
        return self.fill(flat.index_select(0, self.place))

    def earlier(self, packed: Tensor, distance: int) -> Tensor:
        """Each event's row becomes that of the event so many before it; zeros before the first.

        Args:
            packed: (num_rows, D).
            distance: events of the same history to look back, 0 or more.

        Returns:
            (num_rows, D).
        """
        moved = F.pad(packed, (0, 0, min(distance, self.num_rows), 0))[: self.num_rows]
        position = F.pad(self.position, (0, self.num_rows - self.num_events))
        return moved.masked_fill((position < distance)[:, None], 0.0)

    @cached_property
    def is_event(self) -> Tensor:
        """(B, L) bool, False for what fills the rectangle up."""
        place = torch.arange(self.longest, device=self.lengths.device)
        return place < self.lengths[:, None]

    @cached_property
    def by_time(self) -> tuple[Tensor, Tensor]:
        """The order of torch.nn.utils.rnn.PackedSequence: all first events, then all second ones.

        Returns:
            Rows (P,) int64 in that order, of the longest history first within each position, and
            how many there are of each position, (longest_history,) int64 on the CPU, where torch
            wants them.
        """
        rank = self.lengths.argsort(descending=True, stable=True).argsort()  # (B,)
        rows = (self.position * self.num_histories + rank[self.history]).argsort()
        return rows, torch.bincount(self.position.cpu())

    def through_time(self, layer: nn.GRU, packed: Tensor) -> Tensor:
        """A recurrent layer's states of each history, whatever autocast says; zeros after the last.

        Args:
            layer: of one direction; it starts each history at zero.
            packed: (num_rows, D), at least one event, in the dtype of the layer's weights.

        Returns:
            (num_rows, D).
        """
        rows, batch_sizes = self.by_time
        with torch.autocast(packed.device.type, enabled=False):
            states, _ = layer(PackedSequence(packed.index_select(0, rows), batch_sizes))
        return torch.zeros_like(packed).index_copy(0, rows, states.data)


def rotate(vectors: Tensor) -> Tensor:
    """Turns each vector by angles that grow with its position, in planes (i, i + W / 2).

    Products of two turned vectors depend on how far apart they stand, not on where: what a user
    did last says most about what comes next, wherever in a long history a window begins.
    Source: Su et al., RoFormer, arXiv 2104.09864. The slowest plane turns by a third of a radian
    in 200 events.

    Args:
        vectors: (..., L, W) queries or keys of one head; W is even.

    Returns:
        (..., L, W), as long as before.
    """
    L, W = vectors.shape[-2:]
    speed = ROTATION_BASE ** (-torch.arange(0, W, 2, device=vectors.device) / W)
    angle = torch.arange(L, device=vectors.device)[:, None] * speed  # (L, W / 2)
    cos, sin = angle.cos().to(vectors.dtype), angle.sin().to(vectors.dtype)
    left, right = vectors.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Torch's scaled_dot_product_attention; on a CPU in fp32 whatever autocast says.

    There the fused kernel's backward takes 1.6 (200 events) to five times (40) as long in bf16.

    Args:
        query: (B, H, Q, D / H).
        key: (B, H, S, D / H).
        value: as key.
        attn_mask: bool, True = may be attended, of a shape that broadcasts to (B, H, Q, S).
        is_causal: a query sees itself and earlier keys.

    Returns:
        (B, H, Q, D / H) in the dtype of value.
    """
    if value.device.type != "cpu" or value.dtype == torch.float64:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask, is_causal=is_causal
        )
    return mixed.to(value.dtype)


class Dropout(nn.Dropout):
    """torch's Dropout with a mask that costs less on a CPU, where it was a fifth of a step.

    A mask entry takes 16 random bits there and no floating-point number of its own, so the chance
    is p rounded to a multiple of 2^-16. Masks are a function of torch's seed, as torch's are.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Any shape, which is kept."""
        if not self.training or self.p in (0, 1) or values.device.type != "cpu":
            return super().forward(values)
        words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: values.numel()].view(values.shape)
        dropped = round(self.p * 2**16)  # of 2^16 values
        keep = (bits >= dropped - 2**15).to(values.dtype)
        return values * keep.mul_(1 / (1 - self.p))


class HistoryAttention(nn.Module):
    """Multi-head attention in which an event sees itself and earlier events of its history.

    Queries and keys are turned by position (see `rotate`). There is no dropout on attention
    weights: it would cost the fused kernel, and dropout on the branch does the same work.

    Args:
        width: D.
        num_heads: H.
        both_ways: an event sees later ones too.
    """

    def __init__(self, width: int, *, num_heads: int, both_ways: bool = False) -> None:
        super().__init__()
        self.num_heads, self.both_ways = num_heads, both_ways
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        B, L, H = packing.num_histories, packing.longest, self.num_heads
        padded = packing.pad(self.query_key_value(events))  # (B, L, 3 D)
        query, key, value = padded.view(B, L, 3, H, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H)
        query, key = rotate(query), rotate(key)
        if self.both_ways:
            mixed = attend(query, key, value, attn_mask=packing.is_event[:, None, None, :])
        else:
            mixed = attend(query, key, value, is_causal=True)
        return self.out(packing.unpad(mixed.transpose(1, 2).reshape(B, L, -1)))


class GatedBlock(nn.Module):
    """LiGR block: each branch of a pre-norm transformer block is multiplied by a gate of its input.

    x + sigmoid(x W_a) * attention(norm(x)), then x + sigmoid(x W_f) * swiglu(norm(x)).
    Source: Borisyuk et al., LiGR, arXiv 2502.03417, section 3. The gates start half open.
    """

    def __init__(
        self, width: int, *, num_heads: int, dropout: float, both_ways: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = HistoryAttention(width, num_heads=num_heads, both_ways=both_ways)
        self.attention_gate = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, 4 * width)
        self.feed_forward_out = nn.Linear(2 * width, width)
        self.feed_forward_gate = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        branch = self.attention(self.attention_norm(events), packing)
        events = events + self.dropout(torch.sigmoid(self.attention_gate(events)) * branch)
        value, switch = self.feed_forward_in(self.feed_forward_norm(events)).chunk(2, dim=-1)
        branch = self.feed_forward_out(self.dropout(value * F.silu(switch)))
        return events + self.dropout(torch.sigmoid(self.feed_forward_gate(events)) * branch)


class PlainBlock(nn.Module):
    """SASRec's block, pre-norm: attention and a two-layer feed-forward, both residual.

    Source: Kang and McAuley, SASRec, arXiv 1808.09781; GELU in place of ReLU.
    """

    def __init__(
        self, width: int, *, num_heads: int, dropout: float, both_ways: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = HistoryAttention(width, num_heads=num_heads, both_ways=both_ways)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, 4 * width)
        self.feed_forward_out = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        events = events + self.dropout(self.attention(self.attention_norm(events), packing))
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(events)))
        return events + self.dropout(self.feed_forward_out(self.dropout(hidden)))


class PointwiseBlock(nn.Module):
    """HSTU block: each pair of events has a weight of its own, and one gate takes all branches.

    u, v, q, k = silu(norm(x) W);  a = silu(q k + b) / max_length, earlier events only;
    x + (norm(a v) * u) W_o, with b learned by distance and head. A weight does not depend on how
    many other events there are, so that what is met more often counts for more.
    Source: Zhai et al., HSTU, arXiv 2402.17152, section 3.2, without its bias by time. The weights
    of all pairs are laid out: memory grows with the square of the longest history.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float, max_length: int) -> None:
        super().__init__()
        self.num_heads, self.max_length = num_heads, max_length
        self.norm = nn.LayerNorm(width)
        self.gate_query_key_value = nn.Linear(width, 4 * width)
        self.distance_bias = nn.Parameter(0.02 * torch.randn(num_heads, max_length))
        self.mixed_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D)."""
        B, L, H = packing.num_histories, packing.longest, self.num_heads
        projected = F.silu(self.gate_query_key_value(self.norm(events)))
        gate, query_key_value = projected.split([events.shape[1], 3 * events.shape[1]], dim=-1)
        padded = packing.pad(query_key_value)  # (B, L, 3 D)
        query, key, value = padded.view(B, L, 3, H, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H)
        place = torch.arange(L, device=events.device)
        distance = place[:, None] - place  # (L, L)
        bias = self.distance_bias[:, distance.clamp(0, self.max_length - 1)]  # (H, L, L)
        weights = F.silu(query @ key.transpose(-1, -2) + bias) / self.max_length
        mixed = weights.masked_fill(distance < 0, 0.0).to(value.dtype) @ value
        mixed = packing.unpad(mixed.transpose(1, 2).reshape(B, L, -1))
        return events + self.dropout(self.out(self.mixed_norm(mixed) * gate))


class MaskedAttention(nn.Module):
    """Multi-head attention of latents (or any queries) over tokens with a mask."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes tokens into queries.

        Args:
            queries: (M, Q, D).
            tokens: (M, S, D).
            mask: (M, S) bool, True = may be attended; each row needs one True. None: all.

        Returns:
            (M, Q, D).
        """
        M, Q, D = queries.shape
        H = self.num_heads
        query = self.query(queries).view(M, Q, H, D // H).transpose(1, 2)
        key, value = self.key_value(tokens).view(M, -1, 2, H, D // H).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else mask[:, None, None, :]  # (M, 1, 1, S)
        mixed = attend(query, key, value, attn_mask=allowed)
        return self.out(mixed.transpose(1, 2).reshape(M, Q, D))
