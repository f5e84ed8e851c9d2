"""Each kind of bad input, through the command line: status 2, one line that says where to mend it.

What is tested per reader lies with the reader's own tests; here it is what a user sees.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrec.cli import main

CATALOGUE = """\
name: tiny
kind: video
items:
  table: items.csv
  id: item_id
  text: [title]
  image: [poster]
  attributes: {year: {type: number}}
interactions: {table: log.csv, user: user_id, item: item_id, order: pos}
"""
NUM_ITEMS = 40


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The commands set up logging; give the suite its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source folder with nothing wrong in it."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    rows = ["item_id,title,poster,year"]
    for index in range(NUM_ITEMS):
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(picture, "PNG")
        (folder / f"{index}.png").write_bytes(picture.getvalue())
        rows.append(f"i{index},title {index},{index}.png,{1990 + index}")
    (folder / "items.csv").write_text("\n".join(rows) + "\n")
    events = [
        f"u{user},i{(user * 7 + pos * 3) % NUM_ITEMS},{pos}"
        for user in range(12)
        for pos in range(6)
    ]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,pos", *events]) + "\n")
    (folder / "catalogue.yaml").write_text(CATALOGUE)
    return folder


@pytest.fixture
def source(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound source, to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "source"))


def prepare(source: Path, out: Path, *overrides: str) -> int:
    words = ["prepare", str(source / "catalogue.yaml"), "--source", str(source), "--out", str(out)]
    return main([*words, "--num-workers", "1", *overrides])


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A spoiler that replaces the first `old` of a file; the file must hold it."""

    def spoil(source: Path) -> None:
        text = (source / name).read_text()
        assert old in text
        (source / name).write_text(text.replace(old, new, 1))

    return spoil


def empty_pictures(source: Path) -> None:
    for index in range(NUM_ITEMS // 4):
        (source / f"{index}.png").write_bytes(b"no picture")


def test_sound_input_is_prepared(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the tests below could fail for a reason of their own."""
    assert prepare(sound, tmp_path / "data") == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and "quarantined: nothing" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(edit("catalogue.yaml", "[title]", "[titel]"), ["titel"], id="missing-column"),
        pytest.param(edit("items.csv", ",1990", ",old"), ["year", "old"], id="wrong-type"),
        pytest.param(edit("items.csv", "i1,", "i0,"), ["i0", "items.csv"], id="duplicate-item"),
        pytest.param(
            edit("catalogue.yaml", "  text:", "  txt:"), ["txt", "text"], id="unknown-key"
        ),
        pytest.param(edit("catalogue.yaml", "log.csv", "logs.csv"), ["logs.csv"], id="no-table"),
        pytest.param(edit("catalogue.yaml", "items.csv", "../items.csv"), [".."], id="escapes"),
        pytest.param(
            edit("catalogue.yaml", "name: tiny", "name: [tiny"), ["line 2: expected"], id="no-yaml"
        ),
        pytest.param(empty_pictures, ["5%"], id="much-quarantined"),
    ],
)
def test_prepare_refuses(
    spoil: Callable[[Path], None],
    says: list[str],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(source)
    out = tmp_path / "data"
    assert prepare(source, out) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    assert all(word in captured.err for word in says), captured.err
    assert not (out / "manifest.json").exists()


def test_unknown_override(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(source, tmp_path / "data", "split.cold_tset=0.1") == 2
    assert "cold_test" in capsys.readouterr().err


def test_one_broken_medium_is_counted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "3.png").write_bytes(b"no picture")
    assert prepare(source, tmp_path / "data") == 0
    assert "quarantined: 1 medium" in capsys.readouterr().out
    lines = (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 1 and "3.png" in lines[0]


def test_inspect_prints_json(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source, tmp_path / "data")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "data"), "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert "quarantine" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("name", ["manifest.json", "items/index.arrow"])
def test_inspect_refuses_a_damaged_folder(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source, tmp_path / "data")
    capsys.readouterr()
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["inspect", str(tmp_path / "data")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and Path(name).name in captured.err, captured.err


def test_inspect_refuses_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "not a prepared folder" in capsys.readouterr().err
