"""The items that a step encodes: their content as it is used, with noise, and by one medium alone.

    fresh items' media ─ encoders, once ─► tokens ─┬─ as they are ─────────────────► clean
                                                   ├─ dropout, modalities left out ─► noisy
                                                   └─ each modality by itself ──────► alignment

Legend: M fresh items · D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.item import Output, drop_modalities
from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch, ModalityInput
from mmrec.model import RecommenderModel
from mmrec.training.distributed import GatherContents
from mmrec.training.losses import alignment_loss

MIN_ALIGNMENT_TEMPERATURE = 0.01  # as CLIP's: logits scaled by 100 at most


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a weight per row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: D102
        (weight,) = ctx.saved_tensors
        return grad_outputs[0] * weight[:, None], None


def scale_gradient(values: Tensor, weight: Tensor) -> Tensor:
    """(M, D) values as they are; their gradient times weight (M,)."""
    scaled: Tensor = _ScaleGradient.apply(values, weight)
    return scaled


def step_generator(seed: int, batch: Batch, purpose: int) -> np.random.Generator:
    """Random numbers of one step and purpose: a function of (seed, epoch, batch) alone."""
    return np.random.default_rng((seed, batch.epoch, purpose, batch.index))


def draw_kept_modalities(
    batch: Batch, *, chance: float, random: np.random.Generator
) -> dict[str, Tensor] | None:
    """Which modalities of the fresh items stay; an item keeps at least one of those it has.

    Returns:
        (M,) bool by modality, or None where nothing is dropped.
    """
    names = sorted(batch.media)
    if chance == 0 or len(names) < 2:
        return None
    present = np.stack([_present(batch.media[name]) for name in names], axis=1)
    # drawn for the items of all ranks, so that an item loses the same whoever encodes it
    drawn = random.random((2, len(batch.fresh), len(names)))[:, batch.own[0] :]
    drawn = drawn[:, : present.shape[0]]
    missing = present.shape[0] - drawn.shape[1]  # a rank's stand-ins, which nobody looks at
    drawn = np.pad(drawn, ((0, 0), (0, missing), (0, 0)), constant_values=1.0)
    kept = present & (drawn[0] >= chance)
    # an item that lost everything keeps one of its own at random
    order = drawn[1] * present
    lost = ~kept.any(1) & present.any(1)
    kept[lost, order[lost].argmax(1)] = True
    device = batch.fresh.device
    return {name: torch.from_numpy(kept[:, i].copy()).to(device) for i, name in enumerate(names)}


def _present(media: ModalityInput) -> Any:
    if isinstance(media, dict):
        return media["present"].cpu().numpy()
    return media.mask.any(1).cpu().numpy()


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[None]:
    """Lets a module in training mode compute without its dropout."""
    dropouts = [each for each in module.modules() if isinstance(each, nn.Dropout | nn.Dropout1d)]
    for each in dropouts:
        each.eval()
    yield
    for each in dropouts:
        each.train()


@contextmanager
def mean_held(fusion: nn.Module) -> Iterator[None]:
    """Lets a fusion in training mode compute without moving its running mean."""
    outputs = [each for each in fusion.modules() if isinstance(each, Output)]
    kept = [each.momentum for each in outputs]
    for each in outputs:
        each.momentum = 1.0
    yield
    for each, momentum in zip(outputs, kept, strict=True):
        each.momentum = momentum


@dataclass(frozen=True)
class FreshContent:
    """The fresh items' content, encoded once.

    Attributes:
        clean: (M, D) without dropout of the fusion, gradients times min(1 / pi, cap) and
            content_gradient.
        noisy: (M, D) with dropout and modalities left out, gradients times min(1 / pi, cap).
        alignment: of contents by one modality alone; None where it has no weight.
    """

    clean: Tensor
    noisy: Tensor
    alignment: Tensor | None


def fresh_content(
    model: RecommenderModel,
    batch: Batch,
    config: TrainingConfig,
    *,
    modality_dropout: float,
    gather: GatherContents | None = None,
) -> FreshContent:
    """Encodes the fresh items.

    Encoders run once for all, with their own dropout, if they have some.
    """
    assert model.fusion is not None
    weight = batch.inverse_probability.clamp(max=config.max_inverse_probability)
    keep = draw_kept_modalities(
        batch, chance=modality_dropout, random=step_generator(config.seed, batch, 4)
    )
    tokens = model.tokens(batch.media)
    with dropout_off(model.fusion):
        clean = model.fusion(tokens)
    noisy = model.fusion(tokens if keep is None else drop_modalities(tokens, keep))
    alignment = None
    if config.alignment_weight and len(tokens) > 1:
        alignment = _alignment(model, tokens, gather)
    return FreshContent(
        scale_gradient(clean, weight * config.content_gradient),
        scale_gradient(noisy, weight),
        alignment,
    )


def _alignment(
    model: RecommenderModel, tokens: dict[str, Tokens], gather: GatherContents | None
) -> Tensor:
    """InfoNCE between what each modality alone makes of an item; the items of all ranks."""
    assert model.fusion is not None and model.log_alignment_temperature is not None
    scale = model.log_alignment_temperature.clamp(min=math.log(MIN_ALIGNMENT_TEMPERATURE)) * -0.5
    contents, present = {}, {}
    with dropout_off(model.fusion), mean_held(model.fusion):
        for name, each in tokens.items():
            contents[name] = model.fusion({name: each}) * scale.exp()
            has = each.mask.any(1)
            present[name] = has if gather is None else gather.rows(has)
    return alignment_loss(contents, present)
