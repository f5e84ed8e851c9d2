"""An export that is killed and started again: nothing twice, nothing missing, the same bytes."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import NUM_ITEMS, tiny_config, write_media

import mmrec.kept_tiles as kept_module
from data_prep.prepare import prepare
from mmrec.config import parse_config
from mmrec.errors import UserError
from mmrec.kept_tiles import KeptTiles, kept_while
from mmrec.model import RecommenderModel
from mmrec.request import Request
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_NEW, TILE = 9, 2
ROW_GROUP = 7


def add_items(source: Path, numbers: range) -> None:
    """Writes new items, with media, into the table."""
    known = pl.read_csv(source / "items.csv", infer_schema=False)
    rows = [{"id": f"i{n}", **write_media(source, n, seed=n)} for n in numbers]
    pl.concat([known, pl.DataFrame(rows)]).write_csv(source / "items.csv")


@pytest.fixture(scope="module")
def grown(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with one encoder cached, one cut and one whole, whose data have grown since.

    Its export encodes the new items, and for the bundle all of them.
    """
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(tiny_source, folder / "source")
    shutil.copy(tiny_source.parent / "catalogue.yaml", folder)
    arguments = (folder / "catalogue.yaml", folder / "source", folder / "data")
    prepare(*arguments, num_workers=1)
    document = tiny_config().model_dump(mode="json")
    for name, blocks in (("text", 0), ("image", 1), ("audio", "all")):
        document["encoders"][name]["trainable_blocks"] = blocks
    document["training"]["max_epochs"] = 1
    train(parse_config(document), folder / "data", folder / "run")
    add_items(folder / "source", range(NUM_ITEMS, NUM_ITEMS + NUM_NEW))
    prepare(*arguments, num_workers=1, update=True)
    return folder


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of two items, so that a dozen items are several."""
    for module in ("mmrec.loaded", "mmrec.retrieval.parts"):
        monkeypatch.setattr(f"{module}.TILE", TILE)


def export(grown: Path, out: Path, **changes: Any) -> None:
    """Everything that an export can write."""
    arguments: dict[str, Any] = {
        "formats": ("parquet", "npy", "faiss"),
        "bundle": True,
        "row_group": ROW_GROUP,
    }
    export_run(grown / "run", out, **(arguments | changes))


def contents_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its place."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def unbroken(grown: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an export gives that nothing interrupts."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mmrec.loaded", "mmrec.retrieval.parts"):
            patch.setattr(f"{module}.TILE", TILE)
        export(grown, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return contents_of(out)


def stopped_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the tile of this number is written."""
    write: Callable[[Path, bytes], None] = kept_module._write
    tiles: Iterator[int] = iter(range(10_000))

    def writes(path: Path, data: bytes) -> None:
        if path.suffix == ".safetensors" and next(tiles) == number:
            path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        write(path, data)

    patch.setattr(kept_module, "_write", writes)


# contents: tiles 0 to 4; users: 5 to 9; items by some of their media: 10 to 21
@pytest.mark.parametrize("number", [1, 7, 21])
def test_interrupted_export_goes_on_and_ends_as_an_unbroken_one(
    number: int,
    grown: Path,
    unbroken: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(number, patch)
        with pytest.raises(KeyboardInterrupt):
            export(grown, out)
    assert not out.exists()
    encoded: list[int] = []
    tokens = RecommenderModel.tokens

    def counting(self: RecommenderModel, media: Mapping[str, Any]) -> Any:
        found = tokens(self, media)
        encoded.append(len(next(iter(found.values())).mask))
        return found

    monkeypatch.setattr(RecommenderModel, "tokens", counting)
    caplog.set_level(logging.INFO)
    export(grown, out)
    assert contents_of(out) == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    num_items = NUM_ITEMS + NUM_NEW
    kept_new = min(number * TILE, NUM_NEW)
    kept_parts = max(number - 10, 0) * TILE
    assert sum(encoded) == NUM_NEW - kept_new + num_items - kept_parts
    assert f"{kept_new} of {NUM_NEW} items kept from an interrupted export" in caplog.text
    kept_users = min((number - 5) * ROW_GROUP, 30)
    assert (f"{kept_users} of 30 users kept" in caplog.text) == (number > 5)
    assert (f"{kept_parts} of {num_items} items by some" in caplog.text) == (number > 10)


def test_every_new_item_is_there_once(unbroken: Mapping[str, bytes], tmp_path: Path) -> None:
    for name, data in unbroken.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    ids, content = Export.open(tmp_path).content()
    assert ids == [f"i{number}" for number in range(NUM_ITEMS + NUM_NEW)]
    assert len(np.unique(content.round(5), axis=0)) == len(ids)


@pytest.mark.parametrize("what", ["weights", "data", "settings", "request"])
def test_what_others_have_computed_is_cleared(
    what: str,
    grown: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = tmp_path / "world"
    shutil.copytree(grown, world)
    document = json.loads((world / "run" / "data.json").read_text())
    (world / "run" / "data.json").write_text(json.dumps(document | {"path": str(world / "data")}))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            export(world, out)
    changes: dict[str, Any] = {"formats": ("parquet",), "bundle": False}
    if what == "weights":
        path = world / "run" / "checkpoints" / "final" / "model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if name.startswith("fusion."))
        save_file(tensors | {name: tensors[name] + 0.1}, path)
    elif what == "data":
        add_items(world / "source", range(NUM_ITEMS + NUM_NEW, NUM_ITEMS + NUM_NEW + 1))
        prepare(
            world / "catalogue.yaml", world / "source", world / "data", num_workers=1, update=True
        )
    elif what == "settings":
        changes["overrides"] = ["evaluation.popularity_share=0.5"]
    else:
        changes["request"] = Request(1_000_000_000)
    caplog.set_level(logging.INFO)
    export(world, out, **changes)
    said = [record.message for record in caplog.records if "interrupted" in record.message]
    assert len(said) == 1
    assert said[0].endswith(f"cleared what an interrupted export had computed from other {what}")
    export(world, tmp_path / "fresh", **changes)
    assert contents_of(out) == contents_of(tmp_path / "fresh")


def test_other_formats_go_on_with_the_same_vectors(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            export(grown, tmp_path / "out")
    caplog.set_level(logging.INFO)
    export(grown, tmp_path / "out", formats=("npy",), bundle=False)
    assert "9 of 9 items kept" in caplog.text and "21 of 30 users kept" in caplog.text


def test_two_exports_to_one_place_are_refused(grown: Path, tmp_path: Path) -> None:
    with (
        kept_while(tmp_path / ".out.kept", {"weights": "a"}),
        pytest.raises(UserError, match="another export writes there; wait for it to end"),
    ):
        export(grown, tmp_path / "out")


def test_tile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def compute(tiles: Any) -> Iterator[torch.Tensor]:
        return (torch.ones(len(rows), 3) for rows in tiles)

    kept = KeptTiles(tmp_path, {"weights": "a"})
    assert [len(each) for each in kept.series("x", 5, compute, tile=2, noun="items")] == [2, 2, 1]
    assert [len(each) for each in kept.series("none", 0, compute, tile=2, noun="items")] == [0]
    (tmp_path / "x-2-000001.safetensors").write_bytes(b"\0" * 100)
    again = KeptTiles(tmp_path, {"weights": "a"})
    assert [len(each) for each in again.series("x", 5, compute, tile=5, noun="items")] == [5]
    with pytest.raises(UserError, match=r"x-2-000001.safetensors: cannot be read .* export again"):
        list(again.series("x", 5, compute, tile=2, noun="items"))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import faiss, pandas, soundfile, torchaudio  # once, and not in every child
import mmrec.loaded, mmrec.retrieval.parts, mmrec.retrieval.export as export_module
run, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
mmrec.loaded.TILE = mmrec.retrieval.parts.TILE = 2

def start(out):
    process = os.fork()
    if not process:
        export_module.export_run(
            run, out, formats=("parquet", "npy", "faiss"), bundle=True, row_group=7
        )
        os._exit(0)
    return process

began = time.monotonic()
assert os.waitpid(start(out.with_name("first")), 0)[1] == 0
whole = time.monotonic() - began
moments = random.Random(seed)
killed = 0
for _ in range(24):
    process = start(out)
    time.sleep(moments.uniform(0.1, 1.0) * whole)
    os.kill(process, signal.SIGKILL)
    if os.waitpid(process, 0)[1] == signal.SIGKILL:
        killed += 1
    else:  # the machine was busier when a whole export was timed
        whole *= 0.8
    assert not out.exists() or (out / "manifest.json").is_file()
    if killed == 6:
        break
assert os.waitpid(start(out), 0)[1] == 0
print(killed)
"""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    seed: int, grown: Path, unbroken: Mapping[str, bytes], tmp_path: Path
) -> None:
    # forked by a process that has started no thread; what is killed is a whole export each time
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(grown / "run"), str(tmp_path / "out"), str(seed)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4, "so few were killed before their end that it says nothing"
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "first") == unbroken
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]
