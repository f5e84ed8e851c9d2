"""Lets a module compute as in use, without its dropout, or without moving its mean, for a while.

The last two are for contents that are compared with others: noise on one side would be learnt as a
difference, and the mean is that of items as they are used, with all of their media.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fusion.output import Output


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, then the mode that was.

    A module that is in it already is not walked through: with its encoders a model has so many
    parts that setting their modes would take longer than encoding the history of one request.
    """
    if not module.training:
        yield
        return
    module.eval()
    try:
        yield
    finally:
        module.train()


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[None]:
    """Lets a module in training mode compute without its dropout."""
    dropouts = [each for each in module.modules() if isinstance(each, nn.Dropout | nn.Dropout1d)]
    for each in dropouts:
        each.eval()
    try:
        yield
    finally:
        for each in dropouts:
            each.train()


@contextmanager
def mean_held(fusion: nn.Module) -> Iterator[None]:
    """Lets a fusion in training mode compute without moving its running mean."""
    outputs = [each for each in fusion.modules() if isinstance(each, Output)]
    kept = [each.momentum for each in outputs]
    for each in outputs:
        each.momentum = 1.0
    try:
        yield
    finally:
        for each, momentum in zip(outputs, kept, strict=True):
            each.momentum = momentum
