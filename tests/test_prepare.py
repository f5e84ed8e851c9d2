"""A whole run of prepare: its counts, the same bytes each time, and the processes it uses."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from preparing import contents, many_items, run
from tiny_catalogue import encode, item_rows, photograph, write_catalogue, write_source

from data_prep.duplicates import DuplicateFinder, image_signature, text_digest
from data_prep.media import decode_image
from data_prep.media_pool import MediumJob, load_media
from data_prep.shards import PreparedData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path)


def test_a_whole_run(catalogue: Path, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    summary = run(catalogue, source, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert not summary.unchanged and summary.quarantined == {}
    assert summary.line().startswith("6 items, 3 users, 12 interactions, 7 media; split leave_one")
    assert "quarantined: nothing" in summary.line() and "\n" not in summary.line()
    assert seen[0] == ("items", 1, 6) and seen[-1] == ("histories full", 3, 3)
    data = PreparedData.open(tmp_path / "out")
    data.verify()
    assert data.manifest["files"].keys() == {
        "items/index.arrow",
        "items/items-000000.tar",
        "items/items.arrow",
        "items/sources.arrow",
        "quarantine.jsonl",
        "users.parquet",
    }
    assert data.catalogue.repeats == "allow"
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")
    assert users.rows() == [(0, "u2", "02136-1522"), (1, "u1", None), (2, "u3", None)]
    assert not (tmp_path / "out" / ".staging").exists()


def test_the_number_of_processes_changes_no_byte(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    many_items(source, 70)
    run(catalogue, source, tmp_path / "one", num_workers=1)
    run(catalogue, source, tmp_path / "two", num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_copied_source_gives_the_same_bytes(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "elsewhere")
    run(catalogue, source, tmp_path / "one")
    run(catalogue, tmp_path / "elsewhere", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_golden_bytes(tmp_path: Path) -> None:
    """The shards' own bytes: changing them means another schema version."""
    items = [row | {"front": "", "sound": "", "clip": ""} for row in item_rows()]
    source = write_source(tmp_path / "source", items)
    run(write_catalogue(tmp_path), source, tmp_path / "out")
    found = {
        name: digest[:16]
        for name, digest in contents(tmp_path / "out").items()
        if name.endswith(".tar")
    }
    assert found == GOLDEN


GOLDEN = {
    "items/items-000000.tar": "522b461d3bfe097b",
    "splits/leave_one_out/histories-full-000000.tar": "bfd59d1d0b922992",
    "splits/leave_one_out/histories-train-000000.tar": "c9a737b5d3a9b5bc",
}


def test_a_dry_run_writes_nothing(catalogue: Path, source: Path, tmp_path: Path) -> None:
    (source / "media" / "a.wav").unlink()
    summary = run(catalogue, source, tmp_path / "out", dry_run=True)
    assert summary.quarantined == {"medium": {"missing file": 1}}
    assert "nothing written" in summary.line()
    assert not (tmp_path / "out").exists()


def test_media_come_in_the_order_asked_for(source: Path) -> None:
    jobs = [MediumJob(source / "media" / "c.jpg", "image"), MediumJob(source / "x", "image")] * 20
    one = list(load_media(jobs, image_side=32, num_workers=1))
    two = list(load_media(jobs, image_side=32, num_workers=2))
    assert one == two and [not r.reason for r in one] == [True, False] * 20


def test_a_script_without_a_main_guard_prepares_with_processes(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from data_prep.prepare import prepare\n"
        "print('ran'); prepare(*map(Path, sys.argv[1:4]), num_workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, script, catalogue, source, tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran\n"  # once: the processes do not run the script again
    PreparedData.open(tmp_path / "out")


def test_near_duplicates_are_grouped() -> None:
    pixels = photograph(300, 300, seed=1)
    again = decode_image(encode(pixels, quality=85))
    finder = DuplicateFinder()
    finder.add(0, [b"x"], [image_signature(pixels)])
    finder.add(1, [b"y"], [image_signature(again)])
    finder.add(2, [b"z"], [image_signature(pixels[:, :, ::-1])])  # other colours
    finder.add(3, [b"z", text_digest({"title": "The  NAME"})], [])
    finder.add(4, [text_digest({"plot": "the name"})], [])
    for item in range(5, 40):
        finder.add(item, [b"placeholder"], [])
    groups = finder.groups(40)
    assert groups[:5].tolist() == [0, 0, 2, 2, 2]
    assert groups[5:].tolist() == list(range(5, 40))


@pytest.mark.realdata
@pytest.mark.slow
def test_movielens_1m(shared_data: Path, tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "configs" / "catalogues" / "movielens-1m.yaml"
    out = tmp_path / "out"
    summary = run(path, shared_data / "ml-1m", out, num_workers=2)
    assert summary.counts["items"] == 3883 and summary.counts["interactions"] == 999_611
    assert summary.counts["items_with_events"] == 3416 and summary.counts["media"] == 3260
    run(path, shared_data / "ml-1m", out, "split.cold_validation=0.05", "split.cold_test=0.1")
    assert run(path, shared_data / "ml-1m", out).unchanged
    data = PreparedData.open(out)
    data.verify()
    assert len(data.split("leave_one_out").targets("test")) == 6040
    counts = data.split("leave_one_out-cold").manifest["counts"]
    assert abs(counts["num_targets"]["test"]["cold"] - 5942) < 60
    assert 0.87 < counts["train_share_of_warm_events"] < 0.91
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000
