"""Prepare on a folder that is there: what is left alone, noticed, added and refused."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from preparing import contents, run
from tiny_catalogue import (
    CATALOGUE,
    RED_PNG,
    encode,
    item_rows,
    photograph,
    write_catalogue,
    write_source,
)

import data_prep.prepare as prepare_module
from data_prep.errors import DataError
from data_prep.prepare import prepare
from data_prep.shards import PreparedData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path)


def test_nothing_changed_does_nothing(
    catalogue: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    time.sleep(0.05)
    run(catalogue, source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    for name in ("table_hashes", "hash_source", "build_items", "build_split"):
        monkeypatch.setattr(prepare_module, name, never)
    summary = run(catalogue, source, out)
    assert summary.unchanged and "nothing changed" in summary.line()
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert before == after


def test_a_touched_source_is_compared_by_content(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(catalogue, source, out)
    for path in source.rglob("*"):
        os.utime(path)
    assert run(catalogue, source, out).unchanged


@pytest.mark.parametrize("change", ["medium", "table", "new-medium", "catalogue", "image-side"])
def test_a_change_is_noticed(catalogue: Path, source: Path, tmp_path: Path, change: str) -> None:
    rows = item_rows()
    rows[5]["back"] = "media/late.png"  # one medium of eight is missing: too many, so add others
    for row in rows:
        row["front"] = "media/c.jpg"
    filler = [{**rows[0], "id": f"f{number}"} for number in range(20)]
    write_source(source, rows + filler)
    out = tmp_path / "out"
    run(catalogue, source, out)
    first = PreparedData.open(out).data_hash
    options: dict[str, Any] = {}
    if change == "medium":
        path = source / "media" / "c.jpg"
        times = path.stat()
        data = encode(photograph(64, 48, seed=9))
        path.write_bytes(data.ljust(times.st_size, b"\0")[: max(times.st_size, len(data))])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "table":
        with open(source / "log.csv", "a") as log:
            log.write("u3,2,500,play,,phone\n")
    elif change == "new-medium":
        (source / "media" / "late.png").write_bytes(RED_PNG)
    elif change == "catalogue":
        items = {**CATALOGUE["items"], "text": ["title"]}
        write_catalogue(tmp_path, items=items)
    else:
        options["image_side"] = 32
    assert not run(catalogue, source, out, **options).unchanged
    data = PreparedData.open(out)
    data.verify()
    assert data.data_hash != first
    assert run(catalogue, source, out, **options).unchanged


def test_another_split_leaves_the_items_alone(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(catalogue, source, out)
    before = {path: path.stat().st_ino for path in (out / "items").iterdir()}
    manifest = (out / "manifest.json").read_bytes()
    summary = run(catalogue, source, out, "split.cold_test=0.4", "split.min_events=1")
    assert summary.split == "leave_one_out-cold" and not summary.unchanged
    assert {path: path.stat().st_ino for path in (out / "items").iterdir()} == before
    assert (out / "manifest.json").read_bytes() == manifest
    data = PreparedData.open(out)
    assert data.splits == ("leave_one_out", "leave_one_out-cold")
    cold = data.split("leave_one_out-cold")
    assert len(cold.manifest["cold"]["cold_test"]) == 2
    assert run(catalogue, source, out).unchanged
    fresh = tmp_path / "fresh"
    run(catalogue, source, fresh, "split.cold_test=0.4", "split.min_events=1")
    name = "splits/leave_one_out-cold"
    assert contents(out / name) == contents(fresh / name)


def test_a_split_is_never_replaced(catalogue: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(catalogue, source, out)
    with pytest.raises(DataError, match="split 'leave_one_out' exists .*min_events 3 there, 2"):
        run(catalogue, source, out, "split.min_events=2")
    run(catalogue, source, out, "split.min_events=2", "split.name=other")
    assert PreparedData.open(out).splits == ("leave_one_out", "other")


def test_a_folder_that_was_trained_on_can_be_prepared_again(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(catalogue, source, out)
    (out / "cache").mkdir()
    (out / "cache" / "states").write_bytes(b"kept")
    assert prepare(catalogue, source, out).unchanged
    assert (out / "cache" / "states").read_bytes() == b"kept"
