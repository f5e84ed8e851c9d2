"""Settings -> the network of a run: encoders cut, fusion, id part, user model."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from torch import Tensor, nn

from encoders.adapters import adapt
from encoders.cut import StackedEncoder
from encoders.int8 import is_quantised
from fusion.heads import Head
from fusion.history import HistoryEncoder
from fusion.item import ConcatFusion, GatedFusion, LateFusion, LatentFusion, MeanFusion
from fusion.labels import LabelHead
from fusion.projection import Modality
from fusion.signals import SignalEncoder
from mmrec.config import Config, EncoderConfig
from mmrec.data.item_labels import LabelSet
from mmrec.data.labels import HeadSpec
from mmrec.data.signal_spec import SignalSpec
from mmrec.data.signals import SignalReader
from mmrec.encoder_builders import EncoderParts
from mmrec.errors import ConfigError
from mmrec.loss_weights import LossWeights
from mmrec.model import IdPart, Popularity, RecommenderModel

# settings, and by modality the width of its tokens and how many there are
FusionBuilder = Callable[[Config, dict[str, Modality]], nn.Module]


def make_model(
    config: Config,
    parts: Mapping[str, EncoderParts],
    counts: Tensor,
    *,
    ready: Container[str] = (),
    signals: SignalSpec | None = None,
    heads: Mapping[str, HeadSpec] | None = None,
    labels: Mapping[str, LabelSet] | None = None,
) -> RecommenderModel:
    """The network of a run.

    Args:
        config: the run's settings.
        parts: encoders by modality.
        counts: (R,) training events of each row of the id table.
        ready: modalities whose encoder another catalogue's model has been given already.
        signals: what it reads beside items; None for nothing.
        heads: what it tells beside the next item, by name.
        labels: what it tells of items, by name.
    """
    settings = config.model
    fusion = None
    encoders = {name: each.encoder for name, each in parts.items()}
    if settings.item != "id":
        modalities = {
            name: Modality(
                int(each.width),
                int(each.num_tokens),
                components=config.encoders[name].components,
                scale=config.encoders[name].scale,
            )
            for name, each in encoders.items()
        }
        fusion = FUSIONS[settings.fusion.kind](config, modalities)
    cached = frozenset(name for name in parts if config.encoders[name].trainable_blocks != "all")
    for name, encoder in encoders.items():
        if name in ready:
            continue
        _choose_trained(encoder, name, config.encoders[name])
        if isinstance(encoder, StackedEncoder):
            encoder.checkpointing = config.training.activation_checkpointing
    id_part = None
    if settings.item != "content":
        id_part = IdPart(
            counts,
            width=settings.width,
            bound=settings.id_bound,
            gate=settings.id_gate,
            alone=settings.item == "id",
        )
    history = HistoryEncoder(
        settings.width,
        max_length=config.data.max_history,
        num_blocks=settings.history.num_blocks,
        num_heads=settings.history.num_heads,
        dropout=settings.history.dropout,
        block=settings.history.block,
        num_head_tokens=int(settings.domain) + (len(signals.users) if signals else 0),
        both_ways=settings.history.both_ways,
        start=settings.history.start,
    )
    learnt = None
    if signals is not None:
        learnt = SignalEncoder(
            settings.width,
            event_columns=signals.num_event_columns,
            request_columns=signals.num_request_columns,
            user_columns=signals.num_user_columns,
            user_fields=len(signals.users),
        )
    return RecommenderModel(
        encoders=encoders,
        cached=cached,
        fusion=fusion,
        id_part=id_part,
        popularity=Popularity(counts) if settings.popularity else None,
        history=history,
        counts=counts,
        temperature=settings.temperature,
        min_temperature=settings.min_temperature,
        popularity_share=config.evaluation.popularity_share,
        new_boost=config.evaluation.new_boost,
        aligned=config.training.alignment_weight > 0 and len(parts) > 1,
        queried=config.training.query_weight > 0,
        domain=settings.domain,
        signals=learnt,
        reader=None if signals is None else SignalReader(signals),
        heads={
            name: Head(
                settings.width,
                scorer=settings.heads[name].scorer,
                base=spec.base,
                spread=spec.spread,
            )
            for name, spec in (heads or {}).items()
        },
        head_specs=heads,
        labels={
            name: LabelHead(settings.width, kind=each.kind, base=each.base)
            for name, each in (labels or {}).items()
        },
        label_sets=labels,
        loss_weights=_loss_weights(config),
    )


def _loss_weights(config: Config) -> LossWeights:
    heads, labels = config.model.heads, config.model.labels
    weights = {name: each.weight for name, each in heads.items()}
    weights |= {f"{name}_labels": each.weight for name, each in labels.items()}
    return LossWeights(
        weights,
        learned=config.training.loss_weights == "learned",
        squared={name for name, each in heads.items() if each.kind == "value"},
    )


def _choose_trained(encoder: Any, modality: str, config: EncoderConfig) -> None:
    """Cuts an encoder, so that nothing below trains, and adds what its method adds.

    Raises:
        ConfigError: it has no such cut, or the method does not fit it.
    """
    if not isinstance(encoder, StackedEncoder):
        if config.trainable_blocks not in (0, "all") or config.method != "full":
            raise ConfigError(
                f"encoders.{modality}.trainable_blocks is {config.trainable_blocks}, but an "
                f"encoder of kind '{config.kind}' has no weights: leave it at 0"
            )
        return
    if config.trainable_blocks != 0 and is_quantised(encoder):
        raise ConfigError(
            f"encoders.{modality}.trainable_blocks is {config.trainable_blocks}, but whole numbers "
            f"have no gradient: leave it at 0, or drop encoders.{modality}.options.int8"
        )
    try:
        if config.trainable_blocks != "all":
            encoder.cut_at(config.trainable_blocks)
        adapt(encoder, config.method, rank=config.rank)
    except ValueError as error:
        raise ConfigError(f"encoders.{modality}.{error}") from None


def _latents(config: Config, modalities: dict[str, Modality]) -> nn.Module:
    fusion = config.model.fusion
    return LatentFusion(
        modalities,
        width=config.model.width,
        num_latents=fusion.num_latents,
        num_layers=fusion.num_layers,
        num_heads=fusion.num_heads,
        dropout=fusion.dropout,
        feature_dropout=fusion.feature_dropout,
    )


def _of_means(make: Callable[..., nn.Module]) -> FusionBuilder:
    """A fusion that reads the mean of each modality's tokens."""

    def build(config: Config, modalities: dict[str, Modality]) -> nn.Module:
        settings = config.model
        return make(
            modalities, width=settings.width, feature_dropout=settings.fusion.feature_dropout
        )

    return build


FUSIONS: dict[str, FusionBuilder] = {
    "latents": _latents,
    "mean": _of_means(MeanFusion),
    "concat": _of_means(ConcatFusion),
    "gated": _of_means(GatedFusion),
    "late": _of_means(LateFusion),
}
