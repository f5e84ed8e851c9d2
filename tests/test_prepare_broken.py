"""Runs of prepare that break: stopped at a rename, on a full disk, with a process that dies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from preparing import contents, many_items, run
from tiny_catalogue import write_catalogue, write_source

import data_prep.item_writer as item_writer_module
from data_prep.errors import DataError, ShardError
from data_prep.media_pool import MediumJob, load_media
from data_prep.shards import PreparedData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path)


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
