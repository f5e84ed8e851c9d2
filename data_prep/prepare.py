"""Prepares a catalogue: tables, media and a log in, a prepared folder of shards and splits out.

    CATALOGUE.yaml + --source ─► read ─► .staging/{items, users, splits} ─► renamed into --out

An interrupted run leaves nothing that a reader accepts; the next run clears it away. A run with
nothing changed does nothing; another split of the same data adds splits/NAME and touches nothing
else. An update goes on from the folder as it is: it decodes and writes what is new among the items,
makes every split again from the new log, and cut short leaves the old folder or the new one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build_items import MEDIA_KINDS, ItemsSummary, Progress, build_items
from data_prep.build_splits import IndexedLog, build_split, index_events, write_users
from data_prep.catalogue import Catalogue, load_catalogue
from data_prep.errors import DataError, ShardError
from data_prep.install import install, install_update, one_writer
from data_prep.interactions import read_interactions, read_items, read_users
from data_prep.item_writer import ItemChanges
from data_prep.known_items import KnownItems
from data_prep.media import IMAGE_SIDE
from data_prep.media_pool import default_num_workers
from data_prep.quarantine import Quarantine
from data_prep.shard_format import SCHEMA
from data_prep.shard_writer import file_record, write_json
from data_prep.shards import PreparedData
from data_prep.source_state import (
    SourceFiles,
    hash_source,
    mark_as_current,
    source_is_older,
    table_hashes,
)
from data_prep.update import manifest_after, open_earlier, splits_after


@dataclass(frozen=True)
class PrepareSummary:
    """What a run of `prepare` did.

    `counts` has items, users, interactions and media; `quarantined` counts by kind and reason;
    `changes` is of an update.
    """

    counts: dict[str, Any]
    quarantined: dict[str, dict[str, int]]
    split: str
    seconds: float
    unchanged: bool
    dry_run: bool = False
    changes: ItemChanges | None = None

    def line(self) -> str:
        """The summary in one line, quarantine included."""
        numbers = ", ".join(
            f"{self.counts[name]:,} {name}" for name in ("items", "users", "interactions", "media")
        )
        aside = [
            f"{count:,} {kind} ({reason})"
            for kind, reasons in self.quarantined.items()
            for reason, count in reasons.items()
        ]
        state = "nothing changed" if self.unchanged else f"{self.seconds:.1f} s"
        if self.dry_run:
            state = "dry run, nothing written"
        where = f"split {self.split}; quarantined: {', '.join(aside) or 'nothing'}; {state}"
        changes = "" if self.changes is None else f"{self.changes.line()}; "
        return f"{changes}{numbers}; {where}"


def prepare(
    catalogue_path: Path,
    source: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    num_workers: int | None = None,
    image_side: int = IMAGE_SIDE,
    progress: Progress | None = None,
    dry_run: bool = False,
    update: bool = False,
) -> PrepareSummary:
    """Prepare a catalogue and one split of its log.

    Where the source has changed all is made anew, so that the same input gives the same bytes
    whatever lay there; an update keeps rows and shards of known items instead.

    Args:
        catalogue_path: the catalogue file.
        source: folder that its tables and media lie under.
        out: the prepared folder; made where absent, else an earlier prepared folder.
        overrides: settings that replace the file's, as `split.cold_test=0.1`.
        num_workers: processes that decode media; by default one a processor. The output does not
            depend on it.
        image_side: pixels of the short side above which images are made smaller.
        progress: called with (what, done, total).
        dry_run: read and check the tables, look for the media, write nothing.
        update: add to the folder what is new in the source; where there is none, make it.

    Raises:
        DataError: the catalogue, a table or the source is at fault, more than 5 % would be set
            aside, `out` is something else, or the disk is full; or an update finds a folder that
            was made with other settings of items.
        ShardError: an update finds a folder with a damaged file.
    """
    started = time.time_ns()
    catalogue = load_catalogue(Path(catalogue_path), overrides)
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise DataError(f"--source {source}: there is no such folder")
    if dry_run:
        return _dry_run(catalogue, source, started)
    workers = default_num_workers() if num_workers is None else num_workers
    changes = None
    with one_writer(out) as staging:
        data = _current_data(out, catalogue, source, image_side)
        if data is not None:
            if _has_split(data, catalogue):
                return _summarise(data, catalogue, started, unchanged=True)
            _add_split(data, catalogue, source, staging, progress)
        else:
            earlier = open_earlier(out, catalogue, image_side) if update else None
            if earlier is not None:
                _has_split(earlier, catalogue)
            found = _build_all(catalogue, source, staging, image_side, workers, progress, earlier)
            changes = found if update else None
            (install if earlier is None else install_update)(staging, out)
        mark_as_current(out, started)
        data = PreparedData.open(out)
        return _summarise(data, catalogue, started, unchanged=False, changes=changes)


def _build_all(
    catalogue: Catalogue,
    source: Path,
    staging: Path,
    image_side: int,
    num_workers: int,
    progress: Progress | None,
    earlier: PreparedData | None,
) -> ItemChanges:
    """Write all of a folder, or what goes on from an earlier state of it, and count the items."""
    tables = table_hashes(catalogue, source)
    items_table = read_items(catalogue, source)
    log_table = read_interactions(catalogue, source)
    users_table = read_users(catalogue, source)
    known_users = [] if earlier is None else list(earlier.user_ids)
    known_users += [] if users_table is None else users_table["user_id"].to_list()
    (staging / "items").mkdir()
    with Quarantine(staging / "quarantine.jsonl") as quarantine:
        items = build_items(
            items_table,
            catalogue,
            source=source,
            folder=staging / "items",
            quarantine=quarantine,
            image_side=image_side,
            num_workers=num_workers,
            progress=progress,
            known=None if earlier is None else KnownItems(earlier),
        )
        del items_table
        log = index_events(
            log_table,
            table=catalogue.interactions.table,
            item_ids=items.item_ids,
            known_users=known_users,
            quarantine=quarantine,
            deleted=items.deleted_ids,
        )
        del log_table
    write_users(staging / "users.parquet", log, users_table, catalogue)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    manifest = {
        "schema": SCHEMA,
        "name": catalogue.name,
        "modalities": list(catalogue.modalities),
        "event_types": log.event_types,
        "counts": _counts(items, log),
        "quarantine": quarantine.by_reason(),
        "settings": {"image_side": image_side},
        "catalogue": catalogue.document(),
        "licences": None,
        "source": {
            "tables": tables,
            "media_sha256": items.media_sha256,
            "missing_files": items.num_missing_files,
        },
        "files": {str(path.relative_to(staging)): file_record(path) for path in files},
    }
    if earlier is not None:
        manifest = manifest_after(manifest, earlier)
    write_json(staging / "manifest.json", manifest)
    # not `open`: shards of an earlier state lie elsewhere, and no split needs them
    data = PreparedData(staging, manifest)
    for each in splits_after(catalogue, earlier):
        folder = staging / "splits" / each.split.name
        folder.mkdir(parents=True)
        build_split(data, each, log, folder, progress=progress)
    return items.changes


def _add_split(
    data: PreparedData,
    catalogue: Catalogue,
    source: Path,
    staging: Path,
    progress: Progress | None,
) -> None:
    log = index_events(
        read_interactions(catalogue, source),
        table=catalogue.interactions.table,
        item_ids=data.items.item_ids,
        known_users=data.user_ids,
        quarantine=None,
        deleted=[data.items.item_ids[row] for row in np.flatnonzero(data.items.deleted)],
    )
    folder = staging / "split"
    folder.mkdir()
    build_split(data, catalogue, log, folder, progress=progress)
    final = data.path / "splits" / catalogue.split.name
    final.parent.mkdir(exist_ok=True)
    if final.exists():  # without a manifest: else it had been found
        shutil.rmtree(final)
    folder.rename(final)
    staging.rmdir()


def _has_split(data: PreparedData, catalogue: Catalogue) -> bool:
    """Whether the split is there; one of the same name with other settings is never replaced."""
    name = catalogue.split.name
    if name not in data.splits:
        return False
    found = data.split(name).manifest["spec"]
    asked = catalogue.split.model_dump(mode="json", by_alias=True)
    if found != asked:
        changed = ", ".join(
            f"{key} {found.get(key)} there, {asked[key]} asked"
            for key in asked
            if found.get(key) != asked[key]
        )
        raise DataError(
            f"{data.path}: split {name!r} exists with other settings ({changed}); "
            "give the new one a name with split.name=…"
        )
    return True


def _current_data(
    out: Path, catalogue: Catalogue, source: Path, image_side: int
) -> PreparedData | None:
    """The prepared folder, if it holds exactly what these sources would give."""
    try:
        data = PreparedData.open(out)
    except ShardError:
        return None
    document = catalogue.document()
    written = dict(data.manifest["catalogue"])
    document.pop("split")
    written.pop("split")
    if written != document or data.manifest["settings"] != {"image_side": image_side}:
        return None
    recorded = data.manifest["source"]
    files = SourceFiles.of_tables(catalogue, source)
    if not source_is_older(out, files) and table_hashes(catalogue, source) != recorded["tables"]:
        return None
    if any(getattr(catalogue.items, kind) for kind in MEDIA_KINDS):
        files = SourceFiles.of_media(catalogue, source, read_items(catalogue, source))
        if source_is_older(out, files) and len(files.missing) == recorded["missing_files"]:
            return data
        if hash_source(files) != recorded["media_sha256"]:
            return None
    return data


def _dry_run(catalogue: Catalogue, source: Path, started: int) -> PrepareSummary:
    items = read_items(catalogue, source)
    files = SourceFiles.of_media(catalogue, source, items)
    log = read_interactions(catalogue, source)
    unknown = len(log.join(items, on="item_id", how="anti"))
    return PrepareSummary(
        counts={
            "items": len(items),
            "users": log["user_id"].n_unique(),
            "interactions": len(log) - unknown,
            "media": len(files.paths) - len(files.missing),
        },
        quarantined={
            kind: {reason: count}
            for kind, reason, count in (
                ("interaction", "unknown item", unknown),
                ("medium", "missing file", len(files.missing)),
            )
            if count
        },
        split=catalogue.split.name,
        seconds=(time.time_ns() - started) / 1e9,
        unchanged=False,
        dry_run=True,
    )


def _counts(items: ItemsSummary, log: IndexedLog) -> dict[str, Any]:
    events = log.events
    return {
        "items": len(items.item_ids) - len(items.deleted_ids),
        "items_with_events": events["item_index"].n_unique(),
        "items_with_modality": dict(sorted(items.with_modality.items())),
        "items_with_text_field": dict(sorted(items.with_text_field.items())),
        "users": len(log.user_ids),
        "users_with_events": events["user_index"].n_unique(),
        "interactions": len(events),
        "distinct_pairs": events.select("user_index", "item_index").n_unique(),
        "media": items.num_media,
        "media_bytes": items.media_bytes,
        "exact_duplicates": items.exact_duplicates,
        "near_duplicate_groups": items.near_duplicate_groups,
        **(
            {
                "deleted_items": len(items.deleted_ids),
                "interactions_of_deleted_items": log.num_deleted,
            }
            if items.deleted_ids
            else {}
        ),
    }


def _summarise(
    data: PreparedData,
    catalogue: Catalogue,
    started: int,
    *,
    unchanged: bool,
    changes: ItemChanges | None = None,
) -> PrepareSummary:
    split = data.split(catalogue.split.name)
    return PrepareSummary(
        counts=data.manifest["counts"],
        quarantined={**data.manifest["quarantine"], **split.manifest["quarantine"]},
        split=split.name,
        seconds=(time.time_ns() - started) / 1e9,
        unchanged=unchanged,
        changes=changes,
    )
