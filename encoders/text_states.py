"""States of a text's pieces between two blocks: their checks, their prompts, their pooling.

Legend: M items, L pieces of the longest text in the batch, T tokens, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoders.encoder import Inputs
from encoders.tokens import Tokens, masked, pool_tokens

TextStates = tuple[Tensor, Tensor]
"""States (M, L, W) between two blocks, and which of them are real (M, L) bool."""


def pool_before_last(tokens: Tokens, num_tokens: int) -> Tokens:
    """Keep the last real token of each row as it is, and pool those before it.

    Args:
        tokens: (M, T, W); real ones may stand anywhere in a row.
        num_tokens: K, at least 1.

    Returns:
        Tokens (M, K, W): up to K - 1 pooled ones, then the last.
    """
    M, T, W = tokens.values.shape
    place = torch.arange(T, device=tokens.mask.device)
    last = (tokens.mask * (place + 1)).argmax(1)  # 0 where a row has none, which stays masked
    rows = torch.arange(M, device=last.device)
    values = tokens.values[rows, last].unsqueeze(1)  # (M, 1, W)
    present = tokens.mask.any(1)
    if num_tokens == 1:
        return masked(values, present.unsqueeze(1))
    before = pool_tokens(
        Tokens(tokens.values, tokens.mask & (place != last.unsqueeze(1))), num_tokens - 1
    )
    count = before.mask.sum(1)  # where the last one goes
    slots = torch.arange(num_tokens, device=last.device)
    padded = nn.functional.pad(before.values, (0, 0, 0, 1))
    joined = torch.where((slots == count.unsqueeze(1)).unsqueeze(-1), values, padded)
    return masked(joined, (slots <= count.unsqueeze(1)) & present.unsqueeze(1))


def read_by_length(
    read: Callable[[Tensor, Tensor], Tensor], pieces: Tensor, mask: Tensor
) -> Tensor:
    """Let a model read texts of one length together, and none beside padding.

    What it makes of a text is then the same whatever is encoded beside it, to the last bit on a
    CPU: products of unlike shapes differ in their last digits, which rounding to whole numbers
    would turn into steps.

    Args:
        read: pieces (R, L, …) and their mask (R, L) to states (R, L, W).
        pieces: (M, T, …).
        mask: (M, T); real pieces of a text stand next to each other.

    Returns:
        (M, T, W); zeros where the mask is False.
    """
    lengths = mask.sum(1)
    first = mask.int().argmax(1)
    whole: Tensor | None = None
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        if length == 0:
            continue
        places = first[rows, None] + torch.arange(length, device=mask.device)
        found = read(pieces[rows[:, None], places], mask[rows[:, None], places])
        if whole is None:
            whole = found.new_zeros(*mask.shape, found.shape[-1])
        whole[rows[:, None], places] = found
    return read(pieces, mask) if whole is None else whole


def check_length(token_ids: Tensor, max_length: int) -> None:
    """Refuse texts of more pieces than an encoder has positions for.

    Raises:
        ValueError: one has.
    """
    if token_ids.shape[1] > max_length:
        raise ValueError(
            f"texts of {token_ids.shape[1]} pieces, but the text encoder takes at most "
            f"{max_length}: lower max_length of the text transform"
        )


def extend_states(states: TextStates, extra: Tensor) -> TextStates:
    """Put the tokens (P, W) of a prompt behind those of each item."""
    values, mask = states
    rows = extra.to(values.dtype).expand(len(values), -1, -1)
    real = mask.new_ones(len(values), len(extra))
    return torch.cat([values, rows], dim=1), torch.cat([mask, real], dim=1)


def longest_text(max_length: int) -> Inputs:
    """Return one text of `max_length` pieces."""
    token_ids = torch.zeros(1, max_length, dtype=torch.int64)
    return {"token_ids": token_ids, "mask": token_ids == 0, "present": torch.tensor([True])}
