"""AdaLoRA's budget of ranks over the encoders of a model, through training and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from encoders.adapters import (
    budget_tensors,
    orthogonality,
    restore_budget,
    spend_budget,
    start_budget,
)
from encoders.cut import StackedEncoder


def start(model: nn.Module, total_steps: int) -> None:
    """Tells every encoder how long training is; others than AdaLoRA's do not care."""
    for _, encoder in _stacked(model):
        start_budget(encoder, total_steps)


def spend(model: nn.Module, step: int) -> None:
    """Lets ranks go after the optimiser's step, whose gradients must still be there."""
    for _, encoder in _stacked(model):
        spend_budget(encoder, step)


def penalty(model: nn.Module) -> Tensor | None:
    """What AdaLoRA adds to the loss; None where no encoder trains by it."""
    terms = [term for _, each in _stacked(model) if (term := orthogonality(each)) is not None]
    return torch.stack(terms).sum() if terms else None


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint needs beside the parameters, by `ENCODER|NAME`; often empty."""
    return {
        f"{name}|{key}": value
        for name, encoder in _stacked(model)
        for key, value in budget_tensors(encoder).items()
    }


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Puts back what `tensors` gave."""
    for name, encoder in _stacked(model):
        own = {key.partition("|")[2]: v for key, v in saved.items() if key.startswith(f"{name}|")}
        restore_budget(encoder, own)


def _stacked(model: nn.Module) -> Iterator[tuple[str, StackedEncoder]]:
    for name, module in model.named_modules():
        if isinstance(module, StackedEncoder):
            yield name, module
