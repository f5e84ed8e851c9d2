"""A complete run: its sections, and what one of them asks of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, model_validator

from data_prep.catalogue import explain_validation_error
from mmrec.config.data import CatalogueConfig, DataConfig
from mmrec.config.encoders import EncoderConfig
from mmrec.config.evaluation import EvaluationConfig
from mmrec.config.model import ModelConfig
from mmrec.config.section import Section
from mmrec.config.training import TrainingConfig
from mmrec.errors import ConfigError


class Config(Section):
    """A complete run."""

    name: str = "run"
    data: DataConfig = DataConfig()
    catalogues: dict[str, CatalogueConfig] = {}
    """Several catalogues in one run, by the names of `--data NAME=DIR`: they share encoders, fusion
    and user model, and each has its own ids, popularity, attributes, signals, heads and labels, as
    far as it has the columns: what no catalogue has is refused. Empty for one alone."""
    encoders: dict[str, EncoderConfig] = {}
    """One section a modality: text, image, audio, vector.NAME, attributes."""
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.item != "id" and not self.encoders:
            raise ValueError(
                f"model.item is '{self.model.item}' but encoders is empty: name an encoder for "
                "a modality, or set model.item=id"
            )
        if self.model.item == "id" and self.encoders:
            raise ValueError(
                "model.item is 'id' but encoders names "
                f"{', '.join(self.encoders)}: drop the encoders, or set model.item=both"
            )
        if self.training.start_from is not None and self.training.transfer_from is not None:
            raise ValueError(
                "training.start_from and training.transfer_from are both set: a run starts from "
                "one on the same catalogue, or from one on another; drop one of them"
            )
        if self.training.modality_weight and len(self.encoders) < 2:
            raise ValueError(
                f"training.modality_weight is {self.training.modality_weight:g} but encoders names "
                f"{', '.join(self.encoders) or 'none'}: modalities are told apart where there are "
                "two; name another encoder, or set training.modality_weight=0"
            )
        if self.training.unlabelled_items and not (
            self.training.alignment_weight or self.training.query_weight
        ):
            raise ValueError(
                f"training.unlabelled_items is {self.training.unlabelled_items}, but "
                "training.alignment_weight and training.query_weight are 0: no other loss does "
                "without labels; set one of them, or training.unlabelled_items=0"
            )
        if self.training.query_weight and "text" not in self.encoders:
            raise ValueError(
                f"training.query_weight is {self.training.query_weight:g} but encoders names no "
                "text: queries are pieces of texts; add encoders.text, or set "
                "training.query_weight=0"
            )
        if self.training.loss_weights == "learned" and not (self.model.heads or self.model.labels):
            raise ValueError(
                "training.loss_weights is 'learned' but model.heads and model.labels are empty: "
                "there is one task alone, and nothing to weigh it against; name a head, or set "
                "training.loss_weights=fixed"
            )
        if self.data.new_users and self.data.event_share < 1:
            raise ValueError(
                f"data.new_users is {self.data.new_users:g} and data.event_share "
                f"{self.data.event_share:g}: a run leaves out users or events; set one of them to "
                "its default, 0 or 1"
            )
        if not self.model.popularity and self.evaluation.popularity_share < 1:
            raise ValueError(
                f"evaluation.popularity_share is {self.evaluation.popularity_share:g} but "
                "model.popularity is false: there is no such term to take a share of; leave it at 1"
            )
        in_parts = ("adamw", "sgd")  # what they do to an entry, they know from that entry
        if self.training.sharding == "full" and self.training.optimiser not in in_parts:
            raise ValueError(
                f"training.sharding is 'full' but training.optimiser is "
                f"'{self.training.optimiser}', which cannot update a part of a matrix by itself: "
                f"set training.optimiser to {' or '.join(in_parts)}, or training.sharding=none"
            )
        self._check_order()
        history = self.model.history
        if history.both_ways and self.model.heads:
            raise ValueError(
                "model.history.both_ways is true, but model.heads asks what a user does next, "
                "and a model that reads both ways has seen it: set both_ways=false, or drop them"
            )
        if history.both_ways and self.model.signals.any:
            raise ValueError(
                "model.history.both_ways is true, but model.signals reads more than items, and "
                "what is told of a hidden event gives it away: set one of the two to false"
            )
        if history.has_heads and self.model.width % (2 * history.num_heads):
            raise ValueError(
                f"model.width {self.model.width} is no multiple of twice model.history.num_heads "
                f"{history.num_heads}"
            )
        if self.model.width % self.model.fusion.num_heads:
            raise ValueError(
                f"model.width {self.model.width} is no multiple of model.fusion.num_heads "
                f"{self.model.fusion.num_heads}"
            )
        for modality, encoder in self.encoders.items():
            moving = ("frozen_epochs", "unfreeze_every")
            for name in moving if encoder.trainable_blocks == 0 else ():
                if getattr(encoder, name):
                    raise ValueError(
                        f"encoders.{modality}.{name} is {getattr(encoder, name)}, but "
                        f"encoders.{modality}.trainable_blocks is 0: nothing of it ever trains; "
                        "drop one of the two"
                    )
            if encoder.method != "full" and encoder.trainable_blocks == 0:
                raise ValueError(
                    f"encoders.{modality}.method is '{encoder.method}', but "
                    f"encoders.{modality}.trainable_blocks is 0: nothing of it ever trains; "
                    "set trainable_blocks, or drop the method"
                )
            if encoder.method == "adalora" and self.training.sharding == "full":
                raise ValueError(
                    f"training.sharding is 'full' but encoders.{modality}.method is 'adalora', "
                    "which weighs whole matrices after each step: set "
                    f"encoders.{modality}.method=lora, or training.sharding=none"
                )
            if encoder.components is not None and encoder.trainable_blocks != 0:
                raise ValueError(
                    f"encoders.{modality}.components is {encoder.components}, but the encoder "
                    "trains: only states that stand still have lasting directions; drop it, or "
                    f"set encoders.{modality}.trainable_blocks=0"
                )
        return self

    def _check_order(self) -> None:
        """Refuses another order of histories beside what reads the order."""
        reads = {
            "model.signals.times": (self.model.signals.times, "gaps between events"),
            "model.heads": (self.model.heads, "what a user did next"),
            "training.shown_weight": (self.training.shown_weight, "what was shown before an event"),
        }
        for name, (is_set, what) in reads.items():
            if self.data.reorder and is_set:
                raise ValueError(
                    f"data.reorder is {self.data.reorder:g}, but {name} reads {what}, which "
                    f"histories in another order do not have: set data.reorder=0, or drop {name}"
                )


def parse_config(document: Mapping[str, Any], source: str = "config") -> Config:
    """Checks a mapping of settings.

    Args:
        document: nested settings as YAML gives them.
        source: name of the file, for messages.

    Raises:
        ConfigError: one line that names the key, its value and what is allowed.
    """
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error, Config, source)) from None
