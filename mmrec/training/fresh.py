"""The items that a step encodes: their content as it is used, with noise, and by one medium alone.

    fresh items' media ─ encoders, once ─► tokens ─┬─ as they are ─────────────────► clean
                                                   ├─ dropout, modalities left out ─► noisy
                                                   └─ each modality by itself ──────► one_modality

Legend: M fresh items · U unlabelled ones beside them · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.tokens import Tokens
from fusion.item import drop_modalities
from fusion.modes import dropout_off, mean_held
from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch
from mmrec.data.media import ModalityInput
from mmrec.model import RecommenderModel
from mmrec.training.distributed import GatherContents, gathering
from mmrec.training.one_modality import OneModality, encode_one_modality


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


@dataclass(frozen=True)
class FreshContent:
    """The fresh items' content, encoded once.

    Attributes:
        clean: (M, D) without dropout of the fusion.
        noisy: (M, D) with dropout and modalities left out.
        weight: (M,) of a content's gradient where users meet it, min(1 / pi, cap).
        one_modality: contents by one modality alone, of the unlabelled items too, which come behind
            the fresh ones; None where no loss asks for them.
        unlabelled: (U, D) of the unlabelled items, without dropout of the fusion; None where there
            are none, or no loss asks for them.
    """

    clean: Tensor
    noisy: Tensor
    weight: Tensor
    one_modality: OneModality | None
    unlabelled: Tensor | None


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
    others = None if batch.unlabelled is None else model.tokens(batch.unlabelled.media)
    one_modality, unlabelled = None, None
    if (config.alignment_weight or config.modality_weight) and len(tokens) > 1:
        with gathering(gather, batch.num_items):
            one_modality = encode_one_modality(model, _joined(batch, tokens, others), gather)
    if others is not None and batch.queries is not None:
        with gathering(gather, batch.num_items[1:]), dropout_off(model.fusion):
            with mean_held(model.fusion):
                unlabelled = model.fusion(others)
    return FreshContent(clean, noisy, weight, one_modality, unlabelled)


def _joined(
    batch: Batch, fresh: dict[str, Tokens], others: dict[str, Tokens] | None
) -> dict[str, Tokens]:
    """Tokens of this rank's fresh items and, behind them, of its unlabelled ones."""
    if others is None or batch.unlabelled is None:
        return fresh
    # without the stand-ins of a rank that has none of a kind, unless it has none of either
    first, second = (stop - start for start, stop in (batch.own, batch.unlabelled.own))
    first = max(first, 1 - second)
    return {
        name: Tokens(
            torch.cat([each.values[:first], others[name].values[:second]]),
            torch.cat([each.mask[:first], others[name].mask[:second]]),
        )
        for name, each in fresh.items()
    }
