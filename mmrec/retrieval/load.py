"""Loads a run with its prepared folder, or a bundle, as a `Retriever`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards import History, PreparedData, Split
from mmrec.build import pick_device
from mmrec.kept_tiles import KeptTiles
from mmrec.loaded import LoadedRun, load_run, open_source, run_made_of
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.available import Available
from mmrec.retrieval.bundle import BUNDLE_FILE, load_bundle
from mmrec.retrieval.known import Items
from mmrec.retrieval.parts import EncodedParts
from mmrec.retrieval.retriever import MODEL_FILES, Retriever
from mmrec.retrieval.texts import PreparedTexts


def load_retriever(
    path: Path,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    kept: KeptTiles | None = None,
) -> Retriever:
    """Loads a run or a bundle; both serve alike.

    A folder that was updated since the run was trained is taken as it is now: new items are their
    content, deleted ones are gone.

    Args:
        path: folder of a finished run, or a bundle that `export --bundle` wrote.
        data: the prepared folder where it has moved; a bundle needs none and looks at none.
        overrides: `section.field=value` of settings that count in use.
        kept: contents that an interrupted export has encoded; None: none are kept.

    Raises:
        ConfigError: an override is not allowed.
        CheckpointMismatch: no finished run, the data are others, or a bundle was changed.
        ShardError: the data cannot be opened.
    """
    path = Path(path)
    if (path / BUNDLE_FILE).is_file():
        return load_bundle(path, overrides)
    folder = None if data is None else Path(data)
    return retriever_of(load_run(path, folder, overrides, may_have_grown=True, kept=kept))


def vectors_made_of(
    path: Path, data: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, str]:
    """Hashes of all that vectors of a run or a bundle depend on, by the word for it.

    Args: as of `load_retriever`, which checks them.

    Raises:
        CheckpointMismatch: no finished run, or no data.
        ShardError: the data cannot be opened.
    """
    bundle = path / BUNDLE_FILE
    if bundle.is_file():  # which has the hash of every file
        made_of = {"weights": hashlib.sha256(bundle.read_bytes()).hexdigest()}
    else:
        made_of = run_made_of(path, data)
    config = path / "config.yaml"
    settings = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    settings.update(json.dumps(list(overrides)).encode())
    software = f"mmrec {version('mmrec')}, torch {version('torch')}, {pick_device().type}"
    return {**made_of, "settings": settings.hexdigest(), "software": software}


def retriever_of(loaded: LoadedRun) -> Retriever:
    """A run that is loaded already, with what it recommends from."""
    path = loaded.run
    prepared, split = loaded.data, loaded.split
    assert prepared is not None and split is not None
    roles = split.items.sort("item_index")["role"].to_numpy().astype(str)
    deleted = np.asarray(prepared.items.deleted)
    final = path / "checkpoints" / "final"
    parts = None
    if loaded.parts:
        parts = EncodedParts(loaded.model, lambda: open_source(loaded), len(loaded.item_ids))
    files = {name: final / name for name in MODEL_FILES if (final / name).is_file()}
    return Retriever(
        path=path,
        files={"config.yaml": path / "config.yaml", **files},
        config=loaded.config,
        state=loaded.state,
        model=loaded.model,
        transforms={name: each.transform for name, each in loaded.parts.items()},
        catalogue=prepared.catalogue,
        image_side=int(prepared.manifest["settings"]["image_side"]),
        items=Items(
            item_ids=loaded.item_ids,
            titles=_Titles(prepared),
            has={name: prepared.items.has(name) for name in loaded.parts},
            deleted=deleted,
            is_candidate=(roles != "no_events") & ~deleted,
            held_out=np.char.startswith(roles, "cold"),
            read_available=_reads_available(prepared),
            read_attributes=_reads_attributes(prepared),
            read_texts=lambda: PreparedTexts(prepared),
        ),
        users=_PreparedUsers(prepared, split),
        content=loaded.content,
        item_index_of=loaded.item_index_of,
        source={"data_hash": prepared.data_hash, "split": split.name, "split_hash": split.hash},
        device=loaded.device,
        parts=parts,
    )


def _reads_available(data: PreparedData) -> Callable[[], Available] | None:
    """Reads a record an item; None where the catalogue file says nothing of it."""
    if data.catalogue.items.available is None:
        return None
    return lambda: Available.of(data.items.record(row) for row in range(len(data.items)))


def _reads_attributes(data: PreparedData) -> Callable[[], ItemAttributes] | None:
    """Reads a record an item; None where the catalogue file names no attributes."""
    specs = data.catalogue.items.attributes
    if not specs:
        return None

    def read() -> ItemAttributes:
        records = (data.items.record(row) for row in range(len(data.items)))
        return ItemAttributes.of([record.get("attributes", {}) for record in records], specs)

    return read


class _PreparedUsers:
    """Users of a prepared folder; a history is read from its shard when asked for."""

    def __init__(self, data: PreparedData, split: Split) -> None:
        self._data, self._full = data, split.full

    @property
    def user_ids(self) -> Sequence[str]:
        return self._data.user_ids

    def index_of(self, user_id: str) -> int | None:
        return self._data.user_index_of(user_id)

    def complete(self, user_index: int) -> History:
        row = int(np.searchsorted(self._full.user_index, user_index))
        if row == len(self._full) or self._full.user_index[row] != user_index:
            return History(user_index, np.zeros(0, np.int64), None, None, None, None)
        return self._full.read(row)

    def attributes(self, user_index: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._data.user_attributes[user_index]
        return found


class _Titles(Sequence[str | None]):
    """The first text of each item, read from its shard when asked for."""

    def __init__(self, data: PreparedData) -> None:
        self._items = data.items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item_index: Any) -> Any:
        return next(iter(self._items.text(int(item_index)).values()), None)
