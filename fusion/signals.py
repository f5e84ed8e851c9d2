"""What is known beside the items: of an event, of a request, of a user.

    event      item (D)     * (1 + scale) + shift ─► the blocks of the user model
    request    state (D)    * (1 + scale) + shift ─► what the user is asked for
    user       attributes ─► tokens in front of the history, one a field

Scale and shift are sums of learned rows, one for each thing that is known; they start at 0, so that
a model that learnt nothing of signals is the model without them. A scale lets a dislike turn an
item around, or a request in the evening read the part of a state that evenings have filled.

Legend: n events, requests or users · S things known of each · C columns · F fields · D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Facts:
    """Rows of a sparse matrix, at most S entries each.

    Attributes:
        columns: (n, S) int64; those of weight 0 say nothing.
        weights: (n, S) fp32.
    """

    columns: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.columns.shape != self.weights.shape or self.columns.ndim != 2:
            raise ValueError(
                f"columns {tuple(self.columns.shape)} and weights {tuple(self.weights.shape)} "
                "must both be (n, S)"
            )

    def __len__(self) -> int:
        return int(self.columns.shape[0])

    def __bool__(self) -> bool:
        return True  # also of no rows, where `None` stands for facts that are not read

    def __getitem__(self, rows: slice | Tensor) -> Facts:
        """Some rows."""
        return Facts(self.columns[rows], self.weights[rows])

    def to(self, device: torch.device) -> Facts:
        """The same on a device."""
        return Facts(self.columns.to(device), self.weights.to(device))

    def times(self, table: Tensor) -> Tensor:
        """Product with a table: (n, C) x (C, W) -> (n, W)."""
        return F.embedding_bag(
            self.columns, table, per_sample_weights=self.weights.to(table.dtype), mode="sum"
        )


class Modulation(nn.Module):
    """Multiplies each vector by what is known of it, and adds to it.

        x * (1 + facts A) + facts B,   A and B start at 0

    Source: Perez et al., FiLM, arXiv 1709.07871.

    Args:
        num_columns: C.
        width: D.
    """

    def __init__(self, num_columns: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_columns, 2 * width)
        nn.init.zeros_(self.table.weight)

    def forward(self, vectors: Tensor, facts: Facts) -> Tensor:
        """(n, D) and facts of n -> (n, D)."""
        scale, shift = facts.times(self.table.weight).chunk(2, dim=-1)
        return vectors * (1 + scale) + shift


class UserTokens(nn.Module):
    """Tokens of about unit length that say what is known of a user, one for each field.

    Args:
        num_columns: C, of all fields.
        num_fields: F.
        width: D.
    """

    def __init__(self, num_columns: int, num_fields: int, width: int) -> None:
        super().__init__()
        self.num_fields = num_fields
        self.table = nn.Embedding(num_columns, width)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(width))

    def forward(self, facts: Facts) -> Tensor:
        """Facts of U users and F fields, a row each, a user's fields together -> (U, F, D)."""
        tokens = facts.times(self.table.weight)
        return tokens.view(-1, self.num_fields, tokens.shape[-1])


@dataclass(frozen=True)
class Signals:
    """What a model is told of packed histories beside their items; None for what it does not read.

    Attributes:
        events: of each event (P).
        requests: of the request behind each event (P), or behind each history (B).
        users: of each user's fields, (B F): a user's together.
    """

    events: Facts | None
    requests: Facts | None
    users: Facts | None

    def to(self, device: torch.device) -> Signals:
        """The same on a device."""
        return Signals(*(each and each.to(device) for each in self._parts))

    def part(self, events: slice | Tensor, requests: slice | Tensor, users: slice) -> Signals:
        """Some events, requests and users' fields."""
        rows = (events, requests, users)
        return Signals(*(each and each[own] for each, own in zip(self._parts, rows, strict=True)))

    @property
    def _parts(self) -> tuple[Facts | None, Facts | None, Facts | None]:
        return self.events, self.requests, self.users


class SignalEncoder(nn.Module):
    """The learned side of all signals that a model reads.

    Args:
        width: D.
        event_columns: C of an event; 0: nothing is read of events.
        request_columns: C of a request; 0: nothing is.
        user_columns: C of users' fields; 0: nothing is.
        user_fields: F.
    """

    def __init__(
        self,
        width: int,
        *,
        event_columns: int,
        request_columns: int,
        user_columns: int,
        user_fields: int,
    ) -> None:
        super().__init__()
        self.num_tokens = user_fields
        self.events = Modulation(event_columns, width) if event_columns else None
        self.requests = Modulation(request_columns, width) if request_columns else None
        self.users = UserTokens(user_columns, user_fields, width) if user_columns else None
