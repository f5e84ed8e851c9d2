"""A batch in parts that are computed one after the other: `training.micro_batches`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmrec.data.batch import Batch, share_of


def _shown_within(shown: Tensor, start: int, stop: int) -> Tensor:
    """Pairs of the positions start..stop, numbered from there."""
    own = shown[:, (shown[0] >= start) & (shown[0] < stop)]
    return torch.stack([own[0] - start, own[1]])


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
        signals = batch.signals
        if signals is not None:
            fields = 0 if signals.users is None else len(signals.users) // num_histories
            own = slice(start, stop)
            signals = signals.part(own, own, slice(first * fields, last * fields))
        parts.append(
            replace(
                batch,
                inputs=batch.inputs[start:stop],
                targets=batch.targets[start:stop],
                counted=batch.counted[start:stop],
                weights=None if batch.weights is None else batch.weights[start:stop],
                offsets=offsets - start,
                signals=signals,
                shown=_shown_within(batch.shown, start, stop),
                heads={name: each.part(slice(start, stop)) for name, each in batch.heads.items()},
            )
        )
    return parts
