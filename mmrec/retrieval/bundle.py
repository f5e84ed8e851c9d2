"""A bundle: one folder that serves like a run, without the run and without the prepared data.

    bundle.json               schema, hashes, catalogue, settings of media, sha256 of every file
    config.yaml state.json    settings; tokenisers and encoders' architecture are in the state;
                              LoRA and its like are folded into the weights
    model.safetensors content.safetensors
    parts.safetensors         contents by each modality alone, and without each
    items.parquet             item_id, title, modalities and what may be recommended, by item_index
    texts.parquet             all texts of each item, which search by words reads, by item_index
    attributes.parquet        a typed column an attribute of the catalogue, by item_index
    users.parquet             user_id and the attributes that the model reads, by user_index
    history-items.npy history-offsets.npy      complete histories, memory-mapped when read
    ranker/                   the second stage, where the run has one
    history-COLUMN.npy        event, value, time, context.NAME of each event, where the model reads
                              them; contexts as places in the model's own lists

It is written into a folder that its caller renames once whole.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors.torch import load_file, save_file

from data_prep.catalogue import Catalogue, parse_catalogue
from data_prep.shards import History
from encoders.adapters import MERGEABLE, merge
from encoders.cut import StackedEncoder
from mmrec.build import pick_device
from mmrec.config import Config, change, dump_config
from mmrec.data.item_labels import label_sets_of
from mmrec.data.labels import heads_of
from mmrec.data.ragged import IntArray
from mmrec.data.signal_spec import SignalSpec, spec_of
from mmrec.data.told import columns_of
from mmrec.encoder_parts import rebuild_encoder
from mmrec.errors import CheckpointMismatch
from mmrec.kept_tiles import KeptTiles
from mmrec.network import make_model
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.available import Available
from mmrec.retrieval.folders import check_files, file_record
from mmrec.retrieval.known import Items
from mmrec.retrieval.parts import StoredParts, write_parts
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.second_stage import copy_second_stage
from mmrec.retrieval.texts import StoredTexts, write_texts
from mmrec.run_config import load_trained_config
from mmrec.training.checkpoint import load_model

BUNDLE_FILE = "bundle.json"
CONTENT_FILE = "content.safetensors"
ATTRIBUTES_FILE = "attributes.parquet"
PARTS_FILE = "parts.safetensors"
TEXTS_FILE = "texts.parquet"
SCHEMA = "mmrec-bundle/1"


def write_bundle(retriever: Retriever, folder: Path, kept: KeptTiles | None = None) -> None:
    """Writes all that `load_bundle` needs.

    Args:
        retriever: of a run, or of another bundle.
        folder: a new folder.
        kept: what an interrupted export has encoded; None: nothing is kept.
    """
    folder.mkdir(parents=True)
    for name, path in retriever.files.items():
        if name != CONTENT_FILE:
            shutil.copyfile(path, folder / name)
    if retriever.content is not None:  # of a catalogue that may have grown since training
        save_file({"content": retriever.content.cpu()}, folder / CONTENT_FILE)
    if retriever.parts is not None:
        write_parts(retriever.parts, list(retriever.transforms), folder / PARTS_FILE, kept)
    merged = _merge_adapters(retriever, folder / "model.safetensors")
    # with what was changed for this use: a bundle serves as its retriever does
    (folder / "config.yaml").write_text(dump_config(merged), encoding="utf-8")
    items = retriever.items
    num_items = len(items.item_ids)
    pl.DataFrame(
        {
            "item_id": list(items.item_ids),
            "title": [items.titles[row] for row in range(num_items)],
            "modalities": [items.modalities(row) for row in range(num_items)],
            "deleted": items.deleted,
            "is_candidate": items.is_candidate,
            "held_out": items.held_out,
            **_spans(items),
        },
        schema_overrides={"title": pl.String, "modalities": pl.List(pl.String)},
    ).write_parquet(folder / "items.parquet")
    specs = retriever.catalogue.items.attributes
    if specs:
        items.attributes.table(specs).write_parquet(folder / ATTRIBUTES_FILE)
    if items.read_texts is not None:
        write_texts(items.texts, folder / TEXTS_FILE)
    _user_table(retriever).write_parquet(folder / "users.parquet")
    _write_histories(retriever, folder)
    copy_second_stage(retriever.path, folder)
    document = {
        "schema": SCHEMA,
        "model_hash": retriever.model_hash,
        "source": dict(retriever.source),
        "catalogue": retriever.catalogue.document(),
        "image_side": retriever.image_side,
        "files": {
            path.relative_to(folder).as_posix(): file_record(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")


def _spans(items: Items) -> dict[str, IntArray]:
    """When each item may be listed; no column where that is always."""
    if items.available is None:
        return {}
    return {"available_from": items.available.start, "available_until": items.available.until}


def _available(table: pl.DataFrame) -> Callable[[], Available] | None:
    """What `_spans` wrote."""
    if "available_from" not in table.columns:
        return None
    start, until = (table[name].to_numpy() for name in ("available_from", "available_until"))
    return lambda: Available(start, until)


def _reads_attributes(folder: Path, catalogue: Catalogue) -> Callable[[], ItemAttributes] | None:
    """Reads the attributes; those of a bundle that was written without them are refused."""
    if not catalogue.items.attributes:
        return None
    path = folder / ATTRIBUTES_FILE

    def read() -> ItemAttributes:
        if not path.is_file():
            raise CheckpointMismatch(
                f"{folder}: the bundle holds no attributes of items, which this asks for; export "
                "it again"
            )
        return ItemAttributes.of_table(pl.read_parquet(path))

    return read


def _reads_texts(folder: Path) -> Callable[[], StoredTexts] | None:
    """Opens the texts; None of a bundle that was written without them."""
    path = folder / TEXTS_FILE
    return (lambda: StoredTexts(path)) if path.is_file() else None


def _merge_adapters(retriever: Retriever, path: Path) -> Config:
    """Folds LoRA and its like into the weights of the bundle: it needs no peft, and less time.

    Args:
        retriever: left as it is.
        path: of the bundle's weights, written anew where there is something to fold.

    Returns:
        The settings that build the bundle's model.
    """
    methods = {
        f"encoders.{name}.method": "full"
        for name, each in retriever.config.encoders.items()
        if each.method in MERGEABLE
    }
    if not methods:
        return retriever.config
    model = copy.deepcopy(retriever.model)
    for encoder in model.encoders.values():
        if isinstance(encoder, StackedEncoder):
            merge(encoder)
    # copies: two names may share one tensor, which the format refuses
    tensors = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    save_file(tensors, path)
    return change(retriever.config, methods, "export")


def load_bundle(folder: Path, overrides: Sequence[str] = ()) -> Retriever:
    """Loads a bundle; every file is checked against its sha256.

    Args:
        folder: that `write_bundle` wrote.
        overrides: `section.field=value` of settings that count in use.

    Raises:
        ConfigError: an override is not allowed.
        CheckpointMismatch: of another schema, or a file is absent or was changed.
    """
    path = folder / BUNDLE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path}: not readable as a bundle: {error}") from None
    if document.get("schema") != SCHEMA:
        raise CheckpointMismatch(
            f"{path}: schema {document.get('schema')!r} is not known; this version reads {SCHEMA!r}"
        )
    check_files(folder, document["files"])
    config = load_trained_config(folder / "config.yaml", overrides)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    device = pick_device()
    parts = {name: rebuild_encoder(each) for name, each in state["encoders"].items()}
    signals = spec_of(state.get("signals"))
    counts = torch.zeros(len(state["item_ids"]))
    heads = heads_of(state.get("heads"))
    labels = label_sets_of(state.get("labels"))
    model = make_model(config, parts, counts, signals=signals, heads=heads, labels=labels)
    model = model.to(device)
    load_model(folder, model)
    model.eval()
    content = None
    if CONTENT_FILE in document["files"]:
        content = load_file(folder / CONTENT_FILE)["content"].to(device)
    catalogue = parse_catalogue(document["catalogue"])
    table = pl.read_parquet(folder / "items.parquet")
    items = Items(
        item_ids=table["item_id"].to_list(),
        titles=table["title"].to_list(),
        has={name: table["modalities"].list.contains(name).to_numpy() for name in parts},
        deleted=table["deleted"].to_numpy(),
        is_candidate=table["is_candidate"].to_numpy(),
        held_out=table["held_out"].to_numpy(),
        read_available=_available(table),
        read_attributes=_reads_attributes(folder, catalogue),
        read_texts=_reads_texts(folder),
    )
    item_index_of = np.array([items.rows[item_id] for item_id in state["item_ids"]], np.int64)
    return Retriever(
        path=folder,
        files={name: folder / name for name in document["files"] if _is_model_file(name)},
        config=config,
        state=state,
        model=model,
        transforms={name: each.transform for name, each in parts.items()},
        catalogue=catalogue,
        image_side=int(document["image_side"]),
        items=items,
        users=_BundledUsers(folder, signals),
        content=content,
        item_index_of=item_index_of,
        source=document["source"],
        device=device,
        parts=StoredParts(folder / PARTS_FILE, device) if PARTS_FILE in document["files"] else None,
    )


class _BundledUsers:
    """Users of a bundle; histories stay on disk."""

    def __init__(self, folder: Path, signals: SignalSpec | None) -> None:
        table = pl.read_parquet(folder / "users.parquet")
        self._ids, self._attributes = table["user_id"], table.drop("user_id")
        self._values = _mapped(folder, "items")
        self._offsets = _mapped(folder, "offsets")
        spec = signals or SignalSpec()
        self._columns = {name: _mapped(folder, name) for name in _columns_read(spec)}
        self._contexts = {field.name: field.values for field in spec.context}

    @cached_property
    def user_ids(self) -> Sequence[str]:
        return self._ids.to_list()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    def index_of(self, user_id: str) -> int | None:
        return self._rows.get(user_id)

    def complete(self, user_index: int) -> History:
        start, stop = self._offsets[user_index : user_index + 2]
        found = {name: np.array(each[start:stop]) for name, each in self._columns.items()}
        contexts = {
            name: [_word(values, code) for code in found[f"context.{name}"].tolist()]
            for name, values in self._contexts.items()
        }
        return History(
            user_index=user_index,
            item_index=np.array(self._values[start:stop], dtype=np.int64),
            time=found.get("time"),
            event=found.get("event"),
            value=found.get("value"),
            context=contexts or None,
        )

    def attributes(self, user_index: int) -> Mapping[str, Any]:
        if not self._attributes.width:
            return {}
        row = self._attributes.row(user_index, named=True)
        return {name: value for name, value in row.items() if value is not None}


def _word(values: Sequence[str], code: int) -> str | None:
    """The word of a context's code: behind the known ones another's, then none."""
    if code < len(values):
        return values[code]
    return None if code > len(values) else ""


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(
        folder / f"history-{name}.npy", mmap_mode="r", allow_pickle=False
    )
    return found


def _columns_read(spec: SignalSpec) -> dict[str, npt.DTypeLike]:
    """The columns of events that a model reads, beside the items."""
    columns: dict[str, npt.DTypeLike] = {}
    if spec.event_types:
        columns["event"] = np.int16
    if spec.value_knots:
        columns["value"] = np.float32
    if spec.gap_knots:
        columns["time"] = np.int64
    return {**columns, **{f"context.{field.name}": np.int32 for field in spec.context}}


def _user_table(retriever: Retriever) -> pl.DataFrame:
    """user_id, and the attributes that the model reads."""
    user_ids = list(retriever.users.user_ids)
    spec = SignalSpec() if retriever.model.reader is None else retriever.model.reader.spec
    kinds = {"number": pl.Float64(), "category": pl.String(), "set": pl.List(pl.String)}
    types = {field.name: kinds[field.type] for field in spec.users}
    known = [retriever.users.attributes(row) for row in range(len(user_ids))] if types else []
    columns = {name: [each.get(name) for each in known] for name in types}
    return pl.DataFrame({"user_id": user_ids, **columns}, schema={"user_id": pl.String(), **types})


def _write_histories(retriever: Retriever, folder: Path) -> None:
    """Two passes over the users, so that all histories are never in memory at once."""
    users, reader = retriever.users, retriever.model.reader
    num_users = len(users.user_ids)
    offsets = np.zeros(num_users + 1, np.int64)
    for row in range(num_users):
        offsets[row + 1] = offsets[row] + len(users.complete(row).item_index)
    np.save(folder / "history-offsets.npy", offsets, allow_pickle=False)
    columns = _columns_read(SignalSpec() if reader is None else reader.spec)
    num_events = int(offsets[-1])
    types = {"items": np.dtype(np.int64), **columns}
    if not num_events:  # an empty file cannot be mapped
        for name, dtype in types.items():
            np.save(folder / f"history-{name}.npy", np.zeros(0, dtype), allow_pickle=False)
        return
    files = {
        name: np.lib.format.open_memmap(
            folder / f"history-{name}.npy", mode="w+", dtype=dtype, shape=(num_events,)
        )
        for name, dtype in types.items()
    }
    for row in range(num_users):
        history = users.complete(row)
        own = slice(int(offsets[row]), int(offsets[row + 1]))
        files["items"][own] = history.item_index
        told = columns_of(history)
        for name in columns:
            if name.startswith("context."):
                assert reader is not None
                files[name][own] = reader.context_codes(told, name.removeprefix("context."))
            else:
                files[name][own] = getattr(told, name)
    for file in files.values():
        file.flush()


def _is_model_file(name: str) -> bool:
    return name == "config.yaml" or name.startswith(("state.", "model.", "content."))
