"""One training step: encode the fresh items, score every position against all items, update.

Legend: R items in training · M fresh items · P positions · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch, ModalityInput
from mmrec.errors import NonFiniteLoss
from mmrec.model import RecommenderModel
from mmrec.training.losses import catalogue_softmax, met_before


@dataclass(frozen=True)
class StepOutput:
    """What a step reports: floats where it was asked to, tensors otherwise."""

    loss: Tensor
    grad_norm: Tensor
    num_targets: int


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
    kept = present & (random.random(present.shape) >= chance)
    # an item that lost everything keeps one of its own at random
    order = random.random(present.shape) * present
    lost = ~kept.any(1) & present.any(1)
    kept[lost, order[lost].argmax(1)] = True
    device = batch.fresh.device
    return {name: torch.from_numpy(kept[:, i].copy()).to(device) for i, name in enumerate(names)}


def _present(media: ModalityInput) -> Any:
    if isinstance(media, dict):
        return media["present"].cpu().numpy()
    return media.mask.any(1).cpu().numpy()


def compute_loss(
    model: RecommenderModel,
    batch: Batch,
    bank: Tensor | None,
    config: TrainingConfig,
    *,
    id_dropout: float,
    modality_dropout: float,
    repeats_forbidden: bool,
) -> tuple[Tensor, int]:
    """Loss of a batch with gradients for every trainable parameter.

    Args:
        model: in training mode.
        batch: on the model's device.
        bank: (R, D) last content of every item; None where the item is its id.
        config: loss settings.
        id_dropout: share of rows treated as never met.
        modality_dropout: chance that a present modality is masked.
        repeats_forbidden: leave items met before out of the candidates.

    Returns:
        The mean loss and the number of targets it is the mean of.
    """
    num_items = model.counts.shape[0]
    content, dropped = None, None
    if bank is not None:
        content = bank
        if batch.media:
            keep = draw_kept_modalities(
                batch, chance=modality_dropout, random=step_generator(config.seed, batch, 4)
            )
            weight = batch.inverse_probability.clamp(max=config.max_inverse_probability)
            fresh = scale_gradient(model.content(batch.media, keep), weight)
            content = bank.index_copy(0, batch.fresh, fresh.to(bank.dtype))
        if model.id_part is not None:
            draw = step_generator(config.seed, batch, 5).random(num_items)
            dropped = torch.from_numpy(draw < id_dropout).to(bank.device)
    items = model.embeddings(content, dropped)
    bias = model.bias(model.counts, dropped)
    states = model.users(items.index_select(0, batch.inputs), batch.offsets)
    counted = None if bool(batch.counted.all()) else batch.counted
    excluded = None
    if repeats_forbidden and config.mask_seen != "none":
        excluded = met_before(
            batch.inputs, batch.offsets, everything=config.mask_seen == "all", counted=counted
        )
    targets = batch.targets
    if counted is not None:
        states, targets = states[counted], targets[counted]
    loss = catalogue_softmax(
        states / model.temperature,
        items,
        bias,
        targets,
        excluded=excluded,
        label_smoothing=config.label_smoothing,
    )
    return loss, targets.shape[0]


def train_step(
    model: RecommenderModel,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    config: TrainingConfig,
    *,
    id_dropout: float,
    modality_dropout: float,
    repeats_forbidden: bool,
) -> StepOutput:
    """Forward, backward, clip, update; then the fresh items' content goes to the bank.

    Raises:
        NonFiniteLoss: the gradient is NaN or infinite; names epoch, batch and loss.
    """
    device = batch.inputs.device
    # dropout is a function of (seed, epoch, batch), so that a resumed run repeats it
    torch.manual_seed(int(step_generator(config.seed, batch, 6).integers(2**62)))
    model.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss, num_targets = compute_loss(
            model,
            batch,
            bank,
            config,
            id_dropout=id_dropout,
            modality_dropout=modality_dropout,
            repeats_forbidden=repeats_forbidden,
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise NonFiniteLoss(
            f"gradient of epoch {batch.epoch}, batch {batch.index} is {float(grad_norm)} at loss "
            f"{float(loss.detach())}: lower training.learning_rate or set training.precision=fp32"
        )
    optimiser.step()
    if bank is not None and batch.media:
        with torch.no_grad():
            bank.index_copy_(0, batch.fresh, encode(model, batch.media, config.precision))
    return StepOutput(loss=loss.detach(), grad_norm=grad_norm, num_targets=num_targets)


@torch.no_grad()
def encode(
    model: RecommenderModel, media: dict[str, ModalityInput], precision: str = "fp32"
) -> Tensor:
    """Content (M, D) as it is used: no dropout, every modality that is there."""
    model.eval()
    device = model.counts.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model.content(media).float()
