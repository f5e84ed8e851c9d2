"""States of two catalogues' media, as one encoder gives them: how far they are apart."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from data_prep.shards import PreparedData
from mmrec.data.items import ItemInputs
from mmrec.drift.lines import Line, enough
from mmrec.drift.sides import IntArray
from mmrec.drift.state_gaps import classifier_gap, kernel_gap
from mmrec.drift.two_samples import FloatArray
from mmrec.encoder_builders import EncoderParts

logger = logging.getLogger(__name__)

TILE = 64
"""Items encoded at once."""
Drawn = tuple[PreparedData, IntArray]
Progress = Callable[[str, int, int | None], None]
"""Told the stage, items done and items in all."""


def state_lines(
    modality: str,
    parts: EncoderParts,
    earlier: Drawn,
    new: Drawn,
    *,
    device: torch.device,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Line]:
    """Classifier two-sample test and maximum mean discrepancy of a modality's pooled states.

    Args:
        modality: that both sides have.
        parts: its encoder, on the device and in evaluation mode, and its transform.
        earlier: a folder and some of its items, those that it was trained on or the like.
        new: those it is asked about.
        device: of the encoder.
        seed: of folds and divisions.
        progress: told of each tile of items.
    """
    states = [
        pooled_states(modality, parts, *side, device=device, stage=f"{modality}, {whose}",
                      progress=progress)
        for whose, side in (("earlier", earlier), ("new", new))
    ]  # fmt: skip
    if not enough(*map(len, states)):
        return [Line("states", modality, "two-sample AUC", None)]
    return [
        Line("states", modality, "two-sample AUC", classifier_gap(states[0], states[1], seed=seed)),
        Line("states", modality, "MMD share", kernel_gap(states[0], states[1], seed=seed)),
    ]


@torch.no_grad()
def pooled_states(
    modality: str,
    parts: EncoderParts,
    data: PreparedData,
    rows: IntArray,
    *,
    device: torch.device,
    stage: str = "",
    progress: Progress | None = None,
) -> FloatArray:
    """Pooled states of those items that have the medium and whose medium can be read.

    Args:
        modality: of the encoder.
        parts: the encoder and its transform.
        data: the prepared folder.
        rows: item_index of those asked for.
        device: of the encoder.
        stage: what is told to `progress` beside the numbers.
        progress: told of each tile of items.

    Returns:
        (n, W) float32.
    """
    inputs = ItemInputs(data, {modality: parts.transform})
    found = []
    for start in range(0, len(rows), TILE):
        samples = inputs.samples(rows[start : start + TILE], modality)
        samples = [each for each in samples if each is not None]
        if samples:
            media = parts.transform.collate(samples)
            on_device = {name: value.to(device) for name, value in media.items()}
            found.append(parts.encoder.pooled(parts.encoder(on_device)).float().cpu().numpy())
        if progress is not None:
            progress(stage, min(start + TILE, len(rows)), len(rows))
    if inputs.broken:
        first = inputs.broken[0]
        logger.warning(
            "%s: %d of %d media of %s cannot be read and are left out; the first: item %s: %s",
            data.path,
            len(inputs.broken),
            len(rows),
            modality,
            first.item_id,
            first.reason,
        )
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)
