"""Turns settings and a prepared folder into the parts of a run; the only place that does.

Config + PreparedData ─► encoders, caches, model, stream, validation cases = Assembly
RUN or bundle         ─► model, item ids, contents                          = LoadedRun
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_prep.shards import PreparedData, Split
from encoders.adapters import adapt
from encoders.cut import StackedEncoder
from fusion.history import HistoryEncoder
from fusion.item import ConcatFusion, GatedFusion, LateFusion, LatentFusion, MeanFusion, Modality
from mmrec.config import Config, EncoderConfig, load_trained_config
from mmrec.data.batch import BatchStream, ItemSource, ModalityInput, TargetRule
from mmrec.data.cache import StateCache
from mmrec.data.corpus import corpus, never_cold
from mmrec.data.fill import fill_cache
from mmrec.data.histories import ChosenHistories, EpochPlan, HistorySource, IntArray
from mmrec.data.items import Broken, ItemInputs
from mmrec.data.live import live_states
from mmrec.data.queries import open_queries
from mmrec.data.stand_ins import StandIns
from mmrec.data.thinning import open_split
from mmrec.data.unlabelled import UnlabelledSource, find_unlabelled
from mmrec.encoder_parts import (
    AttributeFields,
    Document,
    EncoderParts,
    make_encoder,
    rebuild_encoder,
)
from mmrec.errors import CheckpointMismatch, ConfigError, MediaError
from mmrec.evaluation.protocol import Cases, load_cases, training_popularity
from mmrec.model import IdPart, Popularity, RecommenderModel
from mmrec.training.checkpoint import SCHEMA, load_model, read_tensors
from mmrec.training.take_over import take_over
from mmrec.training.validate import check_stop_on
from mmrec.vectors import encode_content

logger = logging.getLogger(__name__)

# settings, and by modality the width of its tokens and how many there are
FusionBuilder = Callable[[Config, dict[str, Modality]], nn.Module]


class ModelInputs:
    """What the model reads of items: states at the cut from caches, raw inputs where all trains."""

    def __init__(self, caches: Mapping[str, StateCache], raw: ItemInputs | None) -> None:
        self.caches, self.raw = dict(caches), raw

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items."""
        media: dict[str, ModalityInput] = {
            name: cache.read(item_index) for name, cache in self.caches.items()
        }
        if self.raw is not None:
            media.update(self.raw.collate(item_index))
        return media


class LiveInputs:
    """The same for items of no prepared folder: cached modalities are encoded on the spot.

    States are rounded as the cache rounds them, so that a new item scores as it would from there.
    """

    def __init__(
        self, inputs: ItemInputs, model: RecommenderModel, dtypes: Mapping[str, Any]
    ) -> None:
        self.inputs, self.model, self.dtypes = inputs, model, dict(dtypes)

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items."""
        device = self.model.counts.device
        media: dict[str, ModalityInput] = {}
        for name, raw in self.inputs.collate(item_index).items():
            if name not in self.model.cached:
                media[name] = raw
                continue
            on_device = {key: value.to(device) for key, value in raw.items()}
            media[name] = live_states(self.model.encoder(name), on_device, self.dtypes[name])
        return media


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
    split = open_split(data, config.data.split, config.data.event_share)
    histories = _training_histories(data, split, config.data.user_share)
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
    made: Mapping[str, EncoderParts] = {} if shared is None else shared.parts
    texts = partial(corpus, data) if shared is None else shared.texts
    parts = {
        modality: made[modality]
        if modality in made
        else make_encoder(
            modality,
            encoder,
            texts=texts,
            vector_width=lambda name: _vector_width(data, name),
            attributes=attribute_fields(data),
        )
        for modality, encoder in config.encoders.items()
        if _is_in(data, modality)
    }
    torch.manual_seed(config.training.seed)
    model = make_model(config, parts, counts, ready=made.keys())
    if shared is not None:
        shared.tie(model, parts)
    if config.training.start_from is not None:  # before the caches: states depend on what is below
        item_ids = [data.items.item_ids[row] for row in item_index_of]
        take_over(model, item_ids, config.training.start_from)
    model = model.to(device)
    source: ModelInputs | None = None
    dtypes: dict[str, str] = {}
    if parts:
        source, dtypes = (make_source or _make_source)(config, data, parts, model, device)
    row_of = np.full(len(data.items), -1, np.int64)
    row_of[item_index_of] = np.arange(item_index_of.shape[0])
    queries = None
    if config.training.query_weight:
        dtype: Any = dtypes.get("text", "float16") if "text" in model.cached else None
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


def in_share(user_ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """(U,) True for the users of a share; the same users in every run and on every machine."""
    digests = [hashlib.sha256(f"user_share:{user_id}".encode()).digest() for user_id in user_ids]
    places = np.array([int.from_bytes(each[:6], "big") for each in digests], np.int64)
    return places < share * 2**48


def _training_histories(data: PreparedData, split: Split, share: float) -> HistorySource:
    """Histories of the share of users.

    Raises:
        ConfigError: no user with a training history falls in it.
    """
    if share == 1:
        return split.train
    rows = np.flatnonzero(in_share(data.user_ids, share)[split.train.user_index])
    if not len(rows):
        raise ConfigError(
            f"data.user_share is {share:g}: none of the {len(split.train)} users with a training "
            "history falls in it; give a larger share"
        )
    return ChosenHistories(split.train, rows.astype(np.int64))


def make_model(
    config: Config,
    parts: Mapping[str, EncoderParts],
    counts: Tensor,
    *,
    ready: Container[str] = (),
) -> RecommenderModel:
    """The network of a run.

    Args:
        config: the run's settings.
        parts: encoders by modality.
        counts: (R,) training events of each row of the id table.
        ready: modalities whose encoder another catalogue's model has been given already.
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
        num_head_tokens=int(settings.domain),
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
        aligned=config.training.alignment_weight > 0 and len(parts) > 1,
        queried=config.training.query_weight > 0,
        domain=settings.domain,
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


def _make_source(
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
            data.path / "cache", inputs, parts[name].encoder, name, device=device
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


def _vector_width(data: PreparedData, name: str) -> int:
    for item_index in np.flatnonzero(data.items.has(f"vector.{name}")):
        vector = data.items.vector(int(item_index), name)
        if vector is not None:
            return int(vector.shape[0])
    raise ConfigError(f"encoders.vector.{name}: no item has this vector")


def target_rule(data: PreparedData) -> TargetRule:
    """Which events the catalogue lets be targets, in training too."""
    spec = data.catalogue.interactions.targets
    if spec.events is None:
        return TargetRule(None, spec.min_value)
    codes = {name: code for code, name in enumerate(data.manifest.get("event_types") or [])}
    return TargetRule(
        frozenset(codes[event] for event in spec.events if event in codes), spec.min_value
    )


def open_source(loaded: LoadedRun) -> ModelInputs | None:
    """The media of a loaded run's catalogue, as the model reads them; None for a model of ids.

    States that are not in the cache (a cache that was deleted, data that moved) are made again.
    """
    if not loaded.parts:
        return None
    assert loaded.data is not None
    source, _ = _make_source(loaded.config, loaded.data, loaded.parts, loaded.model, loaded.device)
    return source


@dataclass
class LoadedRun:
    """A trained model with what it needs to be used.

    item_index_of: (R,) row of `item_ids` behind each row of the id table.
    content: (N, D) of every item; None for a model of ids.
    dtypes: of the cached states, by modality.
    """

    run: Path
    config: Config
    state: dict[str, Any]
    model: RecommenderModel
    parts: dict[str, EncoderParts]
    data: PreparedData | None
    split: Split | None
    item_ids: Sequence[str]
    item_index_of: IntArray
    content: Tensor | None
    device: torch.device


def load_run(
    run: Path, data_folder: Path | None = None, overrides: Sequence[str] = ()
) -> LoadedRun:
    """Loads a finished run with the data it was trained on.

    Args:
        run: folder of the run.
        data_folder: the prepared folder where it has moved; null: as data.json says.
        overrides: `section.field=value` of settings that count in use.

    Raises:
        ConfigError: an override names a setting that training has settled, or is wrong.
        CheckpointMismatch: the run has no final model, or the data are others.
        ShardError: the data cannot be opened, or a file of theirs was changed.
    """
    final = run / "checkpoints" / "final"
    if not (final / "state.json").is_file():
        mixed = sorted(str(each) for each in (run / "catalogues").glob("*") if each.is_dir())
        if mixed:
            raise CheckpointMismatch(
                f"{run}: holds several catalogues; name the run of one: {', '.join(mixed)}"
            )
        raise CheckpointMismatch(
            f"{run}: holds no finished model; run: mmrec train … --run {run} --resume"
        )
    state = _read_json(final / "state.json")
    if state.get("schema") != SCHEMA:
        raise CheckpointMismatch(f"{final}: schema {state.get('schema')} is not {SCHEMA}")
    data, split = open_data(run, data_folder)
    config = load_trained_config(run / "config.yaml", overrides)
    split = open_split(data, split.name, config.data.event_share)
    device = pick_device()
    parts = {name: rebuild_encoder(each) for name, each in state["encoders"].items()}
    model = make_model(config, parts, torch.zeros(len(state["item_ids"]))).to(device)
    load_model(final, model)
    model.eval()
    index_of = data.items.index_of
    item_index_of = np.array([index_of(item_id) for item_id in state["item_ids"]], np.int64)
    content = None
    if parts:
        content = read_tensors(final / "content.safetensors")["content"].to(device)
    return LoadedRun(
        run=run,
        config=config,
        state=state,
        model=model,
        parts=parts,
        data=data,
        split=split,
        item_ids=data.items.item_ids,
        item_index_of=item_index_of,
        content=content,
        device=device,
    )


def open_data(run: Path, data_folder: Path | None = None) -> tuple[PreparedData, Split]:
    """The data that a run was trained on, checked.

    Args:
        run: folder of the run.
        data_folder: the prepared folder where it has moved; None: as data.json says.

    Raises:
        CheckpointMismatch: the data are others, or are not where data.json says.
        ShardError: the data cannot be opened, or a file of theirs was changed.
    """
    bound = _read_json(run / "data.json")
    if data_folder is None and not Path(bound["path"]).is_dir():
        raise CheckpointMismatch(
            f"{bound['path']}: there is no such folder, {run} was trained on it (data.json); "
            "give --data the folder where the data are now"
        )
    data = PreparedData.open(data_folder or Path(bound["path"]))
    if data.data_hash != bound["data_hash"]:
        raise CheckpointMismatch(
            f"{data.path}: data hash {data.data_hash[:12]} is not {bound['data_hash'][:12]}, "
            f"which {run} was trained on; give --data the folder it was trained on"
        )
    data.verify_tables()
    split = data.split(bound["split"])
    if split.hash != bound["split_hash"]:
        raise CheckpointMismatch(
            f"{data.path}: split {split.name} has hash {split.hash[:12]}, {run} was trained on "
            f"{bound['split_hash'][:12]}; give --data the folder it was trained on"
        )
    return data, split


def _read_json(path: Path) -> dict[str, Any]:
    """A document of a run.

    Raises:
        CheckpointMismatch: it is absent or no JSON.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is no JSON: {error}"
        raise CheckpointMismatch(f"{path}: {what}; copy the run again, or train it anew") from None
    return document
