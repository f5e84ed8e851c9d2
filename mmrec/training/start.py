"""What a fresh fusion is told of the catalogue before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.item import TokenProjection
from mmrec.build import Assembly
from mmrec.data.ragged import IntArray
from mmrec.vectors import encode_content

# Items whose contents say how the fusion's last layer starts: enough for any width in use.
MOST_ITEMS = 16_384


def start_content(assembly: Assembly) -> None:
    """Finds the components of modalities that have some, and starts contents apart.

    A run that starts from another's weights has both already. See `fusion.item.TokenProjection` and
    `fusion.item.Output`. Items of training alone are read, at most 16,384 of them, chosen by the
    run's seed.
    """
    if assembly.source is None or assembly.config.training.start_from is not None:
        return
    fusion: Any = assembly.model.fusion
    assert fusion is not None
    random = np.random.default_rng((assembly.config.training.seed, 7))
    size = min(assembly.num_rows, MOST_ITEMS)
    chosen = np.sort(random.choice(assembly.item_index_of, size, replace=False))
    for projection in fusion.projections.values():
        if projection.num_components:
            _fit(projection, assembly, chosen)
    hidden: list[tuple[Tensor, ...]] = []
    hook = fusion.out.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs))
    try:
        encode_content(assembly.model, assembly.source, chosen)
    finally:
        hook.remove()
    fusion.out.spread(*(torch.cat(each) for each in zip(*hidden, strict=True)))


def _fit(projection: TokenProjection, assembly: Assembly, chosen: IntArray) -> None:
    pooled: list[Tensor] = []
    hook = projection.register_forward_pre_hook(
        lambda _, inputs: pooled.append(projection.pooled(inputs[0]))
    )
    try:
        assert assembly.source is not None
        encode_content(assembly.model, assembly.source, chosen)
    finally:
        hook.remove()
    projection.fit(torch.cat(pooled))
