"""Prepared folders on a remote path: mirrored, shards copied when first read, checked, shared."""

import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from safetensors.torch import load_file
from tiny_catalogue import write_catalogue, write_source
from tiny_run import tiny_config

from data_prep import remote
from data_prep.errors import DataError, ShardError
from data_prep.prepare import prepare
from data_prep.remote import fetch, mirror
from data_prep.shards import PreparedData
from mmrec.cli import main
from mmrec.config import change, dump_config

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    source = write_source(folder / "source")
    prepare(write_catalogue(folder), source, folder / "data", num_workers=1)
    return folder / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "mirrors"))
    return tmp_path / "mirrors"


@pytest.fixture
def url(whole: Path) -> Iterator[str]:
    """The folder in fsspec's memory."""
    place = f"memory://{uuid.uuid4().hex}/shop"
    system, base = fsspec.core.url_to_fs(place)
    system.put(str(whole), base, recursive=True)
    yield place
    system.rm(base, recursive=True)


def system_of(url: str) -> tuple[Any, str]:
    system, base = fsspec.core.url_to_fs(url)
    return system, str(base)


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.tar"))


def test_shards_come_when_they_are_first_read(whole: Path, url: str) -> None:
    folder = mirror(url)
    assert shards_of(folder) == []
    here, there = PreparedData.open(whole), PreparedData.open(folder)
    there.verify_tables()
    assert there.data_hash == here.data_hash and there.splits == here.splits
    assert shards_of(folder) == []
    for item_index in range(len(here.items)):
        assert there.items.record(item_index) == here.items.record(item_index)
        assert there.items.text(item_index) == here.items.text(item_index)
    assert {path.parent.name for path in shards_of(folder)} == {"items"}
    train = there.split().train
    assert train.read(0).item_index.tolist() == here.split().train.read(0).item_index.tolist()
    there.verify()  # fetches what is still away
    assert [p.relative_to(folder) for p in shards_of(folder)] == [
        p.relative_to(whole) for p in shards_of(whole)
    ]


def test_a_shard_is_copied_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mirror(url)
    copied = []
    copy = remote._copy
    monkeypatch.setattr(remote, "_copy", lambda *given: (copied.append(given[2]), copy(*given)))
    for _ in range(2):
        PreparedData.open(mirror(url)).items.record(0)
    assert [os.path.basename(place) for place in copied] == ["items-000000.tar"]
    assert mirror(url) == folder


def test_other_data_under_the_same_url_have_another_mirror(url: str) -> None:
    folder = mirror(url)
    system, base = system_of(url)
    manifest = json.loads(system.cat_file(f"{base}/manifest.json"))
    system.pipe_file(f"{base}/manifest.json", json.dumps(manifest, indent=3).encode())
    assert mirror(url) != folder


def test_a_split_that_came_since_is_added(whole: Path, url: str, tmp_path: Path) -> None:
    folder = mirror(url)
    assert len(PreparedData.open(folder).splits) == 1
    grown = Path(shutil.copytree(whole, tmp_path / "grown"))
    prepare(
        whole.parent / "catalogue.yaml",
        whole.parent / "source",
        grown,
        num_workers=1,
        overrides=["split.cold_test=0.2"],
    )
    system, base = system_of(url)
    system.put(str(grown / "splits"), f"{base}/", recursive=True)
    assert (grown / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert mirror(url) == folder
    data = PreparedData.open(folder)
    assert data.splits == PreparedData.open(grown).splits and len(data.splits) == 2
    data.verify()


def test_a_changed_shard_is_refused(url: str) -> None:
    folder = mirror(url)
    system, base = system_of(url)
    shard = f"{base}/items/items-000000.tar"
    data = system.cat_file(shard)
    system.pipe_file(shard, bytes(byte ^ 1 for byte in data))
    with pytest.raises(ShardError, match="wrong sha256"):
        PreparedData.open(folder).items.record(0)


def test_a_copy_that_breaks_off_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mirror(url)
    system, _ = system_of(url)

    def break_off(self: Any, place: str, local: str, **_: Any) -> None:
        Path(local).write_bytes(b"half")
        raise ConnectionResetError("reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr(type(system), "get_file", break_off)
        with pytest.raises(ShardError, match="cannot read items-000000.tar: ConnectionResetError"):
            PreparedData.open(folder).items.record(0)
    assert shards_of(folder) == [] and list(folder.rglob("*.part")) == []
    assert PreparedData.open(folder).items.record(0)["id"]


def read_all(folder: Path) -> list[str]:
    data = PreparedData.open(folder)
    return [data.items.record(row)["id"] for row in range(len(data.items))]


def test_processes_share_a_mirror(whole: Path) -> None:
    folder = mirror(f"file://{whole}")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(read_all, [folder] * 6)
    assert all(ids == PreparedData.open(whole).items.item_ids for ids in found)
    assert list(folder.rglob("*.part")) == []


def test_a_path_in_no_mirror_is_left_alone(tmp_path: Path) -> None:
    assert not fetch(tmp_path / "items" / "items-000000.tar")


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ("memory://nowhere/at/all", "memory://nowhere/at/all: cannot read manifest.json: there is"),
        ("nosuch://bucket/data", "nosuch://bucket/data: Protocol not known: nosuch"),
        ("https://me:secret@host/data", "https://host/data: holds a password"),
    ],
)
def test_a_bad_url_is_one_line(
    location: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="^" + line.replace("/", "/")):
        mirror(location)
    assert main(["inspect", location]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1 and "secret" not in told


def test_a_run_on_a_url_equals_one_on_the_folder(
    tiny_data: Path, tmp_path: Path, cache: Path
) -> None:
    config = change(tiny_config(trainable_blocks="all"), {"data.num_workers": 2}, "test")
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    # without the state caches, so that every medium is read from the shards
    served = shutil.copytree(tiny_data, tmp_path / "served", ignore=shutil.ignore_patterns("cache"))
    finals = []
    for name, data in (("url", f"file://{served}"), ("folder", str(tiny_data))):
        given = [str(tmp_path / "config.yaml"), "--data", data, "--run", str(tmp_path / name)]
        assert main(["train", *given]) == 0
        finals.append(load_file(tmp_path / name / "checkpoints" / "final" / "model.safetensors"))
    assert finals[0].keys() == finals[1].keys()
    assert all(bool((finals[0][key] == finals[1][key]).all()) for key in finals[0])
    assert main(["evaluate", str(tmp_path / "url")]) == 0
    assert len(list(cache.iterdir())) == 1
