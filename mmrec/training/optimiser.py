"""Groups of parameters by rate and decay, the optimisers, and the schedule of the rate."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from encoders.cut import StackedEncoder
from mmrec.config import Config, EncoderConfig, TrainingConfig
from mmrec.errors import ConfigError
from mmrec.mixed_model import views_of
from mmrec.model import RecommenderModel
from mmrec.training.distributed import is_part

PRETRAINED_RATE = 1e-5
"""Rate of encoders that start from weights: 10 to 100 times below that of their pre-training
(Devlin et al., arXiv 1810.04805, section 3.2 and appendix A.3)."""
ADDED_RATE = 2e-4
"""Rate of what is added to such an encoder: Hu et al., arXiv 2106.09685, table 11, low end."""
LEAST_8_BIT = 4096
"""Entries of a parameter from which on adamw8bit keeps bytes, its library's own default."""


@dataclass(frozen=True)
class Part:
    """Parameters that share a rate and a decay.

    Attributes:
        name: of the part of the model, and of the block where blocks differ.
        learning_rate: at the top of the schedule.
        weight_decay: of its matrices.
    """

    name: str
    learning_rate: float
    weight_decay: float


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters by rate and decay, each group named.

    No decay on norms, biases, embeddings and other learned vectors: only the weights of linear,
    convolution and recurrent layers have it. What is sharded and what is not stand apart, since
    torch updates the parameters of a group together and cannot mix them.
    """
    decayed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase))
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("weight")
    }
    part_of: dict[int, Part] = {}
    for view in views_of(model):
        part_of |= _parts(view, config)
    groups: dict[tuple[Part, bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay, sharded = id(parameter) in decayed, is_part(parameter)
            group = groups.setdefault((part_of[id(parameter)], decay, sharded), [])
            group.append(parameter)
    return [
        {
            "name": f"{part.name}, {'decayed' if decay else 'not decayed'}",
            "params": parameters,
            "lr": part.learning_rate,
            "weight_decay": part.weight_decay if decay else 0.0,
        }
        for (part, decay, _), parameters in groups.items()
    ]


def _parts(model: RecommenderModel, config: Config) -> dict[int, Part]:
    """The part of each parameter, by its id."""
    training = config.training
    content_rate = training.content_learning_rate or training.learning_rate
    users = Part("users and ids", training.learning_rate, training.weight_decay)
    part_of = {id(parameter): users for parameter in model.parameters()}
    if model.fusion is not None:
        fusion = Part("fusion", content_rate, training.weight_decay)
        part_of |= {id(parameter): fusion for parameter in model.fusion.parameters()}
    for modality, encoder in config.encoders.items():
        if not model.has(modality):  # of several catalogues another has it
            continue
        module = model.encoder(modality)
        whole = _encoder_part(modality, encoder, training, content_rate)
        part_of |= {id(parameter): whole for parameter in module.parameters()}
        if encoder.layer_decay < 1 and isinstance(module, StackedEncoder):
            part_of |= _by_block(whole, module, encoder.layer_decay)
    return part_of


def _encoder_part(
    modality: str, encoder: EncoderConfig, training: TrainingConfig, content_rate: float
) -> Part:
    pretrained = PRETRAINED_RATE if encoder.method == "full" else ADDED_RATE
    default = content_rate if encoder.weights is None else pretrained
    decay = training.weight_decay if encoder.weight_decay is None else encoder.weight_decay
    return Part(modality, encoder.learning_rate or default, decay)


def _by_block(whole: Part, encoder: StackedEncoder, layer_decay: float) -> dict[int, Part]:
    """Parts of an encoder whose rate falls with depth: end, blocks from the top, stem.

    Source: Howard and Ruder, arXiv 1801.06146, section 3.2 (discriminative fine-tuning).
    """

    def part(name: str, depth: int) -> Part:
        rate = whole.learning_rate * layer_decay**depth
        return Part(f"{whole.name} {name}", rate, whole.weight_decay)

    stack = encoder.stack
    found = {id(each): part("stem", len(stack) + 1) for each in encoder.parameters()}
    for index, block in enumerate(stack):
        found |= {id(p): part(f"block {index}", len(stack) - index) for p in block.parameters()}
    for module in encoder.end:
        found |= {id(p): part("end", 0) for p in module.parameters()}
    return found


class DecoupledSGD(torch.optim.SGD):
    """Momentum, with decay apart from it: theta -= rate * (v + decay * theta), v = b v + g.

    torch's own SGD puts the decay into the momentum. Source: Loshchilov and Hutter, arXiv
    1711.05101, algorithm 1.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, momentum=momentum)
        self.decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group, decay in zip(self.param_groups, self.decays, strict=True):
            for parameter in group["params"]:
                if decay and parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * decay)
        super().step(closure)


def make_optimiser(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser that `training.optimiser` names, over the groups."""
    groups = parameter_groups(model, config)
    return OPTIMISERS[config.training.optimiser](groups, config.training)


def _adamw(groups: list[dict[str, Any]], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Theta -= rate * (m / (sqrt(v) + eps) + decay * theta); Loshchilov and Hutter, 1711.05101."""
    return torch.optim.AdamW(groups, betas=settings.betas, eps=1e-8, fused=True)


def _sgd(groups: list[dict[str, Any]], settings: TrainingConfig) -> torch.optim.Optimizer:
    return DecoupledSGD(groups, momentum=settings.betas[0])


def _adafactor(groups: list[dict[str, Any]], _: TrainingConfig) -> torch.optim.Optimizer:
    """Shazeer and Stern, arXiv 1804.04235; rates are relative to the size of each parameter."""
    return torch.optim.Adafactor(groups)


def _adamw8bit(groups: list[dict[str, Any]], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Of bitsandbytes; Dettmers et al., arXiv 2110.02861. Small parameters keep fp32."""
    return _bitsandbytes().AdamW8bit(
        groups, betas=settings.betas, eps=1e-8, min_8bit_size=LEAST_8_BIT
    )


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes").optim
    except ImportError as error:
        raise ConfigError(
            f"training.optimiser is adamw8bit, which needs bitsandbytes ({error}): "
            "pip install 'mmrec[lowbit]', or set training.optimiser to adafactor"
        ) from None


OPTIMISERS: dict[str, Callable[[list[dict[str, Any]], TrainingConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "adamw8bit": _adamw8bit,
}


def rate_at(step: int, *, total_steps: int, warmup_steps: int, min_rate: float) -> float:
    """Factor of the learning rate at a step (0-based): linear warm-up, then a cosine.

    Args:
        step: 0 .. total_steps - 1.
        total_steps: the cosine reaches min_rate here.
        warmup_steps: steps until the factor is 1.
        min_rate: factor at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return min_rate + (1 - min_rate) * 0.5 * (1 + math.cos(math.pi * progress))
