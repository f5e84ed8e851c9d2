"""What a text model is asked without labels: hidden pieces (BERT and its kin), or the next (GPT).

    token_ids, mask (R, L) ─ draw ─► inputs, answers (R, L) ─ model ─ lm head ─► loss

Legend: R chunks of texts · L pieces of the longest. An answer of -100 is not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.modes import evaluating

NOT_ASKED = -100
CHOSEN_SHARE = 0.15
"""Of a text's pieces, those to be told. Devlin et al., arXiv 1810.04805, section 3.1."""
MASKED_SHARE, SWAPPED_SHARE = 0.8, 0.1
"""Of those, how many become the mask and a random piece; the rest stay as they are."""
HELD_OUT_STRIDE = 7
"""Every seventh piece of a held-out text is hidden at a time: about CHOSEN_SHARE of them."""

Asked = tuple[Tensor, Tensor]
"""What the model reads (R, L), and the answers (R, L)."""


class Task(Protocol):
    """A question to a text model without labels."""

    name: str

    def draw(self, token_ids: Tensor, mask: Tensor, random: torch.Generator) -> Asked:
        """A question of training."""

    def held_out(self, token_ids: Tensor, mask: Tensor) -> Iterator[Asked]:
        """Questions that ask for every piece once, the same each time."""


class MaskedLanguage:
    """Pieces hidden at random are told from those on both sides.

    Of each text 15 % of the pieces are chosen, at least one; of these 80 % become the mask, 10 % a
    random piece, 10 % stay. Source: Devlin et al., arXiv 1810.04805, section 3.1.

    Args:
        mask_id: the mask's piece.
        special_ids: pieces that are no part of a text: never chosen, never put in.
        vocabulary_size: pieces in all.
    """

    name = "masked"

    def __init__(self, *, mask_id: int, special_ids: Sequence[int], vocabulary_size: int) -> None:
        self.mask_id = mask_id
        self.special = torch.zeros(vocabulary_size, dtype=torch.bool)
        self.special[list(special_ids)] = True
        self.ordinary = (~self.special).nonzero().squeeze(1)

    def draw(self, token_ids: Tensor, mask: Tensor, random: torch.Generator) -> Asked:
        """Hides pieces at random.

        Args:
            token_ids: (R, L) int64.
            mask: (R, L) bool, True = real.
            random: the draw.
        """
        allowed = mask & ~self.special[token_ids]
        count = (allowed.sum(1) * CHOSEN_SHARE).round().clamp(min=1)
        order = torch.rand(token_ids.shape, generator=random).masked_fill(~allowed, 2.0)
        chosen = (order.argsort(1).argsort(1) < count[:, None]) & allowed
        fate = torch.rand(token_ids.shape, generator=random)
        swaps = torch.randint(len(self.ordinary), token_ids.shape, generator=random)
        inputs = token_ids.masked_fill(chosen & (fate < MASKED_SHARE), self.mask_id)
        swapped = chosen & (fate >= MASKED_SHARE) & (fate < MASKED_SHARE + SWAPPED_SHARE)
        inputs = torch.where(swapped, self.ordinary[swaps], inputs)
        return inputs, token_ids.masked_fill(~chosen, NOT_ASKED)

    def held_out(self, token_ids: Tensor, mask: Tensor) -> Iterator[Asked]:
        """Hides every seventh piece, from the first, then from the second, and so on.

        What comes of it is a pseudo-perplexity (Salazar et al., arXiv 1910.14659, equation 2) with
        fewer passes: theirs hides one piece at a time.
        """
        allowed = mask & ~self.special[token_ids]
        place = (allowed.cumsum(1) - 1) % HELD_OUT_STRIDE
        for start in range(HELD_OUT_STRIDE):
            chosen = allowed & (place == start)
            inputs = token_ids.masked_fill(chosen, self.mask_id)
            yield inputs, token_ids.masked_fill(~chosen, NOT_ASKED)


class NextPiece:
    """Each piece is told from those before it: what GPT-2 and its kin learn from."""

    name = "causal"

    def draw(self, token_ids: Tensor, mask: Tensor, random: torch.Generator) -> Asked:
        """The texts as they are: nothing is random here."""
        answers = token_ids.masked_fill(~mask, NOT_ASKED).roll(-1, 1)
        answers[:, -1] = NOT_ASKED
        return token_ids, answers

    def held_out(self, token_ids: Tensor, mask: Tensor) -> Iterator[Asked]:
        """The same; only a text's first piece is not asked for."""
        yield self.draw(token_ids, mask, torch.Generator())


def total_loss(model: Any, asked: Asked, mask: Tensor) -> tuple[Tensor, int]:
    """Negative log likelihood of all answers, its sum, and how many there are.

    Args:
        model: a language model of `transformers`.
        asked: on the model's device.
        mask: (R, L) bool, True = real.
    """
    inputs, answers = asked
    logits = model(input_ids=inputs, attention_mask=mask.long()).logits
    wanted = answers != NOT_ASKED
    loss = F.cross_entropy(logits[wanted].float(), answers[wanted], reduction="sum")
    return loss, int(wanted.sum())


@torch.no_grad()
def perplexity(model: Any, task: Task, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The exponential of the mean negative log likelihood of all pieces that the task asks for.

    Args:
        model: a language model of `transformers`.
        task: what it is asked.
        batches: token_ids and mask (R, L) of each.
    """
    device = model.device
    loss, count = 0.0, 0
    with evaluating(model):
        for token_ids, mask in batches:
            for inputs, answers in task.held_out(token_ids, mask):
                asked = inputs.to(device), answers.to(device)
                found, number = total_loss(model, asked, mask.to(device))
                loss, count = loss + float(found), count + number
    return math.exp(loss / max(count, 1))
