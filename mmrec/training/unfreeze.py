"""Which blocks of the encoders train in an epoch: a function of the epoch alone."""

from __future__ import annotations

from encoders.cut import StackedEncoder
from mmrec.config import Config, EncoderConfig
from mmrec.mixed_model import MixedModel
from mmrec.model import RecommenderModel


def blocks_at(epoch: int, encoder: EncoderConfig, *, num_blocks: int) -> int:
    """Blocks that train, from the top: 0 none, num_blocks + 1 the stem as well.

    Args:
        epoch: 0-based.
        encoder: its settings.
        num_blocks: of its stack.
    """
    wanted = encoder.trainable_blocks
    most = num_blocks + 1 if wanted == "all" else wanted
    if epoch < encoder.frozen_epochs:
        return 0
    if encoder.unfreeze_every == 0:
        return most
    return min(most, 1 + (epoch - encoder.frozen_epochs) // encoder.unfreeze_every)


def set_trained(model: RecommenderModel | MixedModel, config: Config, epoch: int) -> None:
    """Freezes and unfreezes the encoders' parameters for an epoch.

    Call it after the optimiser was made: a frozen parameter has no gradient and is left alone.
    Source of the order: Howard and Ruder, arXiv 1801.06146, section 3.3 (gradual unfreezing).
    """
    for modality, settings in config.encoders.items():
        encoder = model.encoder(modality)
        if settings.trainable_blocks == 0 or not isinstance(encoder, StackedEncoder):
            continue
        encoder.train_top(blocks_at(epoch, settings, num_blocks=len(encoder.stack)))
