"""Histories as a rectangle of rows: what the blocks ask of `Packing`, for a graph of any size.

A packing counts events and makes tensors of that many rows, which a graph that is traced once and
run for any batch cannot. Here every history has L rows, and what stands behind its last event is
computed and read by nobody.

Legend: B users · L rows of a history · D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rectangle:
    """Stands in for `fusion.blocks.Packing` where a user model is exported.

    Args:
        lengths: (B,) int64, events of each history, which stand in its first rows.
        longest: L.

    Attributes:
        num_rows: B L.
        is_event: (B, L) bool.
    """

    def __init__(self, lengths: Tensor, longest: int) -> None:
        self.num_histories, self.longest = lengths.shape[0], longest
        self.num_rows = self.num_events = self.num_histories * longest
        self.is_event = torch.arange(longest, device=lengths.device) < lengths[:, None]

    def pad(self, packed: Tensor) -> Tensor:
        """(B L, D) -> (B, L, D)."""
        return packed.view(self.num_histories, self.longest, -1)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, D) -> (B L, D)."""
        return padded.reshape(self.num_rows, -1)

    def earlier(self, packed: Tensor, distance: int) -> Tensor:
        """Each event's row becomes that of the event so many before it; zeros before the first."""
        moved = F.pad(self.pad(packed), (0, 0, distance, 0))
        return self.unpad(moved[:, : self.longest])

    def through_time(self, layer: nn.GRU, packed: Tensor) -> Tensor:
        """A recurrent layer's states: (B L, D) -> (B L, D).

        Step by step: torch's own layer is traced as a copy of its body for every step.
        """
        # takes half a second to import, and only an export needs it
        from torch._higher_order_ops.scan import scan

        of = layer.get_parameter

        def step(state: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            kept = F.linear(state, of("weight_hh_l0"), of("bias_hh_l0"))
            reset, update, new = given.chunk(3, dim=-1)
            kept_reset, kept_update, kept_new = kept.chunk(3, dim=-1)
            update = torch.sigmoid(update + kept_update)
            new = torch.tanh(new + torch.sigmoid(reset + kept_reset) * kept_new)
            state = new + update * (state - new)
            return state, state.clone()  # scan refuses the same tensor twice

        given = self.pad(F.linear(packed, of("weight_ih_l0"), of("bias_ih_l0"))).transpose(0, 1)
        first = packed.new_zeros(self.num_histories, layer.hidden_size)
        _, states = scan(step, first, given)
        return self.unpad(states.transpose(0, 1))
