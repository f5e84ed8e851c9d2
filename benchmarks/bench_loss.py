"""The chunked softmax over the catalogue: memory at a million items, time beside the plain loss.

Forward and backward, with the gradients of users, items and bias. The plain loss is torch's
cross-entropy on all logits in fp32; rounds alternate, the figure is the median of their ratios.
"""

from __future__ import annotations

import torch
from measure import arguments, peak_gb, report, seconds_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmrec.training.losses import catalogue_softmax


def inputs(num_rows: int, num_items: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users over a temperature of 0.07, items and bias, which need gradients, and targets."""
    torch.manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn(num_rows, width)) / 0.07
    items = torch.nn.functional.normalize(torch.randn(num_items, width))
    bias = torch.zeros(num_items)
    targets = torch.randint(num_items, (num_rows,))
    return users.requires_grad_(), items.requires_grad_(), bias.requires_grad_(), targets


def chunked(users: Tensor, items: Tensor, bias: Tensor, targets: Tensor) -> None:
    for leaf in (users, items, bias):
        leaf.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = catalogue_softmax(users, items, bias, targets)
    loss.backward()


def plain(users: Tensor, items: Tensor, bias: Tensor, targets: Tensor) -> None:
    for leaf in (users, items, bias):
        leaf.grad = None
    cross_entropy(users @ items.T + bias, targets).backward()


def million(small: bool) -> None:
    """Memory and time at a million items; first of all, while nothing big has been allocated.

    What an earlier case has freed may still be resident, and be used again uncounted. The table is
    there before; its gradient is not, so it counts. One round: minutes each.
    """
    shrink = 20 if small else 1
    chunked(*inputs(64, 256, 64))  # the libraries' own set-up is none of the loss
    rows, num_items, width = 12_800 // shrink, 1_000_000 // shrink, 64
    leaves = inputs(rows, num_items, width)
    times: list[float] = []
    peak = peak_gb(lambda: times.append(seconds_of(lambda: chunked(*leaves))), beyond=True)
    config = {"rows": rows, "items": num_items, "width": width, "precision": "bf16"}
    report("loss_million_memory", [peak], unit="GB", bar=1.5, small=small, config=config)
    report("loss_million_time", times, unit="s", small=small, config=config)


def beside_plain(small: bool, rounds: int) -> None:
    """Time beside the plain loss at the size of a MovieLens-1M batch."""
    rows, num_items, width = 25_600 // (20 if small else 1), 3_416, 128
    leaves = inputs(rows, num_items, width)
    chunked(*leaves)  # both once before the clock: the first call sets up kernels
    plain(*leaves)
    pairs = [
        (seconds_of(lambda: chunked(*leaves)), seconds_of(lambda: plain(*leaves)))
        for _ in range(rounds)
    ]
    config = {"rows": rows, "items": num_items, "width": width, "precision": "bf16"}
    ratios = [ours / theirs for ours, theirs in pairs]
    report("loss_time_to_plain", ratios, unit="ratio", bar=0.4, small=small, config=config)
    report("loss_time", [ours for ours, _ in pairs], unit="s", small=small, config=config)
    report(
        "loss_time_plain",
        [theirs for _, theirs in pairs],
        unit="s",
        small=small,
        config=config | {"precision": "fp32"},
    )


def main() -> None:
    given = arguments(__doc__)
    million(given.small)
    beside_plain(given.small, given.rounds)


if __name__ == "__main__":
    main()
