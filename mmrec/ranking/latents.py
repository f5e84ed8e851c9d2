"""Latents of every item, which candidates are shown by: written once, then mapped.

Legend: N items · Q latents · D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fusion.item import LatentFusion
from mmrec.data.media import media_to
from mmrec.loaded import LoadedRun, open_source
from mmrec.retrieval.ranker_inputs import Latents

TILE = 256


@torch.no_grad()
def write_latents(loaded: LoadedRun, path: Path) -> bool:
    """Writes (N, 1 + Q, D) fp16: the content of each item, then the latents it is made of.

    A tile of items is in memory at a time.

    Args:
        loaded: a finished run.
        path: a new .npy file.

    Returns:
        False where the model's fusion has no latents; nothing is written then.
    """
    model = loaded.model
    fusion = model.fusion
    if not isinstance(fusion, LatentFusion):
        return False
    source = open_source(loaded)
    assert source is not None and loaded.content is not None
    num_items = len(loaded.item_ids)
    shape = (num_items, 1 + fusion.latents.shape[0], model.width)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    # the content that the run keeps, so that use can tell whether an item is still the same
    file[:, 0] = loaded.content.half().cpu().numpy()
    model.eval()
    for start in range(0, num_items, TILE):
        rows = np.arange(start, min(start + TILE, num_items))
        tokens = model.tokens(media_to(source.collate(rows), loaded.device))
        file[rows, 1:] = fusion.read(tokens)[1].half().cpu().numpy()
    file.flush()
    return True


def map_latents(path: Path) -> Latents | None:
    """What `write_latents` wrote; None where it wrote nothing."""
    if not path.is_file():
        return None
    found: Latents = np.load(path, mmap_mode="r", allow_pickle=False)
    return found
