"""One training step: encode the fresh items, score every position against all items, update.

    fresh items' tokens ─┬─ as they are ─► content ─► with the id part among all rows ─► loss
                         └─ with noise ──► content ─► alone, as if never met ─────────► cold loss

Legend: R items in training · M fresh items · P positions · D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.tokens import Tokens
from fusion.item import Output, drop_modalities
from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch, ModalityInput, share_of
from mmrec.errors import NonFiniteLoss
from mmrec.model import RecommenderModel
from mmrec.training import budget
from mmrec.training.distributed import ALONE, GatherContents, Ranks
from mmrec.training.losses import (
    alignment_loss,
    catalogue_softmax,
    met_before,
    sampled_softmax,
)

MIN_ALIGNMENT_TEMPERATURE = 0.01  # as CLIP's: logits scaled by 100 at most


@dataclass(frozen=True)
class Losses:
    """What a forward pass gives.

    Attributes:
        loss: of items as they are.
        cold_loss: of fresh items as if never met; None where there is none.
        num_targets: positions that both are means of.
        content: (M, D) of the fresh items as they are, before the update; None where nothing is
            encoded.
        alignment: of contents by one modality alone; None where it has no weight.
    """

    loss: Tensor
    cold_loss: Tensor | None
    num_targets: int
    content: Tensor | None
    alignment: Tensor | None


@dataclass(frozen=True)
class StepOutput:
    """What a step reports.

    Attributes:
        loss: of items as they are.
        cold_loss: of fresh items as if never met; None where there is none.
        alignment: of contents by one modality alone; None where there is none.
        grad_norm: of their weighted sum, before clipping.
        num_targets: positions that the losses are means of.
    """

    loss: Tensor
    cold_loss: Tensor | None
    alignment: Tensor | None
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
    # drawn for the items of all ranks, so that an item loses the same whoever encodes it
    drawn = random.random((2, len(batch.fresh), len(names)))[:, batch.own[0] :]
    drawn = drawn[:, : present.shape[0]]
    if drawn.shape[1] < present.shape[0]:  # a rank's stand-in, which nobody looks at
        drawn = np.ones((2, *present.shape))
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
        clean: (M, D) as it is used, gradients times min(1 / pi, cap) and content_gradient.
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

    Encoders run once for all, and without dropout: what they give goes to the bank as well.
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


def compute_losses(
    model: RecommenderModel,
    batch: Batch,
    bank: Tensor | None,
    config: TrainingConfig,
    *,
    modality_dropout: float,
    repeats_forbidden: bool,
    gather: GatherContents | None = None,
) -> Losses:
    """Losses of a batch with gradients for every trainable parameter.

    Both score every position against all R items, or against the batch's candidates. In the first,
    items are as they are in use. In the second the fresh ones are what an item without events is:
    content alone, without popularity; and what makes content hold for items not trained on, dropout
    and modalities left out, acts there and nowhere else. Users and id parts of warm items thus
    learn on embeddings without noise: with a share of all items treated as never met in one loss
    for both, warm NDCG@10 was a tenth lower (see docs/log.md).

    Args:
        model: in training mode.
        batch: on the model's device.
        bank: (R, D) last content of every item; None where the item is its id.
        config: loss settings.
        modality_dropout: chance that a present modality is masked in the second loss.
        repeats_forbidden: leave items met before out of the candidates.
        gather: puts the items of all ranks together; None for a process alone.

    Returns:
        The mean losses, and what was encoded.
    """
    content, as_new, fresh = bank, None, None
    if bank is not None and batch.media:
        fresh = fresh_content(
            model, batch, config, modality_dropout=modality_dropout, gather=gather
        )
        content = bank.index_copy(0, batch.fresh, fresh.clean.to(bank.dtype))
        as_new = fresh.noisy if config.cold_weight else None
    items, bias = model.embeddings(content), model.bias(model.counts)
    tables = [(items, bias)]
    if as_new is not None:
        # the others only stand beside them here: what they are is learnt in the first loss
        table = items.detach().index_copy(0, batch.fresh, as_new.to(items.dtype))
        tables.append((table, bias.detach().index_fill(0, batch.fresh, 0.0)))

    def losses_of(part: Batch) -> tuple[Tensor, ...]:
        return _losses_of_histories(
            model, part, items, tables, config, repeats_forbidden=repeats_forbidden
        )

    parts = split_histories(batch, config.micro_batches)
    if len(parts) == 1:
        sums: Sequence[Tensor] = losses_of(batch)
    else:  # each part's activations are made anew in its backward pass, and never all at once
        found = [checkpoint(losses_of, part, use_reentrant=False) for part in parts]
        sums = [torch.stack(terms).sum() for terms in zip(*found, strict=True)]
    return Losses(
        loss=sums[0],
        cold_loss=sums[1] if len(sums) > 1 else None,
        num_targets=int(batch.counted.sum()),
        content=None if fresh is None else fresh.clean.detach().float(),
        alignment=None if fresh is None else fresh.alignment,
    )


def _losses_of_histories(
    model: RecommenderModel,
    batch: Batch,
    items: Tensor,
    tables: Sequence[tuple[Tensor, Tensor]],
    config: TrainingConfig,
    *,
    repeats_forbidden: bool,
) -> tuple[Tensor, ...]:
    """The share of some histories in the mean loss over each table.

    Args:
        model: in training mode.
        batch: the histories.
        items: (R, D) embeddings that histories are read by.
        tables: (R, D) what positions are compared with, and (R,) its biases.
        config: loss settings.
        repeats_forbidden: leave items met before out of the candidates.
    """
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
    queries = states / model.temperature
    # a mean over all ranks' positions, times their number: gradients are averaged over ranks
    share = targets.shape[0] * batch.world / max(batch.num_counted, 1)
    softmax: Callable[..., Tensor] = catalogue_softmax
    if batch.candidates is not None:
        softmax = partial(
            sampled_softmax, candidates=batch.candidates, log_inclusion=batch.log_inclusion
        )
    return tuple(
        share
        * softmax(
            queries,
            table,
            bias,
            targets,
            excluded=excluded,
            label_smoothing=config.label_smoothing,
        )
        for table, bias in tables
    )


def split_histories(batch: Batch, num_parts: int) -> list[Batch]:
    """Consecutive histories of a batch, in at most so many parts of even size."""
    num_histories = batch.offsets.shape[0] - 1
    num_parts = min(num_parts, num_histories)
    if num_parts == 1:
        return [batch]
    parts = []
    for number in range(num_parts):
        first, last = share_of(num_histories, rank=number, world=num_parts)
        offsets = batch.offsets[first : last + 1]
        start, stop = int(offsets[0]), int(offsets[-1])
        parts.append(
            replace(
                batch,
                inputs=batch.inputs[start:stop],
                targets=batch.targets[start:stop],
                counted=batch.counted[start:stop],
                offsets=offsets - start,
            )
        )
    return parts


class TrainedModel(nn.Module):
    """A model with its losses as its forward pass: what data parallelism wraps.

    Args:
        model: whose parameters train.
        config: loss settings.
        modality_dropout: chance that a present modality is masked in the second loss.
        repeats_forbidden: leave items met before out of the candidates.
        gather: puts the items of all ranks together; None for a process alone.
    """

    def __init__(
        self,
        model: RecommenderModel,
        config: TrainingConfig,
        *,
        modality_dropout: float,
        repeats_forbidden: bool,
        gather: GatherContents | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.modality_dropout, self.repeats_forbidden = modality_dropout, repeats_forbidden
        self.gather = gather
        if gather is not None and model.fusion is not None:
            gather.attach(model.fusion.out)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Self:
        """Switch dropout; encoders have none: what they give goes to the bank as well."""
        super().train(mode)
        self.model.encoders.eval()
        return self

    def forward(self, batch: Batch, bank: Tensor | None) -> tuple[Tensor, Losses]:
        """The weighted sum of a batch's losses, and its terms."""
        if self.gather is not None:
            self.gather.num_items = batch.fresh.shape[0]
        config, device = self.config, batch.inputs.device
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = compute_losses(
                self.model,
                batch,
                bank,
                config,
                modality_dropout=self.modality_dropout,
                repeats_forbidden=self.repeats_forbidden,
                gather=self.gather,
            )
        total = losses.loss
        if losses.cold_loss is not None:
            total = total + config.cold_weight * losses.cold_loss
        if losses.alignment is not None:
            total = total + config.alignment_weight * losses.alignment
        extra = budget.penalty(self.model)
        return total if extra is None else total + extra, losses


def train_step(
    trained: nn.Module,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    config: TrainingConfig,
    ranks: Ranks = ALONE,
) -> StepOutput:
    """Forward, backward, clip, update; the fresh items' content goes to the bank.

    Args:
        trained: a TrainedModel, or what wraps one.
        batch: on the model's device.
        optimiser: over its parameters.
        bank: (R, D) last content of every item, written in place; None where the item is its id.
        config: loss settings.
        ranks: who trains.

    Raises:
        NonFiniteLoss: the gradient is NaN or infinite; names epoch, batch and loss.
    """
    # dropout is a function of (seed, epoch, batch, rank), so that a resumed run repeats it
    seed = int(step_generator(config.seed, batch, 6).integers(2**62))
    torch.manual_seed(seed + ranks.rank)
    trained.train()
    total, losses = trained(batch, bank)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    grad_norm = nn.utils.clip_grad_norm_(trained.parameters(), config.max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise NonFiniteLoss(
            f"gradient of epoch {batch.epoch}, batch {batch.index} is {float(grad_norm)} at loss "
            f"{float(total.detach())}: lower training.learning_rate or set training.precision=fp32"
        )
    optimiser.step()
    if bank is not None and losses.content is not None:
        # of before the update: to encode once more would cost a third of an end-to-end step
        with torch.no_grad():
            bank.index_copy_(0, batch.fresh, losses.content)
    return StepOutput(
        loss=ranks.mean(losses.loss.detach()),
        cold_loss=None if losses.cold_loss is None else ranks.mean(losses.cold_loss.detach()),
        alignment=None if losses.alignment is None else losses.alignment.detach(),
        grad_norm=grad_norm,
        num_targets=batch.num_counted,
    )
