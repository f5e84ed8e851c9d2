"""Parameters and memory of a model, from its settings alone: `mmrec describe`.

    settings, number of items ─► the network on torch's meta device ─► parameters, bytes held

The meta device knows shapes and holds nothing: a model of billions of parameters is described in
seconds wherever. `mmrec train --dry-run` says more (caches, time) of what fits, with its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from mmrec.config import Config, EncoderConfig
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import describe_encoder, rebuild_encoder
from mmrec.errors import ConfigError
from mmrec.network import make_model
from mmrec.training.dry_run import SHARING_RANKS, held_bytes


@dataclass(frozen=True)
class Description:
    """A model without its data.

    Attributes:
        num_items: of training that it would have.
        parameters: trainable and frozen, by part.
        held_bytes: parameters, their gradients, the optimiser's state and the bank, on one device
            that has all of them.
        shared_bytes: the same of each of a number of ranks, with training.sharding=full.
        left_out: modalities whose size the catalogue decides; neither their encoder nor what the
            fusion reads it by is counted. They are small, as are signals and heads, named here too.
    """

    num_items: int
    parameters: Mapping[str, Mapping[Literal["trainable", "frozen"], int]]
    held_bytes: int
    shared_bytes: Mapping[int, int]
    left_out: tuple[str, ...]


def describe(config: Config, *, num_items: int) -> Description:
    """Describes the model of some settings; reads no data, and nothing of weights but their kind.

    Args:
        config: complete settings.
        num_items: items in training.

    Raises:
        ConfigError: an encoder cannot be made of its settings, or none is left to count.
        WeightsError: the folder of an encoder's weights does not say what they are.
    """
    documents, left_out = {}, []
    for modality, encoder in config.encoders.items():
        if _depends_on_catalogue(modality, encoder):
            left_out.append(modality)
            continue
        documents[modality] = describe_encoder(
            modality, encoder, texts=_no_texts, vector_width=lambda _: 0
        )
        documents[modality]["options"].pop("max_chunks", None)  # has no parameters, looks at values
    if left_out and not documents:
        raise ConfigError(
            f"encoders are {', '.join(left_out)}: the catalogue decides how large they are; use "
            "mmrec train --dry-run"
        )
    told = {
        "model.signals": config.model.signals.any,
        "model.heads": bool(config.model.heads),
        "model.labels": bool(config.model.labels),
    }
    left_out += [name for name, is_on in told.items() if is_on]
    with torch.device("meta"):
        parts: dict[str, EncoderParts] = {
            modality: rebuild_encoder(document) for modality, document in documents.items()
        }
        model = make_model(config, parts, torch.zeros(num_items, device="cpu"))
    return Description(
        num_items=num_items,
        parameters=model.parameter_counts(),
        held_bytes=held_bytes(model, config, num_items),
        shared_bytes={
            ranks: held_bytes(model, config, num_items, ranks=ranks) for ranks in SHARING_RANKS
        },
        left_out=tuple(left_out),
    )


def _depends_on_catalogue(modality: str, encoder: EncoderConfig) -> bool:
    small_text = modality == "text" and encoder.kind == "small"  # its vocabulary is learnt
    return small_text or encoder.kind in ("vector", "fields")


def _no_texts() -> Iterable[str]:
    return ()
