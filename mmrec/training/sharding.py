"""Parameters, gradients and optimiser state in parts, one a rank: torch's FSDP2.

    units: each block of the encoders and of the user model, each layer of the fusion, and the rest
    forward    a unit's parameters are gathered as it runs, and let go of behind it
    backward   gathered once more; its gradients are averaged, and a rank keeps its part of them
    update     each rank's part alone

Gathering and reducing take all ranks: each runs the same units in the same order
(`mmrec.data.stand_ins` sees to it), so that what has a gradient on one has one on all.

A checkpoint holds whole tensors in safetensors whoever wrote it, and any number of ranks goes on
from it, sharded or not. `torch.distributed.checkpoint` gathers and spreads them; its own file
format is not used, since it pickles what it knows of the tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from encoders.cut import StackedEncoder
from mmrec.model import RecommenderModel
from mmrec.training.distributed import Ranks, is_part

Result = TypeVar("Result")


def shard(trained: nn.Module, model: RecommenderModel, ranks: Ranks, *, parts: int) -> None:
    """Leaves each rank its part of a model's parameters, in place; make the optimiser afterwards.

    Args:
        trained: the model with its losses: its forward pass is one step's.
        model: its model, the same on every rank, on the device it trains on.
        ranks: who trains.
        parts: `training.micro_batches`. Ranks may have unequal numbers of parts of a batch, so with
            more than one the user model's blocks stay with the rest, gathered once a step.
    """
    # no encoder writes into what one of its blocks gave, which may well be a view
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.world,))
    whole = left_whole(model)
    units = [*_encoder_blocks(model), *getattr(model.fusion, "layers", [])]
    if parts == 1:
        units += model.history.blocks
    for unit in dict.fromkeys(units):  # a model may run one block several times
        fully_shard(unit, mesh=mesh, ignored_params=whole)
    fully_shard(trained, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(trained, "look")


def look(trained: nn.Module, function: Callable[[], Result]) -> Result:
    """Calls what reads the model outside of a step; sharded, every rank has to, with equal work.

    Args:
        trained: a TrainedModel, or what wraps one.
        function: runs units in the same order on every rank.
    """
    if not isinstance(trained, FSDPModule):
        return function()
    root: Any = trained
    found: Result = root.look(function)
    # the rest is let go of behind a backward pass only, and there is none: what freezes and
    # unfreezes parameters must find those that the optimiser has
    trained.reshard()
    return found


def average_whole_gradients(trained: nn.Module, ranks: Ranks) -> None:
    """Means over the ranks of the gradients that FSDP leaves alone, as DDP takes them."""
    for parameter in trained.parameters():
        if parameter.grad is not None and not is_part(parameter):
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.world


@torch.no_grad()
def clip_sharded_gradients(trained: nn.Module, max_norm: float) -> Tensor:
    """`nn.utils.clip_grad_norm_` where some gradients are in parts: the norm of all, before it."""
    gradients = [each.grad for each in trained.parameters() if each.grad is not None]
    parts = [each.to_local() for each in gradients if isinstance(each, DTensor)]
    whole = [each for each in gradients if not isinstance(each, DTensor)]
    squares = nn.utils.get_total_norm(parts).square()
    dist.all_reduce(squares)
    norm = (squares + nn.utils.get_total_norm(whole).to(squares).square()).sqrt()
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for each in [*parts, *whole]:
        each.mul_(share)
    return norm


def gather_model(model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of a sharded model by name, on rank 0's CPU; every rank takes part."""
    return get_model_state_dict(model, options=_whole_on_main())  # type: ignore[return-value]


def gather_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The same of its optimiser, by `NAME/exp_avg` and so on."""
    found: Any = get_optimizer_state_dict(model, optimiser, options=_whole_on_main())
    return {
        f"{name}/{kind}": value
        for name, values in found.get("state", {}).items()
        for kind, value in values.items()
    }


def spread_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads whole tensors, which every rank has, into a sharded model.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    set_model_state_dict(model, dict(tensors), options=StateDictOptions(full_state_dict=True))


def spread_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """The part of an optimiser's tensor that goes with a rank's part of the parameter.

    torch.distributed.checkpoint gives every parameter a state when it loads some, and counts a step
    for it; one that has not trained yet must have none.
    """
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _whole_on_main() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _encoder_blocks(model: RecommenderModel) -> list[nn.Module]:
    """Blocks of all encoders; those below a cut never run in training and stay in parts."""
    return [
        block
        for encoder in model.encoders.values()
        if isinstance(encoder, StackedEncoder)
        for block in encoder.stack
    ]


def left_whole(model: RecommenderModel) -> set[nn.Parameter]:
    """Parameters that every rank has: numbers, which have no dimension to be cut in.

    And of an encoder with a cut what lies below it beside its blocks, such as a table of word
    embeddings: it stands still, and with the rest it would be gathered in every step.
    """
    whole = {each for each in model.parameters() if each.ndim == 0}
    in_blocks = {each for block in _encoder_blocks(model) for each in block.parameters()}
    for encoder in model.encoders.values():
        if isinstance(encoder, StackedEncoder) and encoder.trained_blocks is not None:
            below = {each for _, each in encoder.parameters_below()}
            whole |= {each for each in encoder.parameters() if each in below} - in_blocks
    return whole
