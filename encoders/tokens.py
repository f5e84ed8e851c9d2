"""Tokens with a mask: what every encoder returns and fusion reads.

Legend of shapes: M items encoded together, T tokens of one modality, W width of a token.
A mask is True where the token is real. Masked positions hold zeros, never NaN; an item whose
medium is missing has no real token at all.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences of one modality.

    Attributes:
        values: (M, T, W) floating point, zero where `mask` is False.
        mask: (M, T) bool, True = real and may be attended.
    """

    values: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        """Refuse values and mask that do not belong together.

        Raises:
            ValueError: the shapes differ or the mask is not bool.
        """
        if self.values.ndim != 3 or self.values.shape[:2] != self.mask.shape:
            raise ValueError(
                f"Tokens need values (M, T, W) and a mask (M, T), "
                f"got {tuple(self.values.shape)} and {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of Tokens must be bool (True = real), got {self.mask.dtype}"
            )

    def to(self, device: torch.device | str) -> Self:
        """Return the same tokens on another device."""
        return type(self)(self.values.to(device), self.mask.to(device))

    def pooled(self) -> Tensor:
        """Return the mean over the real tokens, (M, W); zeros where an item has none."""
        weights = self.mask.unsqueeze(-1).to(self.values.dtype)
        total = (self.values * weights).sum(dim=1)  # (M, T, W) -> (M, W)
        return total / weights.sum(dim=1).clamp(min=1)


def masked(values: Tensor, mask: Tensor) -> Tokens:
    """Build Tokens with zeros at masked positions, whatever `values` held there, NaN included.

    Args:
        values: (M, T, W).
        mask: (M, T) bool, True = real.
    """
    return Tokens(values.masked_fill(~mask.unsqueeze(-1), 0.0), mask)


def pool_tokens(tokens: Tokens, num_tokens: int) -> Tokens:
    """Pool each item's real tokens, in their order, to at most `num_tokens`.

    An item with n <= num_tokens real tokens keeps them as they are, moved to the front; one with
    more gets num_tokens means over near-equal consecutive bins, [floor(i n / K), ceil((i+1) n / K))
    as adaptive average pooling defines them. Each row depends on its own real tokens only, so
    padding and the rest of the batch do not matter.

    Args:
        tokens: (M, T, W) tokens; real ones may stand anywhere in a row.
        num_tokens: K, at least 1.

    Returns:
        Tokens of shape (M, K, W): always K wide, the mask says how many are real.

    Raises:
        ValueError: num_tokens is below 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    num_real = tokens.mask.sum(dim=1, keepdim=True)  # (M, 1)
    bins = torch.arange(num_tokens, device=tokens.mask.device).unsqueeze(0)  # (1, K)
    too_many = num_real > num_tokens
    start = torch.where(too_many, bins * num_real // num_tokens, bins)
    stop = torch.where(too_many, -(-(bins + 1) * num_real // num_tokens), bins + 1)
    mask = bins < num_real  # (M, K)

    rank = (tokens.mask.cumsum(dim=1) - 1).unsqueeze(1)  # (M, 1, T), place among the real ones
    inside = (rank >= start.unsqueeze(-1)) & (rank < stop.unsqueeze(-1))
    inside = inside & tokens.mask.unsqueeze(1) & mask.unsqueeze(-1)  # (M, K, T)
    weights = inside.to(tokens.values.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    clean = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0)
    return Tokens(torch.bmm(weights, clean), mask)  # (M, K, T) @ (M, T, W) -> (M, K, W)


def real_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Take the real ones of several things an item: (M, P, ...), (M, P) bool -> (n, ...).

    On torch's meta device, which knows no values, all are taken: what is measured there is full.
    """
    return values.flatten(0, 1) if mask.is_meta else values[mask]


def by_item(rows: Tensor, mask: Tensor) -> Tensor:
    """Put real ones back to their items, zeros elsewhere: (n, ...), (M, P) bool -> (M, P, ...)."""
    shape = (*mask.shape, *rows.shape[1:])
    return rows.view(shape) if mask.is_meta else rows.new_zeros(shape).index_put((mask,), rows)
