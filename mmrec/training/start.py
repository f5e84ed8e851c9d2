"""What a fresh fusion is told of the catalogue before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.projection import TokenProjection
from mmrec.build import Assembly
from mmrec.data.ragged import IntArray
from mmrec.training.transfer import Transfer, centre
from mmrec.vectors import encode_content

# Items whose contents say how the fusion's last layer starts: enough for any width in use.
MOST_ITEMS = 16_384


def start_content(assemblies: Sequence[Assembly]) -> None:
    """Finds the components of modalities that have some, and starts contents apart.

    A run that starts from another's weights has both already; one that starts from another
    catalogue's has what it took, and centres contents on its own items. See
    `fusion.projection.TokenProjection` and `fusion.output.Output`. Items of training alone are
    read, at most 16,384 of a catalogue, chosen by the run's seed.

    Args:
        assemblies: of the run's catalogues, which share the layers that are told; usually one.
    """
    reading = [
        each
        for each in assemblies
        if each.source is not None and each.config.training.start_from is None
    ]
    if not reading:
        return
    chosen = [_choose(each) for each in reading]
    transfer = Transfer.open(reading[0].config)  # of a run on one catalogue
    taken = set() if transfer is None else {_key(name) for name in transfer.modalities}
    pooled: dict[TokenProjection, list[Tensor]] = {}
    for assembly, items in zip(reading, chosen, strict=True):
        fusion: Any = assembly.model.fusion
        for name, projection in fusion.projections.items():
            if projection.num_components and name not in taken:
                pooled.setdefault(projection, []).append(_pool(projection, assembly, items))
    for projection, parts in pooled.items():
        projection.fit(torch.cat(parts))
    outs: list[Any] = [assembly.model.fusion.out for assembly in reading]  # type: ignore[union-attr]
    hidden = [
        _hidden(out, assembly, items)
        for out, assembly, items in zip(outs, reading, chosen, strict=True)
    ]
    if transfer is not None:
        centre(outs[0], *hidden[0])
        return
    if len(outs) == 1:
        outs[0].spread(*hidden[0])
        return
    # several share the projection and have a mean each; what tells catalogues apart is no direction
    # to spread their items in
    outs[0].spread(torch.cat([each - each.mean(0) for (each,) in hidden]))
    for out, (each,) in zip(outs, hidden, strict=True):
        out.mean.copy_(out.projection(each).detach().mean(0))


def _key(modality: str) -> str:
    """A module's name may hold no dot (`vector.clip`)."""
    return modality.replace(".", "_")


def _choose(assembly: Assembly) -> IntArray:
    random = np.random.default_rng((assembly.config.training.seed, 7))
    size = min(assembly.num_rows, MOST_ITEMS)
    return np.sort(random.choice(assembly.item_index_of, size, replace=False))


def _pool(projection: TokenProjection, assembly: Assembly, chosen: IntArray) -> Tensor:
    pooled: list[Tensor] = []
    hook = projection.register_forward_pre_hook(
        lambda _, inputs: pooled.append(projection.pooled(inputs[0]))
    )
    try:
        _encode(assembly, chosen)
    finally:
        hook.remove()
    return torch.cat(pooled)


def _hidden(out: nn.Module, assembly: Assembly, chosen: IntArray) -> list[Tensor]:
    """What the last layer of the fusion is given for some items."""
    hidden: list[tuple[Tensor, ...]] = []
    hook = out.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs))
    try:
        _encode(assembly, chosen)
    finally:
        hook.remove()
    return [torch.cat(each) for each in zip(*hidden, strict=True)]


def _encode(assembly: Assembly, chosen: IntArray) -> Tensor:
    assert assembly.source is not None
    return encode_content(assembly.model, assembly.source, chosen)
