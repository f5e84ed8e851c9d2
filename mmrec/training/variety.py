"""How alike two items are that a user would be shown: what `training.variety_weight` makes smaller.

    states of some positions ─ softmax over items as they stand ─► p ─► |sum_n p_n c_n|^2

Legend: P positions · N items · D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrec.data.batch import Batch
from mmrec.training.losses import CHUNK_ELEMENTS, ExcludedPairs


def expected_similarity(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    contents: Tensor,
    *,
    excluded: ExcludedPairs | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Expected similarity of two items drawn for each position, one apart from the other.

        s_p = sum_n sum_m p_n p_m <c_n, c_m> = |sum_n p_n c_n|^2
        p   = softmax_n(<users_p, items_n> + bias_n),   0 where (p, n) is excluded

    It is 1 where all of p lies on items of one content, and small where p is spread over contents
    that point away from each other: diversity (1 - mean cosine in a list; Ziegler et al., 2005) of
    lists that are drawn rather than ranked, so that it can be derived.

    Only users have a gradient. Items would part from each other to look varied, whatever they show,
    and contents serve new items and search as well; a higher temperature or less popularity would
    flatten p and leave the order of the list as it was.

    Args:
        users: (P, D), already divided by the temperature.
        items: (N, D).
        bias: (N,) fp32.
        contents: (N, W) unit vectors.
        excluded: pairs that are no candidates.
        chunk_elements: logits held at a time.

    Returns:
        (P,) in [0, 1].
    """
    similarity: Tensor = _ExpectedSimilarity.apply(
        users, items.detach(), bias.detach(), contents.detach(), excluded, chunk_elements
    )
    return similarity


class _ExpectedSimilarity(torch.autograd.Function):
    """d s_p / d z_pn = 2 p_n (<m_p, c_n> - s_p), with m_p = sum_n p_n c_n."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        users: Tensor,
        items: Tensor,
        bias: Tensor,
        contents: Tensor,
        excluded: ExcludedPairs | None,
        chunk_elements: int,
    ) -> Tensor:
        P, N = users.shape[0], items.shape[0]
        similarity, gradient = users.new_empty(P), torch.empty_like(users)
        rows = max(chunk_elements // max(N, 1), 1)
        # few positions: fp32 costs little, and items are in it already
        with torch.autocast(users.device.type, enabled=False):
            table, contents = items.to(users.dtype), contents.to(users.dtype)
            for start in range(0, P, rows):
                stop = min(start + rows, P)
                logits = users[start:stop] @ table.T + bias
                if excluded is not None:
                    pairs = excluded.within(start, stop, N)
                    logits.view(-1).index_fill_(0, pairs, float("-inf"))
                share = logits.softmax(1)  # (b, N)
                mean = share @ contents  # (b, W)
                alike = mean.square().sum(1, keepdim=True)
                slope = (mean @ contents.T).sub_(alike).mul_(2 * share)
                similarity[start:stop], gradient[start:stop] = alike[:, 0], slope @ table
        ctx.save_for_backward(gradient)
        return similarity

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: D102
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0][:, None] * gradient, None, None, None, None, None


def last_counted(batch: Batch) -> tuple[Tensor, Tensor]:
    """The last position of each history that counts, and how many of the history do.

    One stands for all of a history: states of neighbours are much alike, and each costs a softmax.

    Returns:
        (b,) positions, ascending, and (b,) numbers, of the b histories that have one.
    """
    history = torch.repeat_interleave(batch.offsets[1:] - batch.offsets[:-1])
    number = torch.zeros_like(batch.offsets[1:]).index_add(0, history, batch.counted.long())
    (places,) = batch.counted.nonzero(as_tuple=True)
    has_one = number > 0
    return places[number[has_one].cumsum(0) - 1], number[has_one]


def variety_loss_of(
    batch: Batch,
    states: Tensor,
    table: tuple[Tensor, Tensor],
    contents: Tensor,
    temperature: Tensor,
    excluded: ExcludedPairs | None,
) -> Tensor:
    """The share of some histories in the mean of `expected_similarity` over positions.

    Each history is asked at its last position, and weighs as many positions as count. Of a sampled
    loss the items drawn stand for all, each as many times as it is drawn seldom (the log of pi is
    taken from its logit, see `sampled_softmax`): right in the limit of many; with few, p looks more
    concentrated than it is.

    Args:
        batch: the histories.
        states: (P, D) of all positions.
        table: (R, D) embeddings and (R,) biases of what is shown.
        contents: (R, W) unit vectors that say what is alike.
        temperature: tau.
        excluded: pairs that are no candidates, of the positions that count.
    """
    items, bias = table
    places, number = last_counted(batch)
    if excluded is not None:
        excluded = excluded.of_rows(number.cumsum(0) - 1)
        # who has met everything else is still shown what comes next
        kept = excluded.items != batch.targets[places][excluded.rows]
        excluded = ExcludedPairs(excluded.rows[kept], excluded.items[kept], num_rows=len(places))
    if batch.candidates is not None:
        assert batch.log_inclusion is not None
        place = torch.full((items.shape[0],), -1, device=items.device)
        place[batch.candidates] = torch.arange(len(batch.candidates), device=items.device)
        excluded = None if excluded is None else excluded.among(place)
        items, contents = items[batch.candidates], contents[batch.candidates]
        bias = bias[batch.candidates] - batch.log_inclusion
    users = states[places] / temperature.detach()
    alike = expected_similarity(users, items, bias, contents, excluded=excluded)
    return (alike * number).sum() * batch.world / max(batch.num_counted, 1)
