"""A finished run in use: RUN ─► settings, data, model, item ids, contents = LoadedRun."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import EarlierState, PreparedData, Split
from mmrec.build import filled_source, pick_device
from mmrec.config import Config
from mmrec.data.ahead import TILE, load_ahead
from mmrec.data.histories import IntArray
from mmrec.data.item_labels import label_sets_of
from mmrec.data.labels import heads_of
from mmrec.data.signal_spec import spec_of
from mmrec.data.thinning import open_split
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import rebuild_encoder
from mmrec.errors import CheckpointMismatch
from mmrec.kept_tiles import KeptTiles, in_tiles
from mmrec.model import RecommenderModel
from mmrec.model_inputs import ModelInputs
from mmrec.network import make_model
from mmrec.run_config import load_trained_config
from mmrec.training.checkpoint import SCHEMA, load_model, read_tensors
from mmrec.vectors import encode_media, modalities_of

logger = logging.getLogger(__name__)


def open_source(loaded: LoadedRun) -> ModelInputs | None:
    """The media of a loaded run's catalogue, as the model reads them; None for a model of ids.

    States that are not in the cache (a cache that was deleted, data that moved) are made again.
    """
    if not loaded.parts:
        return None
    assert loaded.data is not None
    source, _ = filled_source(loaded.config, loaded.data, loaded.parts, loaded.model, loaded.device)
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

    @property
    def has(self) -> Tensor | None:
        """What every item has, see `modalities_of`; None for a model of ids."""
        assert self.data is not None
        return modalities_of(self.model, self.data.items.has)


def load_run(
    run: Path,
    data_folder: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    may_have_grown: bool = False,
    kept: KeptTiles | None = None,
) -> LoadedRun:
    """Loads a finished run with the data it was trained on.

    Args:
        run: folder of the run.
        data_folder: the prepared folder where it has moved; null: as data.json says.
        overrides: `section.field=value` of settings that count in use.
        may_have_grown: take a folder that was updated since as well: what is new or has changed in
            it is encoded, and all else is as it was. For use, not for figures: targets and cold
            items are others now, and training may have met them.
        kept: contents that an interrupted export has encoded; None: none are kept.

    Raises:
        ConfigError: an override names a setting that training has settled, or is wrong.
        CheckpointMismatch: the run has no final model, or the data are others.
        ShardError: the data cannot be opened, or a file of theirs was changed.
    """
    final = _final_folder(run)
    state = _read_json(final / "state.json")
    if state.get("schema") != SCHEMA:
        raise CheckpointMismatch(f"{final}: schema {state.get('schema')} is not {SCHEMA}")
    data, split, before = _open_data(run, data_folder)
    if before is not None and not may_have_grown:
        raise _updated(run, data)
    config = load_trained_config(run / "config.yaml", overrides)
    split = open_split(data, split.name, config.data.event_share, config.data.new_users)
    device = pick_device()
    parts = {name: rebuild_encoder(each) for name, each in state["encoders"].items()}
    signals = spec_of(state.get("signals"))
    counts = torch.zeros(len(state["item_ids"]))
    heads = heads_of(state.get("heads"))
    labels = label_sets_of(state.get("labels"))
    model = make_model(config, parts, counts, signals=signals, heads=heads, labels=labels)
    model = model.to(device)
    load_model(final, model)
    model.eval()
    index_of = data.items.index_of
    item_index_of = np.array([index_of(item_id) for item_id in state["item_ids"]], np.int64)
    content = None
    if parts:
        contents = read_tensors(final / "content.safetensors")
        content = contents["content"].to(device)
        if before is not None:
            had = contents["had"]
            content = _grown_content(content, had, before, config, data, parts, model, kept)
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


def run_made_of(run: Path, data_folder: Path | None = None) -> dict[str, str]:
    """Hashes of what vectors of a run are made from, by the word for it.

    Nothing is checked: `load_run` does that.

    Args:
        run: folder of the run.
        data_folder: as of `load_run`.

    Raises:
        CheckpointMismatch: the run has no final model, or there are no data.
        ShardError: the data cannot be opened.
    """
    final, bound = _final_folder(run), _read_json(run / "data.json")
    weights = hashlib.sha256()
    for path in sorted(final.iterdir()):
        with open(path, "rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    data = PreparedData.open(_data_folder(run, bound, data_folder))
    return {
        "weights": weights.hexdigest(),
        "data": f"{data.data_hash} {data.split(bound['split']).hash}",
    }


def _final_folder(run: Path) -> Path:
    """Where the trained model lies.

    Raises:
        CheckpointMismatch: there is none.
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
    return final


def _grown_content(
    content: Tensor,
    had: Tensor,
    before: EarlierState,
    config: Config,
    data: PreparedData,
    parts: Mapping[str, EncoderParts],
    model: RecommenderModel,
    kept: KeptTiles | None,
) -> Tensor:
    """Content (N, D) of a folder that was updated: of then, and of what is new or has changed."""
    changed = data.items.changed_since(before.num_index_rows)
    # some may have come and gone: they have a row too
    rows = np.union1d(changed, np.arange(before.num_items, len(data.items)))
    whole = content.new_zeros(len(data.items), content.shape[1])
    whole[: before.num_items] = content
    known = torch.zeros(len(data.items), had.shape[1], dtype=torch.bool)
    known[: before.num_items] = had
    met = known.numpy()[rows]

    def encode(tiles: Sequence[IntArray]) -> Iterator[Tensor]:
        source, _ = filled_source(config, data, parts, model, content.device)
        media = load_ahead(lambda tile: source.collate(rows[tile]), tiles)
        return encode_media(model, media, (met[tile] for tile in tiles))

    if len(rows):
        tiles = in_tiles(kept, "contents", len(rows), encode, tile=TILE, noun="items")
        encoded = torch.cat([each.to(content.device) for each in tiles])
        whole[torch.from_numpy(rows).to(content.device)] = encoded
    logger.info(
        "%s was updated since training: content of %d items encoded, of %d as it was",
        data.path,
        len(rows),
        len(data.items) - len(rows),
    )
    return whole


def open_data(run: Path, data_folder: Path | None = None) -> tuple[PreparedData, Split]:
    """The data that a run was trained on, checked.

    Args:
        run: folder of the run.
        data_folder: the prepared folder where it has moved; None: as data.json says.

    Raises:
        CheckpointMismatch: the data are others, or are not where data.json says.
        ShardError: the data cannot be opened, or a file of theirs was changed.
    """
    data, split, before = _open_data(run, data_folder)
    if before is not None:
        raise _updated(run, data)
    return data, split


def _updated(run: Path, data: PreparedData) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{data.path}: was updated since {run} was trained on it, and figures of a model need the "
        f"split it was trained on: train one with training.start_from={run}, or give --data a copy "
        "of the folder as it was"
    )


def _open_data(
    run: Path, data_folder: Path | None
) -> tuple[PreparedData, Split, EarlierState | None]:
    """The data, or what they have become by updates: then also what they were."""
    bound = _read_json(run / "data.json")
    data = PreparedData.open(_data_folder(run, bound, data_folder))
    before = data.state_at(bound["data_hash"], bound["split"], bound["split_hash"])
    if before is not None:
        data.verify_tables()
        split = data.split(bound["split"])
        same = (data.data_hash, split.hash) == (bound["data_hash"], bound["split_hash"])
        return data, split, None if same else before
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
    return data, split, None


def _data_folder(run: Path, bound: Mapping[str, Any], given: Path | None) -> Path:
    """Where the data of a run are.

    Raises:
        CheckpointMismatch: they are not where data.json says, and no other folder is given.
    """
    if given is None and not Path(bound["path"]).is_dir():
        raise CheckpointMismatch(
            f"{bound['path']}: there is no such folder, {run} was trained on it (data.json); "
            "give --data the folder where the data are now"
        )
    return given or Path(bound["path"])


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
