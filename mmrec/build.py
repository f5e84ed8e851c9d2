"""Turns settings and a prepared folder into the parts of a run; the only place that does.

Config + PreparedData ─► encoders, caches, model, stream, validation cases = Assembly
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import PreparedData, Split
from mmrec.config import Config
from mmrec.data.batch import BatchStream
from mmrec.data.cache import StateCache
from mmrec.data.corpus import corpus, never_cold
from mmrec.data.fill import fill_cache
from mmrec.data.histories import EpochPlan, IntArray
from mmrec.data.item_labels import describe_labels
from mmrec.data.items import Broken, ItemInputs
from mmrec.data.labels import LabelSource, describe_heads
from mmrec.data.media import ItemSource
from mmrec.data.queries import open_queries
from mmrec.data.reorder import Reorder
from mmrec.data.signal_spec import describe_signals
from mmrec.data.signals import SignalSource
from mmrec.data.stand_ins import StandIns
from mmrec.data.targets import event_weights, target_rule
from mmrec.data.thinning import open_split
from mmrec.data.unlabelled import UnlabelledSource, find_unlabelled
from mmrec.data.user_share import histories_of_share, in_share
from mmrec.data.vocabulary import warn_of_unknown
from mmrec.drift.warn import warn_of_drift
from mmrec.encoder_builders import Document, EncoderParts
from mmrec.encoder_parts import AttributeFields, make_encoder
from mmrec.errors import ConfigError, MediaError
from mmrec.evaluation.protocol import Cases, load_cases, training_popularity
from mmrec.model import RecommenderModel
from mmrec.model_inputs import LiveInputs, ModelInputs
from mmrec.network import make_model
from mmrec.training.take_over import StartRun, take_over
from mmrec.training.transfer import Transfer
from mmrec.training.validate import check_stop_on
from mmrec.vectors import encode_content, modalities_of

__all__ = [
    "Assembly",
    "LiveInputs",
    "ModelInputs",
    "SharedParts",
    "SourceBuilder",
    "assemble",
    "attribute_fields",
    "filled_source",
    "in_share",
    "pick_device",
    "vector_width",
]

logger = logging.getLogger(__name__)
SourceBuilder = Callable[
    [Config, PreparedData, Mapping[str, EncoderParts], RecommenderModel, torch.device],
    tuple[ModelInputs, dict[str, str]],
]
"""Gives the media of items and the dtypes of their cached states."""


@dataclass
class Assembly:
    """Everything a run trains with.

    item_index_of: (R,) catalogue index of each row of the id table.
    source: media of items; None for a model of ids.
    validation: cases; None where the split has no targets.
    """

    config: Config
    data: PreparedData
    split: Split
    model: RecommenderModel
    stream: BatchStream
    source: ModelInputs | None
    item_index_of: IntArray
    popularity: IntArray
    validation: Cases | None
    encoder_documents: dict[str, Document]
    cache_dtypes: dict[str, str]
    repeats_forbidden: bool
    device: torch.device

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.item_index_of.shape[0])

    @property
    def has(self) -> Tensor | None:
        """What every item has, see `modalities_of`; None for a model of ids."""
        return modalities_of(self.model, self.data.items.has)

    def all_content(self, precision: str = "fp32") -> Tensor | None:
        """Content (N, D) of every item of the catalogue; None for a model of ids."""
        if self.source is None:
            return None
        everything = np.arange(len(self.data.items))
        return encode_content(self.model, self.source, everything, precision=precision)


class SharedParts(Protocol):
    """What several catalogues of a run have in common, as the first of them made it.

    parts: encoders by modality, of catalogues before this one.
    """

    parts: dict[str, EncoderParts]

    def texts(self) -> Iterator[str]:
        """Texts of all catalogues, for a vocabulary."""
        ...

    def tie(self, model: RecommenderModel, parts: Mapping[str, EncoderParts]) -> None:
        """Puts the common modules in the place of a model's own, or takes note of them."""
        ...


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def assemble(
    config: Config,
    data_folder: Path,
    *,
    make_source: SourceBuilder | None = None,
    rank: int = 0,
    world: int = 1,
    shared: SharedParts | None = None,
) -> Assembly:
    """Builds what a run trains with; fills the state caches where they are not.

    Args:
        config: complete settings.
        data_folder: a prepared folder.
        make_source: gives the media of items; None: the filled caches and the shards.
        rank: of this process among those that train, for its share of each batch.
        world: how many they are.
        shared: what the run's other catalogues have made already; None for one alone.

    Raises:
        ConfigError: a setting does not fit the data.
        MediaError: more media are broken than data.max_broken_media allows.
        ShardError: a file of the folder is not the one that was written.
    """
    device = pick_device()
    data = PreparedData.open(data_folder)
    data.verify_tables()
    _check_age(config, data)
    split = open_split(data, config.data.split, config.data.event_share, config.data.new_users)
    histories = histories_of_share(data, split, config.data.user_share)
    validation = None
    if split.targets("validation").height > 0:
        validation = load_cases(data, split, "validation")
        if config.data.user_share < 1:
            chosen = in_share(data.user_ids, config.data.user_share)
            validation = validation.take(np.flatnonzero(chosen[validation.user_index]))
        check_stop_on(config.training.stop_on, validation)
    popularity = training_popularity(split)
    item_index_of = np.flatnonzero(popularity > 0).astype(np.int64)
    if item_index_of.shape[0] < 2:
        raise ConfigError(
            f"split {split.name}: {item_index_of.shape[0]} items have training events, 2 are the "
            "least; check the catalogue's split and targets"
        )
    counts = torch.from_numpy(popularity[item_index_of])
    start = None
    if config.training.start_from is not None:
        start = StartRun.open(config.training.start_from)
    learnt = {} if start is None else start.state["encoders"]
    made: Mapping[str, EncoderParts] = {} if shared is None else shared.parts
    transfer = Transfer.open(config)
    known = made if transfer is None else transfer.rebuild()
    texts = partial(corpus, data) if shared is None else shared.texts
    parts = {
        modality: known[modality]
        if modality in known
        else make_encoder(
            modality,
            encoder,
            texts=texts,
            vector_width=partial(vector_width, data),
            attributes=attribute_fields(data),
            learnt=learnt.get(modality),
        )
        for modality, encoder in config.encoders.items()
        if _is_in(data, modality)
    }
    transform: Any = parts["text"].transform if "text" in parts else None
    if transform is not None and rank == 0:
        warn_of_unknown(data, transform, config.encoders["text"].weights)
    if rank == 0:
        warn_of_drift(config, data, transform)
    signals = describe_signals(config.model.signals, data, histories)
    if start is not None:
        signals = start.signals(signals)
    row_of = np.full(len(data.items), -1, np.int64)
    row_of[item_index_of] = np.arange(item_index_of.shape[0])
    heads, item_means = describe_heads(
        config.model.heads, data, histories, row_of, num_rows=item_index_of.shape[0]
    )
    labels = describe_labels(config, data, item_index_of, popularity[item_index_of])
    torch.manual_seed(config.training.seed)
    model = make_model(
        config,
        parts,
        counts,
        ready=made.keys(),
        signals=signals,
        heads=heads,
        labels=labels.sets,
    )
    for name, means in item_means.items():
        model.value_offsets[name].copy_(torch.from_numpy(means.offsets))
    if shared is not None:
        shared.tie(model, parts)
    if start is not None:  # before the caches: states depend on what is below
        item_ids = [data.items.item_ids[row] for row in item_index_of]
        # without validation there is nothing to choose it on
        take_over(
            model,
            item_ids,
            start,
            data_hashes=data.past_hashes,
            keep_offset=validation is None,
        )
        start.warn_of_met(data, split)
    if transfer is not None:  # likewise
        transfer.give(model, parts.keys())
    model = model.to(device)
    source: ModelInputs | None = None
    dtypes: dict[str, str] = {}
    if parts:
        source, dtypes = (make_source or filled_source)(config, data, parts, model, device)
    queries = None
    if config.training.query_weight:
        own = config.encoders["text"].cache_dtype
        dtype: Any = dtypes.get("text", own) if "text" in model.cached else None
        queries = open_queries(
            data.items.text,
            parts["text"].transform,
            item_index_of,
            dtype=dtype,
            size=config.training.query_items,
            seed=config.training.seed,
        )
    unlabelled = None
    if config.training.unlabelled_items and source is not None:
        size, seed = config.training.unlabelled_items, config.training.seed
        unlabelled = UnlabelledSource(find_unlabelled(data, split), source, size=size, seed=seed)
    told = None
    if model.reader is not None:
        told = SignalSource(
            model.reader,
            data.user_attributes,
            dropout=config.model.signals.dropout,
            seed=config.training.seed,
        )
    plan = EpochPlan(
        histories.lengths,
        histories.shard_of,
        batch_size=config.training.batch_size,
        max_length=config.data.max_history,
        shuffle_window=config.data.shuffle_window,
        bucket_batches=config.data.bucket_batches,
        seed=config.training.seed,
        windows=config.data.windows,
    )
    stream = BatchStream(
        plan,
        histories,
        row_of=row_of,
        item_index_of=item_index_of,
        items=_for_ranks(source, config, data, item_index_of) if world > 1 else source,
        fresh_items=config.training.fresh_items,
        targets=target_rule(data),
        seed=config.training.seed,
        freeze_epochs=config.training.freeze_content_epochs,
        candidates=config.training.candidates,
        counts=popularity[item_index_of],
        rank=rank,
        world=world,
        queries=queries,
        unlabelled=unlabelled,
        hidden_share=config.training.hidden_share if config.model.history.both_ways else None,
        signals=told,
        start=config.model.history.start,
        event_weights=event_weights(config.training.event_weights, data),
        heads=LabelSource(heads, item_means, row_of) if heads else None,
        item_labels=labels,
        reorder=Reorder(config.data.reorder, config.training.seed) if config.data.reorder else None,
    )
    return Assembly(
        config=config,
        data=data,
        split=split,
        model=model,
        stream=stream,
        source=source,
        item_index_of=item_index_of,
        popularity=popularity,
        validation=validation,
        encoder_documents={name: each.document for name, each in parts.items()},
        cache_dtypes=dtypes,
        repeats_forbidden=data.catalogue.repeats == "forbid",
        device=device,
    )


def _for_ranks(
    source: ModelInputs | None, config: Config, data: PreparedData, item_index_of: IntArray
) -> ItemSource | None:
    """The media of a rank's share of items; where the model is sharded, of every kind that trains.

    With DDP a rank may leave out an encoder that none of its items has a medium for.
    """
    if source is None or config.training.sharding == "none":
        return source
    trained = [name for name, each in config.encoders.items() if each.trainable_blocks != 0]
    return StandIns(
        source,
        {
            name: item_index_of[data.items.has(name)[item_index_of]]
            for name in trained
            if _is_in(data, name)
        },
    )


def filled_source(
    config: Config,
    data: PreparedData,
    parts: Mapping[str, EncoderParts],
    model: RecommenderModel,
    device: torch.device,
) -> tuple[ModelInputs, dict[str, str]]:
    """Caches of the frozen encoders, filled, and raw inputs of the others."""
    caches: dict[str, StateCache] = {}
    broken: list[Broken] = []
    media = 0
    for name in sorted(model.cached):
        inputs = ItemInputs(data, {name: parts[name].transform})
        cache, report = fill_cache(
            data.path / "cache",
            inputs,
            parts[name].encoder,
            name,
            dtype=config.encoders[name].cache_dtype,
            device=device,
        )
        logger.info("%s", report.line())
        caches[name] = cache
        broken += report.broken
        media += report.num_items - report.missing
    if len(broken) > config.data.max_broken_media * max(media, 1):
        first = broken[0]
        raise MediaError(
            f"{len(broken)} of {media} media cannot be read, more than data.max_broken_media "
            f"{config.data.max_broken_media} allows; the first: item {first.item_id}, "
            f"{first.modality}: {first.reason}"
        )
    raw = {name: each.transform for name, each in parts.items() if name not in model.cached}
    dtypes: dict[str, str] = {name: cache.spec.dtype for name, cache in caches.items()}
    return ModelInputs(caches, ItemInputs(data, raw) if raw else None), dtypes


def _check_age(config: Config, data: PreparedData) -> None:
    """Refuses a half-life where no item has an age.

    Raises:
        ConfigError: the catalogue file says of no column when items came.
    """
    hours, spans = config.evaluation.half_life_hours, data.catalogue.items.available
    if hours is not None and (spans is None or spans.start is None):
        raise ConfigError(
            f"evaluation.half_life_hours is {hours:g}, but the catalogue file names no column "
            "items.available.from, which age is counted from; add it and prepare again, or drop "
            "the setting"
        )


def _is_in(data: PreparedData, modality: str) -> bool:
    """Whether the data have this modality.

    Raises:
        ConfigError: they do not.
    """
    if modality in data.items.modalities:
        return True
    raise ConfigError(
        f"encoders.{modality}: the data have no such modality; they have "
        f"{', '.join(data.items.modalities)}"
    )


def attribute_fields(data: PreparedData) -> AttributeFields:
    """The items' attributes, with the records of those that are no cold item of any split."""
    return AttributeFields(
        {name: spec.type for name, spec in data.catalogue.items.attributes.items()},
        lambda: (data.items.record(row)["attributes"] for row in never_cold(data)),
    )


def vector_width(data: PreparedData, name: str) -> int:
    """Width of a ready-made vector.

    Raises:
        ConfigError: no item has one of that name.
    """
    for item_index in np.flatnonzero(data.items.has(f"vector.{name}")):
        vector = data.items.vector(int(item_index), name)
        if vector is not None:
            return int(vector.shape[0])
    raise ConfigError(f"encoders.vector.{name}: no item has this vector")
