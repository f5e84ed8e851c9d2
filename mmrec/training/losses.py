"""The softmax over the whole catalogue, in chunks, with its own backward.

Legend: P positions · N items · D width. The plain loss keeps (P, N) logits and their gradient;
this one keeps a chunk of rows at a time and has the gradient when the forward ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits held at a time. 2 Mi floats stay in a CPU's cache: on 25,600 x 3,416 at width 128 chunks
# of 32 Mi took 2.6 times as long. A large table needs more, or its rows are read too often.
CHUNK_ELEMENTS = 2**21
MIN_CHUNK_ROWS = 64


class ExcludedPairs:
    """(position, item) pairs that are no candidates: their logits are minus infinity.

    Args:
        rows: (E,) int64, ascending positions.
        items: (E,) int64, item row of each pair.
        num_rows: P.
    """

    def __init__(self, rows: Tensor, items: Tensor, *, num_rows: int) -> None:
        self.rows, self.items = rows, items
        counts = torch.bincount(rows, minlength=num_rows)
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def of_rows(self, rows: Tensor) -> ExcludedPairs:
        """The pairs of some of the positions, which are numbered anew: (n,) ascending."""
        place = torch.full((len(self.starts) - 1,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.rows] >= 0
        return ExcludedPairs(place[self.rows[kept]], self.items[kept], num_rows=len(rows))

    def among(self, place: Tensor) -> ExcludedPairs:
        """The pairs of some of the items: (N,) the new row of each, -1 for one that is left out."""
        places = place[self.items]
        kept = places >= 0
        return ExcludedPairs(self.rows[kept], places[kept], num_rows=len(self.starts) - 1)

    def within(self, start: int, stop: int, num_items: int) -> Tensor:
        """Flat indices of the pairs of rows start..stop in their (stop - start, N) logits."""
        low, high = int(self.starts[start]), int(self.starts[stop])
        return (self.rows[low:high] - start) * num_items + self.items[low:high]


def met_before(
    items: Tensor,
    offsets: Tensor,
    *,
    everything: bool = False,
    counted: Tensor | None = None,
    num_items: int | None = None,
) -> ExcludedPairs:
    """Pairs that rule out, at each position, the other items of the same history.

    With repeats forbidden the next item is none of those met before; they are no candidates in
    use either, so the loss leaves them out too.

    Args:
        items: (P,) int64 item rows of packed histories: what the user met at each position.
        offsets: (B + 1,) int64.
        everything: also rule out the items met later, except the next one (the target).
        counted: (P,) bool, the positions that enter the loss; None: all.
        num_items: rows from here on stand for no item, but for the start of a history; None: none.

    Returns:
        Pairs of (position among those counted, item) with positions ascending.
    """
    lengths = offsets[1:] - offsets[:-1]
    history = torch.repeat_interleave(lengths)
    position = torch.arange(items.shape[0], device=items.device) - offsets[history]
    counts = lengths[history] if everything else position + 1
    if counted is not None:
        history, counts = history[counted], counts[counted]
    rows = torch.repeat_interleave(counts)  # (E,)
    starts = counts.cumsum(0) - counts
    met = torch.arange(rows.shape[0], device=items.device) - starts[rows]  # position within history
    pairs = items[offsets[history][rows] + met]
    if num_items is not None:
        kept = pairs < num_items
        rows, pairs = rows[kept], pairs[kept]
    return ExcludedPairs(rows, pairs, num_rows=counts.shape[0])


def catalogue_softmax(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    excluded: ExcludedPairs | None = None,
    label_smoothing: float = 0.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Mean cross-entropy of the next item among all N, each position by its weight.

        loss = sum_p w_p / sum w [ logsumexp_n z_pn - (1 - s) z_p,target - s * mean_n z_pn ]
        z_pn = <users_p, items_n> + bias_n,   z = -inf where (p, n) is excluded (never a target)

    The target is positive, every other item not excluded is negative; no correction is needed
    since nothing is sampled. With label smoothing s the mean runs over the items not excluded,
    and the loss equals torch's cross_entropy(label_smoothing=s) where nothing is excluded.
    Under autocast the products run in its dtype; sums and exponentials in fp32.

    Args:
        users: (P, D), already divided by the temperature.
        items: (N, D).
        bias: (N,) fp32.
        targets: (P,) int64 rows of items.
        weights: (P,) w, fp32; None: 1 each.
        excluded: pairs that are no candidates; a target stays one in any case.
        label_smoothing: s in [0, 1).
        chunk_elements: logits held at a time.

    Returns:
        Scalar, with gradients for users, items and bias.
    """
    dtype = (
        torch.get_autocast_dtype(users.device.type)
        if torch.is_autocast_enabled(users.device.type)
        else users.dtype
    )
    loss: Tensor = _ChunkedSoftmax.apply(
        users, items, bias, targets, weights, excluded, label_smoothing, chunk_elements, dtype
    )
    return loss


def sampled_softmax(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    candidates: Tensor,
    log_inclusion: Tensor,
    weights: Tensor | None = None,
    excluded: ExcludedPairs | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`catalogue_softmax` over a sample of the items, with the log of pi taken from their logits.

        z_pn = <users_p, items_n> + bias_n - log pi_n,   n among the candidates

    An item that is a candidate in a share pi_n of the steps then weighs in the sum of exponentials,
    on average, what it weighs among all N; without that, items that are drawn often are pushed
    down. With every item a candidate, and pi = 1, it is `catalogue_softmax`. No target is a
    candidate twice, and the pairs excluded are no candidates here either.
    Source: Bengio and Senecal 2008; Yi et al. 2019 (logQ correction).

    Args:
        users: (P, D), already divided by the temperature.
        items: (N, D).
        bias: (N,) fp32.
        targets: (P,) int64 rows of items, all among the candidates.
        candidates: (C,) int64 ascending rows of items, none twice.
        log_inclusion: (C,) log pi of each.
        weights: (P,) of positions; None: 1 each.
        excluded: pairs that are no candidates.
        label_smoothing: s in [0, 1), over the candidates.

    Returns:
        Scalar, with gradients for users, items and bias.
    """
    place = torch.full((items.shape[0],), -1, dtype=torch.int64, device=items.device)
    place[candidates] = torch.arange(candidates.shape[0], device=items.device)
    return catalogue_softmax(
        users,
        items.index_select(0, candidates),
        bias.index_select(0, candidates) - log_inclusion,
        place[targets],
        weights=weights,
        excluded=None if excluded is None else excluded.among(place),
        label_smoothing=label_smoothing,
    )


def alignment_loss(contents: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """InfoNCE between an item's contents by one modality alone, over all pairs of modalities.

        loss = mean over pairs (a, b) of
               mean_i [ -log softmax_j(<a_i, b_j>)_i - log softmax_j(<b_i, a_j>)_i ] / 2

    Positive: the other medium of the same item. Negatives: that medium of the other items at hand.
    Items that lack one of the two are left out of the pair; a pair with fewer than two items adds
    nothing. Source: Radford et al., arXiv 2103.00020, figure 3 (CLIP).

    Args:
        contents: modality -> (M, D) unit vectors, divided by the square root of the temperature.
        present: modality -> (M,) bool, whether an item has it.

    Returns:
        Scalar; 0 where no pair has two items.
    """
    names = sorted(contents)
    terms = []
    for first, second in combinations(names, 2):
        both = present[first] & present[second]
        if int(both.sum()) < 2:
            continue
        logits = contents[first][both] @ contents[second][both].T
        own = torch.arange(logits.shape[0], device=logits.device)
        terms.append((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)
    if not terms:
        return contents[names[0]].new_zeros(()) * contents[names[0]].sum()
    return torch.stack(terms).mean()


class _ChunkedSoftmax(torch.autograd.Function):
    """Gradients are formed in the forward, chunk by chunk, and scaled in the backward."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        users: Tensor,
        items: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        excluded: ExcludedPairs | None,
        smoothing: float,
        chunk_elements: int,
        dtype: torch.dtype,
    ) -> Tensor:
        P, N = users.shape[0], items.shape[0]
        table = items.to(dtype)
        users_low = users.to(dtype)
        grad_users = torch.empty_like(users)
        grad_items = torch.zeros_like(items)
        grad_bias = torch.zeros_like(bias)
        loss = users.new_zeros((), dtype=torch.float64 if users.dtype == torch.float64 else None)
        rows = max(chunk_elements // max(N, 1), min(MIN_CHUNK_ROWS, max(P, 1)))
        rows -= rows % MIN_CHUNK_ROWS if rows > MIN_CHUNK_ROWS else 0
        with torch.autocast(users.device.type, enabled=False):
            for start in range(0, P, rows):
                stop = min(start + rows, P)
                # the last chunk is filled up: a new shape each step would cost memory for good
                spare = -(stop - start) % MIN_CHUNK_ROWS
                part_users = F.pad(users_low[start:stop], (0, 0, 0, spare))
                logits = (part_users @ table.T)[: stop - start].to(users.dtype).add_(bias)
                target = targets[start:stop, None]
                positive = logits.gather(1, target)
                weight = None if weights is None else weights[start:stop, None].to(users.dtype)
                if excluded is not None:
                    pairs = excluded.within(start, stop, N)
                    logits.view(-1).index_fill_(0, pairs, float("-inf"))
                    logits.scatter_(1, target, positive)
                peak = logits.amax(1, keepdim=True)
                if smoothing:
                    finite = logits > float("-inf")
                    share = smoothing / finite.sum(1, keepdim=True)
                    spread = share if weight is None else share * weight
                    loss = loss - (logits.masked_fill(~finite, 0) * spread).sum()
                # one exponential serves the sum and the gradient, which is divided by the sum
                # where it is narrow: in its factors of width D, not in N columns
                gradient = logits.sub_(peak).exp_()
                total = gradient.sum(1, keepdim=True)
                terms = total.log() + peak - (1 - smoothing) * positive
                loss = loss + (terms if weight is None else terms * weight).sum()
                if smoothing:
                    gradient.sub_(finite * (share * total))
                gradient.scatter_add_(1, target, (smoothing - 1) * total)
                inverse = total.reciprocal()
                if weight is not None:
                    inverse.mul_(weight)
                low = F.pad(gradient.to(dtype), (0, 0, 0, spare))
                grad_users[start:stop] = (low @ table)[: stop - start] * inverse
                scaled = (part_users[: stop - start] * inverse).to(dtype)
                # fp32 sums: thousands of chunks added in bf16 would lose the small ones
                grad_items += (low.T @ F.pad(scaled, (0, 0, 0, spare))).to(items.dtype)
                grad_bias += (inverse.T @ gradient)[0]
        scale = 1.0 / max(P if weights is None else float(weights.sum()), 1e-12 if P else 1.0)
        ctx.save_for_backward(grad_users, grad_items, grad_bias)
        ctx.scale = scale
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: D102
        grad_users, grad_items, grad_bias = ctx.saved_tensors
        factor = grad_outputs[0] * ctx.scale
        return (
            grad_users * factor,
            grad_items * factor,
            grad_bias * factor,
            None,
            None,
            None,
            None,
            None,
            None,
        )
