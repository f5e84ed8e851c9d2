from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_catalogue import RED_PNG, write_catalogue, write_source

from data_prep.errors import DataError, ShardError
from data_prep.prepare import prepare
from data_prep.shard_format import Member, ShardReader, sample_key
from data_prep.shard_writer import ShardWriter, write_histories
from data_prep.shards import UNKNOWN_TIME, HistoryIndex, PreparedData


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    source = write_source(folder / "source")
    prepare(write_catalogue(folder), source, folder / "data", num_workers=1)
    return folder / "data"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


SAMPLES = [
    (sample_key(number), [("json", b"{}"), ("image0.jpg", bytes([number]) * (700 * number))])
    for number in range(7)
]


def write(folder: Path, **limits: int) -> tuple[list[str], dict[str, list[Member]]]:
    folder.mkdir()
    with ShardWriter(folder, "items", **limits) as writer:
        members = {key: writer.write(key, parts) for key, parts in SAMPLES}
    return writer.shards, members


def test_every_byte_comes_back_by_offset_and_by_tarfile(tmp_path: Path) -> None:
    shards, members = write(tmp_path / "s", max_bytes=8192)
    assert len(shards) > 2
    reader = ShardReader(tmp_path / "s")
    listed = []
    for shard in shards:
        with tarfile.open(tmp_path / "s" / shard) as tar:
            listed += [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    wanted = [(f"{key}.{name}", data) for key, parts in SAMPLES for name, data in parts]
    assert listed == wanted
    for key, parts in SAMPLES:
        assert [reader.read(member, key) for member in members[key]] == [d for _, d in parts]


def test_limits_hold_and_samples_stay_whole(tmp_path: Path) -> None:
    shards, members = write(tmp_path / "bytes", max_bytes=8192)
    assert all((tmp_path / "bytes" / shard).stat().st_size <= 8192 for shard in shards)
    assert all(len({member.shard for member in sample}) == 1 for sample in members.values())
    shards, _ = write(tmp_path / "count", max_count=3)
    assert len(shards) == 3


def test_shards_are_byte_identical(tmp_path: Path) -> None:
    shards, _ = write(tmp_path / "a")
    write(tmp_path / "b")
    assert all(
        (tmp_path / "a" / s).read_bytes() == (tmp_path / "b" / s).read_bytes() for s in shards
    )


def test_an_interrupted_shard_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "items") as writer:
        writer.write("0", [("json", b"{}")])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
def test_webdataset_reads_the_same_samples(whole: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    data = PreparedData.open(whole)
    urls = sorted(str(path) for path in (whole / "items").glob("*.tar"))
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        found[sample["__key__"]] = {
            name: value for name, value in sample.items() if not name.startswith("__")
        }
    assert list(found) == [sample_key(index) for index in range(len(data.items))]
    for index in range(len(data.items)):
        members = {member.name: data.items.read(member) for member in data.items.members(index)}
        assert found[sample_key(index)] == members


def test_items_are_found_by_index_and_id(whole: Path) -> None:
    items = PreparedData.open(whole).items
    assert len(items) == 6
    assert items.item_ids == ["i/1.x", "2", "3", "4", "5", "6"]
    assert items.index_of("i/1.x") == 0 and items.index_of("nobody") is None
    assert items.modalities == ("text", "image", "audio", "video", "vector.clip", "attributes")
    assert items.has("text").tolist() == [True] * 6
    assert items.has("image").tolist() == [True, True, False, False, True, False]
    assert items.has("vector.clip").tolist() == [False, False, False, True, False, False]
    assert items.has("attributes").tolist() == [False, True, True, False, False, False]
    assert not items.deleted.any()
    assert (
        items.text(0) == {"title": "Ünder", "plot": "A plot."} and list(items.text(0))[0] == "title"
    )
    assert items.text(1) == {"plot": "Only a plot"}
    assert items.record(1) == {"id": "2", "attributes": {"tags": ["x", "y"], "year": 1995}}
    assert items.record(2) == {"id": "3", "attributes": {"zip": "02136"}}
    assert [member.name for member in items.media(4, "image")] == ["image0.jpg", "image1.png"]
    assert [member.name for member in items.media(1, "image")] == ["image1.png"]
    assert items.read(items.media(1, "image")[0]) == RED_PNG
    vector = items.vector(3, "clip")
    assert vector is not None and vector.dtype == np.float32 and vector.tolist() == [1.0, 0.5]
    assert items.vector(0, "clip") is None
    with pytest.raises(IndexError, match="item_index 6"):
        items.members(6)
    with pytest.raises(DataError, match="'smell'"):
        items.has("smell")


def test_histories_come_back(whole: Path) -> None:
    data = PreparedData.open(whole)
    assert data.user_ids == ["u2", "u1", "u3"] and data.user_index_of("u3") == 2
    full = data.split().full
    assert len(full) == 3 and full.lengths.tolist() == [4, 3, 5]
    history = full.read(0)
    assert history.user_index == 0
    assert history.item_index.tolist() == [0, 1, 2, 3]
    assert history.time is not None and history.time.tolist() == [100, 110, 120, 130]
    assert history.event is not None
    events = [data.manifest["event_types"][code] for code in history.event]
    assert events == ["like", "play", "like", "play"]
    assert history.value is not None and np.isnan(history.value[0]) and history.value[1] == 1.0
    assert history.context == {"device": ["phone"] * 4}
    train = data.split("leave_one_out").train
    assert train.lengths.tolist() == [2, 1, 3]


def test_keys_of_histories_are_user_indexes(whole: Path) -> None:
    folder = whole / "splits" / "leave_one_out"
    with tarfile.open(folder / "histories-full-000000.tar") as tar:
        assert tar.getnames() == [f"{sample_key(user)}.json" for user in range(3)]
        arrays = json.loads(tar.extractfile(tar.getnames()[0]).read())  # type: ignore[union-attr]
    assert {len(arrays[name]) for name in ("item_index", "time", "event", "value")} == {4}


def test_unknown_values_are_marked(tmp_path: Path) -> None:
    arrays = {"item_index": [3, 4], "time": [None, 7], "event": [-1, 0], "value": [None, 2.5]}
    write_histories(tmp_path, "histories-full", [(5, arrays)])
    history = HistoryIndex(tmp_path, "histories-full").read(0)
    assert history.time is not None and history.time.tolist() == [UNKNOWN_TIME, 7]
    assert history.event is not None and history.event.tolist() == [-1, 0]
    assert history.context is None and history.user_index == 5


def test_history_shards_are_numbered(tmp_path: Path) -> None:
    histories = [(user, {"item_index": [user]}) for user in range(5)]
    write_histories(tmp_path, "histories-train", histories, max_count=2)
    index = HistoryIndex(tmp_path, "histories-train")
    assert index.shard_of.tolist() == [0, 0, 1, 1, 2] and len(index.shards) == 3
    assert [index.read(row).item_index.tolist() for row in range(5)] == [[u] for u in range(5)]


def test_readers_survive_pickling(whole: Path) -> None:
    data = pickle.loads(pickle.dumps(PreparedData.open(whole)))
    items = pickle.loads(pickle.dumps(data.items))
    split = pickle.loads(pickle.dumps(data.split()))
    assert items.text(1) == {"plot": "Only a plot"}
    assert pickle.loads(pickle.dumps(split.full)).read(0).item_index.tolist() == [0, 1, 2, 3]


def test_a_manifest_of_another_schema_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace("mmrec-prepared/1", "mmrec-prepared/99"))
    with pytest.raises(ShardError, match="mmrec-prepared/99.*not known.*mmrec-prepared/1"):
        PreparedData.open(copy)


def test_a_split_of_another_schema_is_refused(copy: Path) -> None:
    path = copy / "splits" / "leave_one_out" / "manifest.json"
    path.write_text(path.read_text().replace("mmrec-split/1", "mmrec-split/0"))
    with pytest.raises(ShardError, match="mmrec-split/0"):
        PreparedData.open(copy).split()


@pytest.mark.parametrize("content", ["", "[]", "{", "{}"])
def test_a_damaged_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(ShardError, match="manifest.json"):
        PreparedData.open(copy)


def test_a_folder_without_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(ShardError, match="no manifest"):
        PreparedData.open(copy)


def test_a_truncated_shard_is_refused_at_open(copy: Path) -> None:
    shard = copy / "items" / "items-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-2048])
    with pytest.raises(ShardError, match=r"items-000000.tar: truncated: \d+ bytes"):
        PreparedData.open(copy)


def test_a_shard_truncated_after_opening_is_refused_at_read(copy: Path) -> None:
    items = PreparedData.open(copy).items
    shard = copy / "items" / "items-000000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ShardError, match="items-000000.tar: truncated"):
        items.text(5)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "items" / "index.arrow").unlink()
    with pytest.raises(ShardError, match="index.arrow: the file is missing"):
        PreparedData.open(copy)


def test_a_changed_byte_is_refused(copy: Path) -> None:
    shard = copy / "items" / "items-000000.tar"
    data = PreparedData.open(copy)
    member = data.items.media(4, "image")[1]
    content = bytearray(shard.read_bytes())
    content[member.offset] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="items-000000.tar: wrong sha256"):
        data.items.read(member)
    with pytest.raises(ShardError, match="items-000000.tar: wrong sha256"):
        data.verify()
    data.verify_tables()


def test_an_index_of_other_columns_is_refused(copy: Path) -> None:
    index = copy / "items" / "index.arrow"
    shutil.copy(copy / "items" / "items.arrow", index)
    data = PreparedData(copy, json.loads((copy / "manifest.json").read_text()))
    with pytest.raises(ShardError, match="index.arrow: has columns"):
        len(data.items)
    index.write_bytes(b"not arrow")
    with pytest.raises(ShardError, match="index.arrow: not readable"):
        len(data.items)


def test_an_unknown_split_is_refused(whole: Path) -> None:
    data = PreparedData.open(whole)
    with pytest.raises(DataError, match="no split 'x'; it has leave_one_out"):
        data.split("x")
    with pytest.raises(DataError, match="'train' are not known"):
        data.split().targets("train")


def test_vectors_never_unpickle(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with ShardWriter(tmp_path, "items") as writer:
        (member,) = writer.write("0", [("vector.clip.npy", buffer.getvalue())])
    data = ShardReader(tmp_path).read(member, "0")
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(io.BytesIO(data), allow_pickle=False)
