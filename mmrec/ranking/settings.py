"""Settings of a ranker, which `mmrec train-ranker RUN ranker.field=value` changes."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from pydantic import Field, ValidationError

from data_prep.documents import explain_validation_error
from mmrec.config import Section
from mmrec.errors import ConfigError

PREFIX = "ranker."


class RankerConfig(Section):
    """The second stage. Its width, its history and its heads are those of its retriever."""

    candidates: int = Field(100, ge=2)
    """K: how many of retrieval's list are ranked anew. Time of a request grows with it; what is not
    among them cannot be found (the recall of the first stage is reported)."""
    lists: int = Field(20_000, ge=1)
    """Most lists of training users that retrieval is asked for; memory grows with it."""
    shown: int = Field(10, ge=0)
    """Most items of a list that were shown there and not met, where the log has such."""
    num_blocks: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    """Attention heads; they divide model.width."""
    dropout: float = Field(0.1, ge=0, lt=1)
    latent_dropout: float = Field(0.1, ge=0, lt=1)
    """Chance that a training step sees a user's candidates without their latents, as an item is
    seen that has come, or has changed, since the ranker was trained."""
    new_share: float = Field(0.3, ge=0, lt=1)
    """Share of a step's candidates that are shown as if nobody had met them, of a model that knows
    media: by content alone, with the score that retrieval gives them as they are. Training lists
    hold no new item that is met next, so without it the ranker puts new ones last."""
    max_epochs: int = Field(10, ge=1)
    patience: int = Field(3, ge=1)
    """Epochs without a better NDCG@10 on validation before training ends."""
    batch_size: int = Field(64, ge=1)
    """Lists a step."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    seed: int = Field(0, ge=0)


def parse_ranker_config(overrides: Sequence[str]) -> RankerConfig:
    """Settings with `ranker.field=value` changes.

    Raises:
        ConfigError: a change is not written so, names no setting, or its value is not allowed.
    """
    changed = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.startswith(PREFIX):
            raise ConfigError(f"override {override!r}: write {PREFIX}field=value")
        try:
            changed[key.removeprefix(PREFIX)] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"override {override!r}: not YAML: {reason}") from None
    try:
        return RankerConfig.model_validate(changed)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error, RankerConfig, "ranker")) from None
