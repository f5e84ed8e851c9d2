from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from tiny_catalogue import (
    CATALOGUE,
    RED_PNG,
    encode,
    item_rows,
    photograph,
    write_catalogue,
    write_source,
)

import data_prep.item_writer as item_writer_module
import data_prep.prepare as prepare_module
from data_prep.duplicates import DuplicateFinder, image_signature, text_digest
from data_prep.errors import DataError, ShardError
from data_prep.media import decode_image
from data_prep.media_pool import MediumJob, load_media
from data_prep.prepare import PrepareSummary, prepare
from data_prep.shards import PreparedData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path)


def run(
    catalogue: Path, source: Path, out: Path, *overrides: str, **options: Any
) -> PrepareSummary:
    options.setdefault("num_workers", 1)
    return prepare(catalogue, source, out, overrides=overrides, **options)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def quarantine(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def many_items(source: Path, number: int) -> None:
    """Items with a picture each, and a log of three users over all of them."""
    rows = []
    for item in range(number):
        (source / "media" / f"p{item}.jpg").write_bytes(encode(photograph(40, 40, seed=item)))
        rows.append({**item_rows()[5], "id": str(item), "title": f"Title {item}"})
        rows[-1]["front"] = f"media/p{item}.jpg"
    rows[0]["vector"] = [1.0, 2.0]
    pl.DataFrame(rows, infer_schema_length=None).write_ndjson(source / "items.jsonl")
    log = "user,item,when,what,stars,device\n" + "".join(
        f"u{user},{item},{item},play,,tv\n" for user in range(3) for item in range(number)
    )
    (source / "log.csv").write_text(log)


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


@pytest.mark.parametrize("renames", [1, 6, -4, -3, -2, -1])
def test_what_is_not_whole_is_not_accepted(
    catalogue: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    renames: int,
) -> None:
    """Stops before a rename, counted from the first or, below 0, from the last."""
    out, clean = tmp_path / "out", tmp_path / "clean"
    rename, left = Path.rename, 1000

    def rename_or_stop(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_stop)
    run(catalogue, source, clean)
    left = renames if renames > 0 else 1000 - left + renames
    with pytest.raises(KeyboardInterrupt):
        run(catalogue, source, out)
    with pytest.raises(ShardError, match="no manifest"):
        PreparedData.open(out)
    left = 1000
    run(catalogue, source, out)
    assert contents(out) == contents(clean)


KILLED_AT_A_RENAME = """
import os, sys
from pathlib import Path
from data_prep.prepare import prepare

catalogue, source, out = map(Path, sys.argv[1:4])
left = int(sys.argv[4])
rename = Path.rename

def rename_or_die(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    return rename(self, target)

Path.rename = rename_or_die
prepare(catalogue, source, out, num_workers=1)
print(left)
"""


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_and_the_next_clears_up(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    def killed_after(renames: int, out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED_AT_A_RENAME, catalogue, source, out, str(renames)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    clean, out = tmp_path / "clean", tmp_path / "out"
    whole = killed_after(1000, clean)
    assert whole.returncode == 0, whole.stderr
    num_renames = 1000 - int(whole.stdout)
    # amid the shards, amid a split, and before each of the last moves into place
    for renames in (1, num_renames // 2, num_renames - 3, num_renames - 1):
        assert killed_after(renames, out).returncode == -9
        with pytest.raises(ShardError, match="no manifest"):
            PreparedData.open(out)
    run(catalogue, source, out)
    assert contents(out) == contents(clean)


def test_a_full_disk_is_one_line(
    catalogue: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(item_writer_module, "write_item_index", full)
    with pytest.raises(DataError, match="the disk is full"):
        run(catalogue, source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_really_full_disk_is_one_line(catalogue: Path, source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk, through every writing library."""
    many_items(source, 40)
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from data_prep.prepare import prepare; from data_prep.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: prepare(*map(Path, sys.argv[1:4]), num_workers=1)\n"
        "except DataError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, catalogue, source, tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr


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


class DeadlyPath:
    """Ends the process that reads it."""

    def read_bytes(self) -> bytes:
        os._exit(9)


def test_a_process_that_dies_is_one_line(source: Path) -> None:
    jobs = [MediumJob(DeadlyPath(), "image")] * 20  # type: ignore[arg-type]
    with pytest.raises(DataError, match="died, most likely for want of memory"):
        list(load_media(jobs, image_side=32, num_workers=2))


def test_processes_end_with_a_killed_parent(source: Path, tmp_path: Path) -> None:
    picture = source / "media" / "c.jpg"
    code = (
        "import sys; from pathlib import Path; from data_prep.media_pool import *\n"
        "import itertools, psutil\n"
        "jobs = itertools.repeat(MediumJob(Path(sys.argv[1]), 'image'))\n"
        "for n, _ in enumerate(load_media(jobs, image_side=32, num_workers=2)):\n"
        "    if n == 100:\n"
        "        print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, picture],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 30
    while left := [pid for pid in children if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


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


def test_a_folder_that_was_trained_on_can_be_prepared_again(
    catalogue: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(catalogue, source, out)
    (out / "cache").mkdir()
    (out / "cache" / "states").write_bytes(b"kept")
    assert prepare(catalogue, source, out).unchanged
    assert (out / "cache" / "states").read_bytes() == b"kept"
