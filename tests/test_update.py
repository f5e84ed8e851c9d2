"""Updates of a prepared folder: only what is new is decoded and written, and all else stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_catalogue import encode, photograph

import data_prep.media_pool as media_pool_module
import data_prep.prepare as prepare_module
from data_prep.errors import DataError, ShardError
from data_prep.inspect import inspect, render
from data_prep.install import install_update, settle
from data_prep.item_writer import ItemChanges
from data_prep.prepare import PrepareSummary, prepare
from data_prep.shards import PreparedData

NUM_ITEMS = 24
CATALOGUE: dict[str, Any] = {
    "name": "shop",
    "kind": "shop",
    "items": {"table": "items.csv", "id": "id", "text": ["title"], "image": ["front", "back"]},
    "interactions": {
        "table": "log.csv", "user": "user", "item": "item", "order": "at", "event": "what",
    },
}  # fmt: skip

Row = dict[str, str]


def picture(seed: int) -> bytes:
    return encode(photograph(24, 24, seed=seed))


def row(source: Path, number: int) -> Row:
    """An item with one picture; its row of the table."""
    (source / f"{number}.jpg").write_bytes(picture(number))
    return {"id": f"i{number}", "title": f"Title {number}", "front": f"{number}.jpg", "back": ""}


def write(source: Path, rows: list[Row], events: list[tuple[str, str, int, str]]) -> None:
    pl.DataFrame(rows).write_csv(source / "items.csv")
    names = ["user", "item", "at", "what"]
    pl.DataFrame(events, names, orient="row").write_csv(source / "log.csv")


def some_events() -> list[tuple[str, str, int, str]]:
    """Eight users with six items each, of the first twenty."""
    return [
        (f"u{user}", f"i{(3 * user + 7 * at) % 20}", at, "view" if at % 2 else "buy")
        for user in range(8)
        for at in range(6)
    ]


class Shop:
    """A catalogue that changes, and the folder that is prepared from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.out = folder, folder / "source", folder / "out"
        self.source.mkdir()
        self.rows = [row(self.source, number) for number in range(NUM_ITEMS)]
        self.events = some_events()
        self.decoded: list[str] = []
        (folder / "catalogue.yaml").write_text(json.dumps(CATALOGUE))
        write(self.source, self.rows, self.events)

    def prepare(self, out: Path | None = None, **options: Any) -> PrepareSummary:
        write(self.source, self.rows, self.events)
        self.decoded.clear()
        overrides = options.pop("overrides", ())
        catalogue = self.folder / "catalogue.yaml"
        return prepare(
            catalogue, self.source, out or self.out, overrides=overrides, num_workers=1, **options
        )

    def update(self, **options: Any) -> ItemChanges:
        summary = self.prepare(update=True, **options)
        assert summary.changes is not None and summary.changes.decoded == len(self.decoded)
        assert summary.line().startswith(summary.changes.line())
        PreparedData.open(self.out).verify()
        return summary.changes

    @property
    def data(self) -> PreparedData:
        return PreparedData.open(self.out)

    def grow(self) -> None:
        """Ten items added, one poster changed behind its size and time, one item deleted."""
        self.rows += [row(self.source, number) for number in range(NUM_ITEMS, NUM_ITEMS + 10)]
        replace_quietly(self.source / "3.jpg", picture(99))
        del self.rows[5]


def replace_quietly(path: Path, data: bytes) -> None:
    """Other bytes of the same size and time of modification."""
    status = path.stat()
    # bytes behind the end of a JPEG are no part of the picture
    path.write_bytes(data + bytes(max(0, status.st_size - len(data))))
    os.truncate(path, max(status.st_size, len(data)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    load = media_pool_module.load_medium

    def counted(job: Any, image_side: int) -> Any:
        if job.path.exists():
            shop.decoded.append(job.path.name)
        return load(job, image_side)

    monkeypatch.setattr(media_pool_module, "load_medium", counted)
    yield shop


def items_of(data: PreparedData) -> dict[str, Any]:
    """All that a folder says of the items that are there, by id."""
    groups = data.items.duplicate_groups
    return {
        item_id: (
            data.items.record(index),
            data.items.text(index),
            [(each.name, data.items.read(each)) for each in data.items.members(index)],
            [bool(data.items.has(name)[index]) for name in data.items.modalities],
            sorted(data.items.item_ids[other] for other in np.flatnonzero(groups == groups[index])),
        )
        for index, item_id in enumerate(data.items.item_ids)
        if not data.items.is_deleted(index)
    }


def split_of(data: PreparedData, name: str = "leave_one_out") -> dict[str, Any]:
    """Histories, targets and roles of a split, by ids."""
    split, ids = data.split(name), data.items.item_ids
    found: dict[str, Any] = {}
    types = data.manifest["event_types"]
    for part in ("train", "full"):
        histories = getattr(split, part)
        for place in range(len(histories)):
            history = histories.read(place)
            found[part, data.user_ids[history.user_index]] = [
                (ids[item], types[event])
                for item, event in zip(history.item_index, history.event, strict=True)
            ]
    for which in ("validation", "test"):
        for user, item, position, kind in split.targets(which).iter_rows():
            found[which, data.user_ids[user], position] = (ids[item], kind)
    return found


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_ten_added_one_changed_one_deleted(shop: Shop) -> None:
    shop.prepare()
    before, shards, split = shop.data, contents(shop.out), shop.data.split()
    rows_before = {i: before.items.rows_of(n) for n, i in enumerate(before.items.item_ids)}
    shop.grow()
    assert shop.update() == ItemChanges(added=10, changed=1, deleted=1, untouched=22, decoded=11)
    assert sorted(shop.decoded) == sorted([*(f"{n}.jpg" for n in range(24, 34)), "3.jpg"])
    data = shop.data
    assert data.items.item_ids == [f"i{number}" for number in range(34)]
    assert np.flatnonzero(data.items.deleted).tolist() == [5]
    assert not data.items.has("image")[5] and data.manifest["counts"]["items"] == 33
    # nothing of before was written again; only the index grew
    now = contents(shop.out)
    assert now["items/items-000000.tar"] == shards["items/items-000000.tar"]
    assert "items/items-000001.tar" in now and "items/items-000001.tar" not in shards
    kept = {name for name in rows_before if name not in ("i3", "i5")}
    index_of = data.items.index_of
    assert {name: data.items.rows_of(index_of(name)) for name in kept} == {  # type: ignore[arg-type]
        name: rows_before[name] for name in kept
    }
    # it holds what a folder made anew holds
    shop.prepare(shop.folder / "anew")
    anew = PreparedData.open(shop.folder / "anew")
    assert items_of(data) == items_of(anew) and len(items_of(data)) == 33
    assert split_of(data) == split_of(anew)
    events = sum(item == "i5" for _, item, *_ in shop.events)
    assert events and data.manifest["counts"]["interactions_of_deleted_items"] == events
    assert sum(history.count(("i5", "buy")) for history in split_of(data).values()) == 0
    (line,) = (each for each in render(inspect(shop.out)).splitlines() if "deleted" in each)
    assert line.split() == f"deleted items 1 {events} interactions left out".split()
    # the past of the folder
    assert data.data_hash != before.data_hash
    state = data.state_at(before.data_hash, split.name, split.hash)
    assert state is not None and state.num_items == 24
    assert data.items.changed_since(state.num_index_rows).tolist() == [3, *range(24, 34)]
    assert data.state_at(before.data_hash, split.name, "another") is None


def test_the_same_update_gives_the_same_bytes(shop: Shop) -> None:
    shop.prepare()
    shutil.copytree(shop.out, shop.folder / "copy")
    shop.grow()
    shop.update()
    shop.prepare(shop.folder / "copy", update=True)
    assert contents(shop.out) == contents(shop.folder / "copy")


def test_another_text_copies_the_medium(shop: Shop) -> None:
    shop.prepare()
    shop.rows[2]["title"] = "Renamed"
    shop.rows.reverse()
    assert shop.update() == ItemChanges(changed=1, untouched=23)
    assert shop.data.items.text(2) == {"title": "Renamed"}
    (medium,) = shop.data.items.media(2, "image")
    assert shop.data.items.read(medium) == picture(2) and medium.shard == "items-000001.tar"


def test_nothing_new_does_nothing_and_no_folder_is_made_whole(shop: Shop) -> None:
    first = shop.prepare(update=True)
    assert first.changes == ItemChanges(added=24, decoded=24)
    before = contents(shop.out)
    assert shop.prepare(update=True).unchanged and contents(shop.out) == before
    assert "earlier" not in shop.data.manifest
    shop.grow()
    shop.update()
    assert shop.prepare().unchanged  # the plain command finds it up to date too


def test_new_events_alone(shop: Shop) -> None:
    shop.prepare()
    users, types = shop.data.user_ids, shop.data.manifest["event_types"]
    shop.events = [("a0", f"i{n}", n, "add") for n in range(4)] + shop.events
    assert shop.update() == ItemChanges(untouched=24)
    # rows of users and codes of event types stay: models have learnt them
    assert shop.data.user_ids == [*users, "a0"]
    assert shop.data.manifest["event_types"] == [*types, "add"] == ["buy", "view", "add"]
    shop.prepare(shop.folder / "anew")
    assert split_of(shop.data) == split_of(PreparedData.open(shop.folder / "anew"))


def test_every_split_is_made_again(shop: Shop) -> None:
    shop.prepare()
    shop.prepare(overrides=["split.protocol=none"])
    assert set(shop.data.splits) == {"leave_one_out", "none"}
    shop.grow()
    shop.update(overrides=["split.protocol=none"])
    data = shop.data
    assert {data.split(name).manifest["data_hash"] for name in data.splits} == {data.data_hash}
    whole = split_of(data, "none")
    assert {key[0] for key in whole} == {"train", "full"}  # no targets
    assert sum(len(each) for key, each in whole.items() if key[0] == "train") == len(
        [item for _, item, *_ in shop.events if item != "i5"]
    )
    with pytest.raises(DataError, match=r"split 'none' exists with other settings \(min_events 1"):
        shop.prepare(update=True, overrides=["split.protocol=none", "split.min_events=2"])


def test_an_item_that_comes_back_has_its_row(shop: Shop) -> None:
    shop.prepare()
    whole = items_of(shop.data)
    gone = shop.rows.pop(5)
    assert shop.update() == ItemChanges(deleted=1, untouched=23)
    rows_then = shop.data.items.index.num_rows
    shop.rows.append({"id": "i24", **{k: v for k, v in gone.items() if k != "id"}})
    assert shop.update() == ItemChanges(added=1, untouched=23, decoded=1)
    del shop.rows[-1]
    shop.rows.append(gone)
    assert shop.update() == ItemChanges(added=1, deleted=1, untouched=23, decoded=1)
    assert shop.data.items.index_of("i5") == 5 and not shop.data.items.is_deleted(5)
    assert items_of(shop.data) == whole
    assert shop.data.items.changed_since(rows_then).tolist() == [5]


def test_what_was_set_aside_is_told_again_and_not_decoded_again(shop: Shop) -> None:
    (shop.source / "22.jpg").write_bytes(b"no picture")
    shop.rows[0]["back"] = "absent.jpg"
    shop.rows[22]["title"] = ""  # nothing is left of it
    shop.rows += [row(shop.source, number) for number in range(24, 70)]  # both are below 5 %
    shop.prepare()
    told = (shop.out / "quarantine.jsonl").read_text()
    assert told.count("\n") == 3 and shop.data.items.index_of("i22") is None
    shop.rows[4]["title"] = "Other"
    assert shop.update() == ItemChanges(changed=1, untouched=68)
    assert (shop.out / "quarantine.jsonl").read_text() == told
    (shop.source / "absent.jpg").write_bytes(picture(7777))
    (shop.source / "22.jpg").write_bytes(picture(22))
    assert shop.update() == ItemChanges(added=1, changed=1, untouched=68, decoded=2)
    assert [each.name for each in shop.data.items.media(0, "image")] == ["image0.jpg", "image1.jpg"]
    # its last medium gone, an item is no longer there
    (shop.source / "22.jpg").unlink()
    assert shop.update() == ItemChanges(deleted=1, untouched=69)


def test_many_deletions_are_no_fault_of_the_log(shop: Shop) -> None:
    shop.prepare()
    shop.rows = [each for number, each in enumerate(shop.rows) if number not in range(6)]
    assert shop.update().deleted == 6
    counts = shop.data.manifest["counts"]
    assert counts["interactions_of_deleted_items"] > 0.05 * len(shop.events)
    assert "interaction" not in shop.data.manifest["quarantine"]
    # of another split too, which is added later
    shop.prepare(overrides=["split.protocol=none"])
    train = split_of(shop.data, "none")
    assert not {f"i{n}" for n in range(6)} & {i for h in train.values() for i, _ in h}
    with pytest.raises(DataError, match="interactions cannot be used"):
        shop.prepare(shop.folder / "anew")  # where nobody remembers them


def test_a_folder_of_an_older_version_is_decoded_once(shop: Shop) -> None:
    shop.prepare()
    (shop.out / "items" / "sources.arrow").unlink()
    manifest = json.loads((shop.out / "manifest.json").read_text())
    del manifest["files"]["items/sources.arrow"]
    (shop.out / "manifest.json").write_text(json.dumps(manifest))
    data_hash = shop.data.data_hash
    shop.grow()
    assert shop.update() == ItemChanges(
        added=10, changed=1, deleted=1, untouched=22, decoded=len(shop.rows)
    )
    assert shop.data.manifest["earlier"][0]["data_hash"] == data_hash
    shop.rows[0]["title"] = "Other"
    assert shop.update() == ItemChanges(changed=1, untouched=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["items.text=[title, id]"]}, r"made with text \['title'\], now it is"),
        ({"image_side": 64}, "made with image_side 256, now it is 64"),
    ],
    ids=["columns", "image-side"],
)
def test_other_items_are_refused(shop: Shop, options: dict[str, Any], message: str) -> None:
    shop.prepare()
    before = contents(shop.out)
    with pytest.raises(DataError, match=message) as caught:
        shop.prepare(update=True, **options)
    assert "\n" not in str(caught.value)
    assert contents(shop.out) == before


def test_a_damaged_folder_is_not_gone_on_from(shop: Shop) -> None:
    shop.prepare()
    os.truncate(shop.out / "items" / "items-000000.tar", 1000)
    shop.grow()
    with pytest.raises(ShardError, match="truncated"):
        shop.prepare(update=True)


class Killed(BaseException):
    """Stands for the end of the process."""


def die_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> Callable[[], int]:
    """Ends the process before the n-th change of a folder; deleting one is cut short midway."""
    calls = 0

    def wrap(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def change(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal:
                if name == "rmtree":
                    files = [path for path in Path(args[0]).rglob("*") if path.is_file()]
                    for path in files[: len(files) // 2]:
                        os.unlink(path)
                raise Killed
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, change)

    for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        wrap(owner, name)
    return lambda: calls


def test_cut_short_anywhere_it_is_the_old_folder_or_the_new(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.prepare()
    shop.prepare(overrides=["split.protocol=none"])
    shop.grow()
    staged, begun = shop.folder / "staged", shop.folder / "begun"

    def keep(staging: Path, out: Path) -> None:
        shutil.copytree(staging, staged)
        shutil.copytree(out, begun, ignore=lambda *_: [".staging"])
        install_update(staging, out)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "install_update", keep)
        shop.update()
    old, new = items_of(PreparedData.open(begun)), items_of(shop.data)
    final = contents(shop.out)
    seen = []
    for fatal in range(1, 100):
        out, staging = shop.folder / f"out{fatal}", shop.folder / f"staging{fatal}"
        shutil.copytree(begun, out)
        shutil.copytree(staged, staging)
        with monkeypatch.context() as patch:
            count = die_at(patch, fatal)
            try:
                install_update(staging, out)
            except Killed:
                pass
            if count() < fatal:
                break
        data = PreparedData.open(out)
        data.verify()
        assert set(data.splits) == {"leave_one_out", "none"}
        found = items_of(data)
        assert found in (old, new)
        seen.append(found == new)
        if seen[-1]:  # what is left is put in order by the next run, whatever that does
            assert split_of(data) == split_of(shop.data) and data.user_ids == shop.data.user_ids
            settle(out)
            assert contents(out) == final
        else:
            shop.prepare(out, update=True)
            assert contents(out) == final
    assert seen == sorted(seen) and True in seen and False in seen and len(seen) > 8
    assert contents(out) == final
