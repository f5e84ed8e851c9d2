"""A range test of the learning rate: `mmrec train --find-lr`.

The rate grows by a constant factor from step to step; where the loss falls fastest is a good rate
to train with, and where it blows up one to stay well below. Source: Smith, arXiv 1506.01186,
section 3.3; the steepest point as fastai has it. Every part's rate keeps its share of
training.learning_rate. Nothing is written but the state caches, which the run would fill too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmrec.build import Assembly, assemble
from mmrec.config import Config
from mmrec.data.batch import batch_loader
from mmrec.errors import ConfigError, NonFiniteLoss
from mmrec.training.distributed import ALONE
from mmrec.training.optimiser import make_optimiser
from mmrec.training.start import start_content
from mmrec.training.step import train_step
from mmrec.training.train import wrap
from mmrec.training.unfreeze import set_trained
from mmrec.vectors import encode_content

SMOOTHING = 0.9
"""Share of the running loss that a step keeps: batches differ more than rates do."""
BLOWN_UP = 2.0
"""Times the best smoothed loss at which the test ends."""


@dataclass(frozen=True)
class RatePoint:
    """One step: the rate it was taken with, the loss before it, and the running loss."""

    rate: float
    loss: float
    smoothed: float


def find_rate(
    config: Config,
    data_folder: Path,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    num_steps: int = 120,
) -> list[RatePoint]:
    """Takes steps at growing rates.

    Args:
        config: complete settings; its schedule is not used.
        data_folder: a prepared folder.
        lowest: rate of the first step.
        highest: rate of the last, unless the loss blows up before.
        num_steps: fewer where an epoch has fewer batches.

    Raises:
        ConfigError: an epoch has too few batches to see anything.
    """
    torch.manual_seed(config.training.seed)
    assembly = assemble(config, data_folder)
    num_steps = min(num_steps, assembly.stream.num_batches(0))
    if num_steps < 10:
        raise ConfigError(
            f"--find-lr takes a step a batch, and an epoch has {num_steps}: lower "
            f"training.batch_size ({config.training.batch_size}) so that it has 10 or more"
        )
    start_content([assembly])
    optimiser, trained = make_optimiser(assembly.model, config), wrap(assembly, ALONE)
    set_trained(assembly.model, config, config.training.max_epochs)
    shares = [group["lr"] / config.training.learning_rate for group in optimiser.param_groups]
    bank = _bank(assembly)
    points: list[RatePoint] = []
    running = 0.0
    loader = batch_loader(
        assembly.stream,
        epoch=config.training.freeze_content_epochs,
        first_batch=0,
        num_workers=config.data.num_workers,
    )
    for step, batch in zip(range(num_steps), loader, strict=False):
        rate = lowest * (highest / lowest) ** (step / (num_steps - 1))
        for group, share in zip(optimiser.param_groups, shares, strict=True):
            group["lr"] = rate * share
        try:
            output = train_step(
                trained, batch.to(assembly.device), optimiser, bank, config.training
            )
        except NonFiniteLoss:
            break
        loss = float(output.loss)
        running = SMOOTHING * running + (1 - SMOOTHING) * loss
        smoothed = running / (1 - SMOOTHING ** (step + 1))
        points.append(RatePoint(rate, loss, smoothed))
        if not math.isfinite(loss) or smoothed > BLOWN_UP * min(each.smoothed for each in points):
            break
    return points


def steepest(points: Sequence[RatePoint]) -> float | None:
    """The rate at which the running loss falls fastest over the log of the rate.

    Returns:
        None where it never falls.
    """
    if len(points) < 5:
        return None
    losses = np.array([each.smoothed for each in points])
    best = int(losses.argmin())
    # the first steps tell batches apart, not rates; what comes after the best is no candidate
    slopes = np.gradient(losses)[3 : best + 1]
    if not len(slopes) or slopes.min() >= 0:
        return None
    return points[3 + int(slopes.argmin())].rate


def _bank(assembly: Assembly) -> Tensor | None:
    if assembly.source is None:
        return None
    return encode_content(assembly.model, assembly.source, assembly.item_index_of)
