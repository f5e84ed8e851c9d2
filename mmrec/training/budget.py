"""AdaLoRA's budget of ranks over the encoders of a model, through training and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from encoders.adapters import (
    budget_tensors,
    orthogonality,
    restore_budget,
    spend_budget,
    start_budget,
)
from encoders.cut import StackedEncoder
from mmrec.model import RecommenderModel


def start(model: RecommenderModel, total_steps: int) -> None:
    """Tells every encoder how long training is; others than AdaLoRA's do not care."""
    for _, encoder in _stacked(model):
        start_budget(encoder, total_steps)


def spend(model: RecommenderModel, step: int) -> None:
    """Lets ranks go after the optimiser's step, whose gradients must still be there."""
    for _, encoder in _stacked(model):
        spend_budget(encoder, step)


def penalty(model: RecommenderModel) -> Tensor | None:
    """What AdaLoRA adds to the loss; None where no encoder trains by it."""
    terms = [term for _, each in _stacked(model) if (term := orthogonality(each)) is not None]
    return torch.stack(terms).sum() if terms else None


def tensors(model: RecommenderModel) -> dict[str, Tensor]:
    """What a checkpoint needs beside the parameters, by `ENCODER|NAME`; often empty."""
    return {
        f"{name}|{key}": value
        for name, encoder in _stacked(model)
        for key, value in budget_tensors(encoder).items()
    }


def restore(model: RecommenderModel, saved: Mapping[str, Tensor]) -> None:
    """Puts back what `tensors` gave."""
    for name, encoder in _stacked(model):
        own = {key.partition("|")[2]: v for key, v in saved.items() if key.startswith(f"{name}|")}
        restore_budget(encoder, own)


def _stacked(model: RecommenderModel) -> Iterator[tuple[str, StackedEncoder]]:
    for name, encoder in model.encoders.items():
        if isinstance(encoder, StackedEncoder):
            yield name, encoder
