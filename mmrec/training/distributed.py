"""Several processes that train one model: who they are, and what they tell each other.

    torchrun --nproc-per-node 2 -m -- mmrec.cli train …

Each rank takes its share of the histories and of the fresh items of the same global batch. Outputs
of the fusion are gathered, with gradients, so that every rank scores its positions against the same
table, writes the same bank and takes the same step: with any number of ranks a run computes what
one rank does, up to rounding and dropout's masks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mmrec.data.batch import share_of

TIMEOUT_S = 60
"""Longest wait for another rank in the middle of a step: one that was killed ends the run."""
PREPARING = timedelta(days=2)
"""Longest wait while another rank fills the caches."""


@dataclass(frozen=True)
class Ranks:
    """One process among those that train.

    rank: 0 .. world - 1; 0 writes the run.
    world: number of processes.
    store: what they share outside the collectives; None for a process alone.
    """

    rank: int = 0
    world: int = 1
    store: PrefixStore | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Lets one rank after the other do what the next then finds done, such as a full cache."""
        if self.store is None:
            yield
            return
        if self.rank:
            self.store.wait([f"done/{self.rank - 1}"], PREPARING)
        yield
        self.store.set(f"done/{self.rank}", "1")

    def of_main(self, value: float) -> float:
        """What rank 0 has: decisions are its own, whatever the last bit is elsewhere."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            shared = shared.cuda()
        dist.broadcast(shared, 0)
        return float(shared)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over the ranks."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world


ALONE = Ranks()


def is_main_process() -> bool:
    """Whether this process is alone or rank 0, before any group is formed."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, for as long as they train; a process alone otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    rank, world = dist.get_rank(), dist.get_world_size()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps a server there; without it rank 0 has made one for the group already
    store = PrefixStore("mmrec", TCPStore(host, port, is_master=False))
    try:
        yield Ranks(rank, world, store)
    finally:
        dist.destroy_process_group()


def is_part(tensor: Tensor) -> bool:
    """Whether a rank holds a part of it only; see `mmrec.training.sharding`.

    Asked of a DTensor without importing it, which would cost every command half a second.
    """
    return hasattr(tensor, "to_local")


def is_sharded(module: nn.Module) -> bool:
    """Whether a rank holds parts of the module's parameters only."""
    return any(map(is_part, module.parameters()))


class GatherContents:
    """Puts all ranks' items together in front of the last layer of the fusion, in training.

    That layer is small, and it centres contents on the mean over the items of a step: with all of
    them every rank computes the same.

    Args:
        ranks: who trains.

    Attributes:
        num_items: of each kind that a step's rows stand for; a rank has its share of the first,
            then of the next. Usually there are the fresh items alone.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.num_items: tuple[int, ...] = (0,)

    def attach(self, out: nn.Module) -> None:
        """Watches the last layer of a fusion."""
        out.register_forward_pre_hook(self._gather)

    def _gather(self, out: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return tuple(self.rows(each) for each in inputs) if out.training else None

    def rows(self, own_rows: Tensor) -> Tensor:
        """The rows of all ranks' items, kind by kind, from this rank's."""
        world = self.ranks.world
        shares = [
            [share_of(number, rank=rank, world=world) for number in self.num_items]
            for rank in range(world)
        ]
        sizes = [sum(stop - start for start, stop in each) for each in shares]
        own = sizes[self.ranks.rank]  # without the stand-in of a rank that has none
        gathered = gather_rows(own_rows[:own], sizes, self.ranks.rank)
        if len(self.num_items) == 1:
            return gathered
        firsts = [sum(self.num_items[:kind]) for kind in range(len(self.num_items))]
        places = [
            first + place
            for each in shares
            for first, share in zip(firsts, each, strict=True)
            for place in range(*share)
        ]
        return gathered.index_select(0, torch.tensor(places, device=gathered.device).argsort())


@contextmanager
def gathering(gather: GatherContents | None, num_items: tuple[int, ...]) -> Iterator[None]:
    """Lets rows stand for other items than the fresh ones; nothing to do for a process alone."""
    if gather is None:
        yield
        return
    usual, gather.num_items = gather.num_items, num_items
    yield
    gather.num_items = usual


def gather_rows(rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """The rows of all ranks, one after the other, with gradients to their owners.

    Args:
        rows: (sizes[rank], …) of this rank; bool allowed, without a gradient then.
        sizes: rows of each rank.
        rank: this one.

    Returns:
        (sum of sizes, …), the same on every rank.
    """
    if rows.dtype == torch.bool:
        return gather_rows(rows.to(torch.uint8), sizes, rank).bool()
    gathered: Tensor = _GatherRows.apply(rows, list(sizes), rank)
    return gathered


class _GatherRows(torch.autograd.Function):
    """Gradients of a row are summed over the ranks: each has the whole table in its loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:  # noqa: D102
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        longest = max(sizes)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: D102
        gradient = grad_outputs[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.size], None, None
