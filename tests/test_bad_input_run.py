"""Bad input to a finished run, through the command line: status 2, one line, nothing written.

Bad input to `prepare` is in `test_bad_input`.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep.prepare import prepare
from mmrec.cli import main

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """The commands set up logging and torch; give the suite its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def other_data(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same catalogue, prepared after one title was changed."""
    source = tmp_path_factory.mktemp("other") / "source"
    shutil.copytree(tiny_source, source)
    table = source / "items.csv"
    text = table.read_text(encoding="utf-8")
    assert ",The " in text
    table.write_text(text.replace(",The ", ",Their ", 1), encoding="utf-8")
    data = source.parent / "data"
    prepare(tiny_source.parent / "catalogue.yaml", source, data, num_workers=1)
    return data


@pytest.fixture(scope="module")
def other_split(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same items and log under another draw of cold items."""
    data = tmp_path_factory.mktemp("other_split") / "data"
    catalogue = tiny_source.parent / "catalogue.yaml"
    name = ["split.name=leave_one_out-cold", "split.seed=5"]
    prepare(catalogue, tiny_source, data, overrides=name, num_workers=1)
    return data


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says, its status being 2."""
    status = main(["--quiet", *words])
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    assert captured.err.startswith("mmrec: ")
    return captured.err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def words_of(command: str, run: Path, source: Path, out: Path) -> list[str]:
    """A sound call of a command that reads a run."""
    score = ["--items", str(source / "items.csv"), "--source", str(source), "--out", str(out)]
    return {
        "evaluate": ["evaluate", str(run)],
        "stability": ["stability", str(run)],
        "export": ["export", str(run), "--out", str(out)],
        "score": ["score", str(run), *score],
        "recommend": ["recommend", str(run), "--user", "u0"],
        "similar": ["similar", str(run), "--item", "i1"],
        "train": ["train", str(run / "config.yaml"), "--run", str(run), "--resume"],
    }[command]


COMMANDS = ("evaluate", "stability", "export", "score", "recommend", "similar", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_data_the_run_was_not_trained_on(
    command: str,
    tiny_run: Path,
    tiny_source: Path,
    other_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(tiny_run)
    words = words_of(command, tiny_run, tiny_source, tmp_path / "out")
    line = refusal([*words, "--data", str(other_data)], capsys)
    assert str(other_data) in line and str(tiny_run) in line, line
    assert "hash" in line and "give --data the folder it was" in line, line
    assert contents(tiny_run) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_split_the_run_was_not_trained_on(
    command: str,
    tiny_run: Path,
    tiny_source: Path,
    other_split: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(command, tiny_run, tiny_source, tmp_path / "out")
    line = refusal([*words, "--data", str(other_split)], capsys)
    assert str(other_split) in line and str(tiny_run) in line, line
    assert "split" in line and "give --data the folder it was" in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_data_that_have_moved(
    command: str,
    tiny_run: Path,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder that data.json names is gone: the line says how to name another."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    text = (run / "data.json").read_text(encoding="utf-8")
    path = text.split('"path": "')[1].split('"')[0]
    (run / "data.json").write_text(text.replace(path, path + "-gone"), encoding="utf-8")
    line = refusal(words_of(command, run, tiny_source, tmp_path / "out"), capsys)
    assert path + "-gone" in line and "--data" in line, line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(
            ["recommend", "RUN", "--user", "nobody"],
            ["no known user among 'nobody'", "'u0'"],
            id="user",
        ),
        pytest.param(
            ["recommend", "RUN", "--history", "x,y"],
            ["no known item among 'x', 'y'", "'i0'"],
            id="history",
        ),
        pytest.param(["similar", "RUN", "--item", "x"], ["item 'x'", "'i0'"], id="item"),
        pytest.param(
            ["score", "RUN", "--users", "nobody,noone", "--items", "SOURCE/items.csv"],
            ["no known user among 'nobody', 'noone'", "'u0'"],
            id="users",
        ),
        pytest.param(
            ["score", "RUN", "--users", ",", "--items", "SOURCE/items.csv"],
            ["--users names no id", "or all"],
            id="no-users",
        ),
    ],
)
def test_no_known_id(
    words: list[str],
    says: list[str],
    tiny_run: Path,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [w.replace("RUN", str(tiny_run)).replace("SOURCE", str(tiny_source)) for w in words]
    if words[0] == "score":
        given += ["--source", str(tiny_source), "--out", str(tmp_path / "scores.parquet")]
    line = refusal(given, capsys)
    assert all(part in line for part in says), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [True, False], ids=["missing", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "data.json",
        "config.yaml",
        "checkpoints/final/model.safetensors",
        "checkpoints/final/content.safetensors",
        "checkpoints/final/state.json",
    ],
)
def test_a_damaged_run(
    name: str, whole: bool, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    path = run / name
    content = path.read_bytes()
    path.unlink()
    if not whole:
        path.write_bytes(content[: len(content) // 2])
    line = refusal(["recommend", str(run), "--user", "u0"], capsys)
    assert Path(name).name in line or "holds no finished model" in line, line


def flip(path: Path) -> None:
    """Changes a byte in the middle of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "items/items.arrow",
        "items/index.arrow",
        "users.parquet",
        "splits/leave_one_out-cold/items.parquet",
        "splits/leave_one_out-cold/targets-test.parquet",
        "splits/leave_one_out-cold/histories-full.index.arrow",
    ],
)
@pytest.mark.parametrize("command", ["inspect", "train", "evaluate"])
def test_a_changed_table_of_the_data(
    command: str,
    name: str,
    tiny_run: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    flip(data / name)
    new = tmp_path / "run"
    words = {
        "inspect": ["inspect", str(data)],
        "train": ["train", str(tiny_run / "config.yaml"), "--data", str(data), "--run", str(new)],
        "evaluate": ["evaluate", str(tiny_run), "--data", str(data)],
    }[command]
    line = refusal(words, capsys)
    assert f"{data / name}: wrong sha256" in line and "mmrec prepare" in line, line
    assert not new.exists()


@pytest.mark.parametrize("kind", ["items", "histories-full"])
def test_a_changed_shard_of_the_data(
    kind: str, tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data, ignore=shutil.ignore_patterns("cache"))
    (shard,) = data.rglob(f"{kind}-000000.tar")
    content = bytearray(shard.read_bytes())
    for place in range(0, len(content), 64):
        content[place] ^= 0xFF
    shard.write_bytes(content)
    words = ["train", str(tiny_run / "config.yaml"), "--data", str(data)]
    line = refusal([*words, "--run", str(tmp_path / "run")], capsys)
    assert shard.name in line and "wrong sha256" in line, line


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("name,title\nx,A", ["'id'"]),
        ("id,name\nx,A", ["no column of media", "title", "poster"]),
        ("id,title\nx,A\nx,B", ["'x'", "rows 1 and 2"]),
    ],
    ids=["no-id", "no-media", "duplicate"],
)
def test_a_table_of_new_items_at_fault(
    row: str,
    says: list[str],
    tiny_run: Path,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "new.csv"
    table.write_text(row + "\n")
    out = tmp_path / "scores.parquet"
    words = ["score", str(tiny_run), "--items", str(table), "--source", str(tiny_source)]
    line = refusal([*words, "--out", str(out)], capsys)
    assert "new.csv" in line and all(part in line for part in says), line
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def on_a_small_disk(size: str, disk: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command where `disk` is a file system of this size; lists the files left there.

    Skips the test where the system does not let us mount one.
    """
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs '{disk}'"
    try:
        tried = subprocess.run([*mounted, mount], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if tried.returncode:
        pytest.skip("a file system cannot be mounted here")
    script = f"{mount}; \"$@\"; status=$?; find '{disk}' -type f; exit $status"
    command = [sys.executable, "-m", "mmrec.cli", "--quiet", *words]
    return subprocess.run(
        [*mounted, script, "sh", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("command", "size"),
    [("prepare", "96k"), ("train", "96k"), ("export", "16k"), ("score", "4k")],
)
def test_a_full_disk(
    command: str, size: str, tiny_run: Path, tiny_source: Path, tiny_data: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "out"
    catalogue = str(tiny_source.parent / "catalogue.yaml")
    words = {
        "prepare": ["prepare", catalogue, "--source", str(tiny_source), "--out", str(out)],
        "train": [
            *["train", str(tiny_run / "config.yaml"), "--data", str(tiny_data), "--run", str(out)]
        ],
    }.get(command) or words_of(command, tiny_run, tiny_source, out)
    ended = on_a_small_disk(size, disk, words)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("mmrec: "), ended.stderr
    assert "disk" in ended.stderr and "full" in ended.stderr, ended.stderr
    left = [Path(line).relative_to(disk) for line in ended.stdout.splitlines()]
    if command == "train":  # what --resume goes on from, and no checkpoint that is not whole
        assert not [path for path in left if "final" in path.parts], left
    elif command == "export":  # what the same command goes on from, each file of it whole
        assert {path.parts[0] for path in left} <= {".out.kept"}, left
        assert not [path for path in left if path.name.startswith(".")], left
    else:
        assert left == []
