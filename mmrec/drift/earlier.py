"""The earlier side: a finished run with its catalogue, or a prepared folder and fresh encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_prep.shards import PreparedData
from mmrec.build import attribute_fields, pick_device, vector_width
from mmrec.config import Config
from mmrec.data.corpus import corpus
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import make_encoder
from mmrec.errors import UserError
from mmrec.loaded import load_run
from mmrec.retrieval.bundle import BUNDLE_FILE


@dataclass(frozen=True)
class Earlier:
    """What a new catalogue is compared with.

    Attributes:
        data: the catalogue.
        parts: encoders by modality, on the device and in evaluation mode; none where none is known.
        device: of the encoders.
        has_learnt_texts: the text model's vocabulary was learnt from a catalogue, not pretrained.
    """

    data: PreparedData
    parts: Mapping[str, EncoderParts]
    device: torch.device
    has_learnt_texts: bool = False


def open_earlier(
    against: Path, config: Config | None = None, data_folder: Path | None = None
) -> Earlier:
    """Opens a run with its data, or a prepared folder.

    Args:
        against: the folder of either.
        config: whose encoders read a prepared folder; a run has its own.
        data_folder: the run's prepared folder, where it has moved.

    Raises:
        CheckpointMismatch: the run is not finished, or its data are others.
        ConfigError: an encoder does not fit the data.
        ShardError: it is no prepared folder either, or a damaged one.
        UserError: it is a bundle, or what is given belongs to the other of the two.
    """
    if (against / BUNDLE_FILE).is_file():
        raise UserError(
            f"{against}: is a bundle, which holds no catalogue: name the run that it was exported "
            "from, or a prepared folder"
        )
    is_run = (against / "config.yaml").is_file()
    if is_run and config is not None:
        raise UserError(
            f"--config is given, and {against} is a run, which has settings of its own: leave "
            "--config out, or name a prepared folder"
        )
    if is_run:
        loaded = load_run(against, data_folder)
        assert loaded.data is not None
        text = loaded.config.encoders.get("text")
        is_learnt = text is not None and text.weights is None
        return Earlier(loaded.data, loaded.parts, loaded.device, is_learnt)
    if data_folder is not None:
        raise UserError(
            f"--data is given, and {against} is no run: --data says where the data of a run have "
            "moved; leave it out"
        )
    data, device = PreparedData.open(against), pick_device()
    data.verify_tables()
    if config is None:
        return Earlier(data, {}, device)
    text = config.encoders.get("text")
    is_learnt = text is not None and text.weights is None
    return Earlier(data, _fresh_parts(config, data, device), device, is_learnt)


def _fresh_parts(
    config: Config, data: PreparedData, device: torch.device
) -> dict[str, EncoderParts]:
    """Encoders as a run on these data would begin with, of the modalities that the data have."""
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        parts = {
            modality: make_encoder(
                modality,
                encoder,
                texts=partial(corpus, data),
                vector_width=partial(vector_width, data),
                attributes=attribute_fields(data),
            )
            for modality, encoder in config.encoders.items()
            if modality in data.items.modalities
        }
    for each in parts.values():
        each.encoder.to(device).eval()
    return parts
