"""Rows and media that prepare sets aside, and sources and folders that it refuses."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import polars as pl
import pytest
from preparing import many_items, quarantine, run
from tiny_catalogue import RED_PNG, encode, item_rows, photograph, write_catalogue, write_source

from data_prep.errors import DataError
from data_prep.shards import PreparedData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path)


def test_users_with_too_few_events_are_set_aside(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    summary = run(catalogue, source, tmp_path / "out", "split.min_events=4")
    assert summary.quarantined == {"user": {"too few events": 1}}
    split = PreparedData.open(tmp_path / "out").split()
    assert split.full.user_index.tolist() == [0, 2]
    line = json.loads((split.path / "quarantine.jsonl").read_text())
    assert line["id"] == "u1" and line["num_events"] == 3
    with pytest.raises(DataError, match="no user has 40 events"):
        run(catalogue, source, tmp_path / "none", "split.min_events=40")


def test_bad_rows_and_media_are_set_aside_with_their_place(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    many_items(source, 100)
    rows = pl.read_ndjson(source / "items.jsonl", infer_schema_length=None).to_dicts()
    rows[3] |= {"front": "media/gone.jpg"}
    rows[7] |= {"front": "../../etc/passwd"}
    rows[9] |= {"title": "", "front": "media/broken.jpg"}
    rows[11] |= {"vector": [1.0, float("inf")]}
    (source / "media" / "broken.jpg").write_bytes(encode(photograph(90, 90))[:500])
    pl.DataFrame(rows, infer_schema_length=None).write_ndjson(source / "items.jsonl")
    with open(source / "log.csv", "a") as log:
        log.write("u1,nobody,500,play,,phone\n")
    summary = run(catalogue, source, tmp_path / "out")
    assert summary.quarantined == {
        "interaction": {"unknown item": 4},
        "item": {"no modality at all": 1},
        "medium": {
            "broken image": 1,
            "broken vector": 1,
            "missing file": 1,
            "path outside the source folder": 1,
        },
    }
    found = {(line["kind"], line["id"]): line for line in quarantine(tmp_path / "out")}
    gone = found["medium", "3"]
    assert gone["path"] == "media/gone.jpg" and gone["reason"] == "missing file"
    assert gone["place"] == "items.jsonl row 4, column front"
    assert found["item", "9"]["place"] == "items.jsonl row 10"
    assert found["interaction", "nobody"]["place"] == "log.csv row 301"
    data = PreparedData.open(tmp_path / "out")
    assert len(data.items) == 99 and data.items.index_of("9") is None
    assert data.items.media(3, "image") == [] and data.items.index_of("10") == 9
    assert "4 interaction (unknown item)" in summary.line()


@pytest.mark.parametrize("fault", ["media", "interactions", "items"])
def test_more_than_five_percent_stops_the_run(
    catalogue: Path, source: Path, tmp_path: Path, fault: str
) -> None:
    if fault == "media":
        (source / "media" / "a.jpg").unlink()
    elif fault == "interactions":
        with open(source / "log.csv", "a") as log:
            log.write("u1,nobody,500,play,,phone\n")
    else:
        write_source(source, [*item_rows(), {**item_rows()[5], "id": "7", "title": ""}])
    with pytest.raises(DataError, match=rf"1 of \d+ {fault} cannot be used .*at most 5%") as caught:
        run(catalogue, source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_symbolic_link_cannot_leave_the_source(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(RED_PNG)
    (source / "media" / "a.jpg").unlink()
    (source / "media" / "a.jpg").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="outside the source folder"):
        run(catalogue, source, tmp_path / "out")


def test_two_writers_are_refused(catalogue: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is writing"):
            run(catalogue, source, out)
    finally:
        os.close(descriptor)


def test_a_folder_of_something_else_is_left_alone(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="'thesis.txt'"):
        run(catalogue, source, tmp_path / "home")
    with pytest.raises(DataError, match="is a file"):
        run(catalogue, source, tmp_path / "home" / "thesis.txt")
    with pytest.raises(DataError, match="no such folder"):
        run(catalogue, tmp_path / "nowhere", tmp_path / "out")
