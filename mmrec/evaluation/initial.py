"""Vectors of items as the encoders gave them before any training: what content_knn compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from encoders.encoder import Inputs
from encoders.tokens import Tokens
from mmrec.data.histories import IntArray
from mmrec.encoder_parts import make_encoder, rebuild_encoder
from mmrec.evaluation.baselines import Content, join_content
from mmrec.loaded import LoadedRun
from mmrec.model_inputs import ModelInputs


def initial_content(loaded: LoadedRun, source: ModelInputs | None) -> Content | None:
    """Vectors of every item, modality by modality; None for a model of ids.

    Those of an encoder frozen as a whole are in its cache. One that trained, in whole or above a
    cut, is built anew: with its pretrained weights where it has some, else with random ones.
    """
    if source is None:
        return None
    everything = np.arange(len(loaded.item_ids))
    parts = []
    for name, cache in source.caches.items():
        if cache.spec.pooled_width:
            present = torch.from_numpy(cache.present.copy())
            parts.append(Content(cache.pooled(everything), present))
        else:
            parts.append(_untrained(loaded, source, name, everything))
    for name in () if source.raw is None else source.raw.transforms:
        parts.append(_untrained(loaded, source, name, everything))
    return join_content(parts)


def _untrained(
    loaded: LoadedRun, source: ModelInputs, name: str, item_index: IntArray, tile: int = 128
) -> Content:
    encoder = _untrained_encoder(loaded, name)
    vectors, masks = [], []
    for start in range(0, item_index.shape[0], tile):
        media = _media(source, name, item_index[start : start + tile], loaded.device)
        with torch.no_grad():
            tokens = encoder.above(media) if isinstance(media, Tokens) else encoder(media)
            vectors.append(encoder.pooled(tokens).float().cpu())
        masks.append(media.mask.any(1) if isinstance(media, Tokens) else media["present"])
    return Content(torch.cat(vectors), torch.cat(masks).cpu())


def _untrained_encoder(loaded: LoadedRun, name: str) -> Any:
    config = loaded.config.encoders[name]
    torch.manual_seed(loaded.config.training.seed)
    if config.weights is None:
        encoder = rebuild_encoder(loaded.parts[name].document).encoder
    else:
        encoder = make_encoder(name, config, texts=tuple, vector_width=lambda _: 1).encoder
    if config.trainable_blocks != "all":
        encoder.cut_at(config.trainable_blocks)
    return encoder.to(loaded.device).eval()


def _media(
    source: ModelInputs, name: str, item_index: IntArray, device: torch.device
) -> Inputs | Tokens:
    """States at the cut, which no training changes, or raw inputs."""
    if name in source.caches:
        return source.caches[name].read(item_index).to(device)
    assert source.raw is not None
    inputs = source.raw.transforms[name].collate(source.raw.samples(item_index, name))
    return {key: value.to(device) for key, value in inputs.items()}
