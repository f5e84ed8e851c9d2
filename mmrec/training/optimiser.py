"""AdamW with decay on matrices only, and the schedule of its rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmrec.config import Config
from mmrec.model import RecommenderModel


def parameter_groups(model: RecommenderModel, config: Config) -> list[dict[str, object]]:
    """Trainable parameters by rate and decay, each group named.

    No decay on norms, biases, embeddings and other learned vectors: only the weights of linear,
    convolution and recurrent layers have it.
    """
    decayed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase))
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("weight")
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole, _, rest = name.partition(".")
            part = rest.split(".")[0] if whole == "encoders" else whole
            part = part if whole in ("encoders", "fusion") else "users and ids"
            groups.setdefault((part, id(parameter) in decayed), []).append(parameter)
    training = config.training
    content_rate = training.content_learning_rate or training.learning_rate
    rates = {
        modality.replace(".", "_"): encoder.learning_rate or content_rate
        for modality, encoder in config.encoders.items()
    }
    rates["fusion"] = content_rate
    return [
        {
            "name": f"{part}, {'decayed' if decay else 'not decayed'}",
            "params": parameters,
            "lr": rates.get(part, training.learning_rate),
            "weight_decay": training.weight_decay if decay else 0.0,
        }
        for (part, decay), parameters in groups.items()
    ]


def make_optimiser(model: RecommenderModel, config: Config) -> torch.optim.AdamW:
    """AdamW over the groups; update theta -= rate * (m / (sqrt(v) + eps) + decay * theta).

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """
    return torch.optim.AdamW(
        parameter_groups(model, config), betas=config.training.betas, eps=1e-8, fused=True
    )


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
