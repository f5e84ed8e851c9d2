"""Media as the encoders' inputs: prepared and new items alike, missing and broken ones named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from PIL import Image

from data_prep.catalogue import Catalogue, parse_catalogue
from data_prep.errors import BrokenMedium, DataError
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from encoders.encoder import Inputs
from mmrec.data import items as items_module
from mmrec.data.items import ItemInputs, NewItems, PreparedMedia
from mmrec.errors import UserError

MODALITIES = ("text", "image", "audio", "vector.clip")
NUM_ITEMS = 6


class Recorder:
    """A transform that keeps the decoded medium: what the encoder would have been given."""

    def __call__(self, medium: Any) -> Any:
        return medium

    def collate(self, samples: Sequence[Any | None]) -> Inputs:
        digests = [
            hashlib.sha256(repr(sample).encode()).digest()[:8] if sample is not None else b"\0" * 8
            for sample in samples
        ]
        return {
            "digest": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8),
            "present": torch.tensor([sample is not None for sample in samples]),
        }

    def fingerprint(self) -> str:
        return "recorder"


TRANSFORMS = {modality: Recorder() for modality in MODALITIES}


def write_picture(path: Path, seed: int, *, size: tuple[int, int] = (40, 30)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_source(source: Path) -> Path:
    """Tables and files: item 3 has no picture, item 4 no text, item 5 no sound and no vector."""
    source.mkdir()
    rows = []
    for i in range(NUM_ITEMS):
        large = i == 0  # its short side is above 256: made smaller by prepare
        write_picture(source / f"{i}.png", i, size=(500, 400) if large else (40, 30))
        tone = np.sin(np.arange(800) * 0.01 * (i + 1)).astype(np.float32)
        soundfile.write(source / f"{i}.wav", tone, 8000)
        rows.append(
            {
                "item_id": f"a/{i}",
                "title": "" if i == 4 else f"Title {i}",
                "plot": None if i == 4 else f"What happens in {i}.",
                "poster": None if i == 3 else f"{i}.png",
                "second": "1.png",
                "sound": None if i == 5 else f"{i}.wav",
                "clip": None if i == 5 else [float(i), 1.0],
            }
        )
    pl.DataFrame(rows).write_parquet(source / "items.parquet")
    log = [(u, f"a/{(u + t) % NUM_ITEMS}", t) for u in range(6) for t in range(4)]
    pl.DataFrame(log, schema=["user", "item", "t"], orient="row").write_csv(source / "log.csv")
    return source


CATALOGUE: dict[str, Any] = {
    "name": "tiny",
    "kind": "video",
    "items": {
        "table": "items.parquet",
        "id": "item_id",
        "text": ["title", "plot"],
        "image": ["poster"],
        "audio": ["sound"],
        "vectors": {"clip": "clip"},
    },
    "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "t"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("items") / "source")


@pytest.fixture(scope="module")
def data(source: Path) -> PreparedData:
    (source.parent / "catalogue.yaml").write_text(json.dumps(CATALOGUE))
    prepare(source.parent / "catalogue.yaml", source, source.parent / "data", num_workers=1)
    return PreparedData.open(source.parent / "data")


@pytest.fixture
def catalogue() -> Catalogue:
    return parse_catalogue(CATALOGUE)


def test_new_items_give_what_prepared_items_give(
    data: PreparedData, source: Path, catalogue: Catalogue
) -> None:
    new = NewItems.from_file(source / "items.parquet", catalogue, source)
    prepared = PreparedMedia(data)
    assert len(new) == len(prepared) == NUM_ITEMS
    for row in range(NUM_ITEMS):
        assert new.item_id(row) == prepared.item_id(row)
        for modality in MODALITIES:
            ours, theirs = new.load(row, modality), prepared.load(row, modality)
            if modality == "audio" and ours is not None and theirs is not None:
                assert np.array_equal(ours.read(), theirs.read())
                assert ours.rate_hz == theirs.rate_hz == 8000
            elif isinstance(ours, np.ndarray):
                assert np.array_equal(ours, theirs)
            else:
                assert ours == theirs
        for modality in ("image", "audio"):
            assert new.digest(row, modality) == prepared.digest(row, modality)
    large = prepared.load(0, "image")
    assert large is not None and large.shape == (256, 320, 3)


def test_collate_says_what_is_present(data: PreparedData) -> None:
    inputs = ItemInputs(data, TRANSFORMS).collate(np.array([5, 0, 3, 4]))
    assert set(inputs) == set(MODALITIES)
    present = {modality: inputs[modality]["present"].tolist() for modality in MODALITIES}
    assert present == {
        "text": [True, True, True, False],
        "image": [True, True, False, True],
        "audio": [False, True, True, True],
        "vector.clip": [False, True, True, True],
    }


def test_text_keeps_fields_in_the_catalogues_order(data: PreparedData) -> None:
    text = PreparedMedia(data).load(1, "text")
    assert list(text.items()) == [("title", "Title 1"), ("plot", "What happens in 1.")]


def test_digests_come_from_the_index_and_change_with_the_medium(data: PreparedData) -> None:
    media = PreparedMedia(data)
    digests = [media.digest(row, m) for m in MODALITIES for row in range(NUM_ITEMS)]
    known = [digest for digest in digests if digest is not None]
    assert len(known) == len(set(known)) == 4 * NUM_ITEMS - 4
    assert media.state == data.data_hash


def test_prepared_medium_that_does_not_decode_is_named(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> None:
        raise BrokenMedium("broken image: made so")

    monkeypatch.setitem(items_module._DECODERS, "image", refuse)
    inputs = ItemInputs(data, TRANSFORMS)
    for _ in range(2):
        assert not inputs.collate(np.array([2, 1]))["image"]["present"].any()
    assert [(b.item_id, b.modality, b.reason) for b in inputs.broken] == [
        ("a/1", "image", "broken image: made so"),
        ("a/2", "image", "broken image: made so"),
    ]


@pytest.mark.parametrize(
    ("poster", "reason"),
    [
        ("nowhere.png", "nowhere.png: No such file"),
        ("log.csv", "log.csv: broken image"),
        ("../catalogue.yaml", "path outside the source folder"),
    ],
    ids=["absent", "no picture", "outside"],
)
def test_new_medium_of_no_use_is_named(
    source: Path, catalogue: Catalogue, poster: str, reason: str
) -> None:
    table = pl.DataFrame({"item_id": ["x"], "title": ["T"], "poster": [poster]})
    inputs = ItemInputs(NewItems(table, catalogue, source), {"image": Recorder()})
    assert inputs.collate(np.array([0]))["image"]["present"].tolist() == [False]
    assert reason in inputs.broken[0].reason


def test_second_picture_stands_in_for_a_broken_first(source: Path) -> None:
    document = {**CATALOGUE, "items": {**CATALOGUE["items"], "image": ["poster", "second"]}}
    table = pl.DataFrame({"item_id": ["x"], "poster": ["log.csv"], "second": ["1.png"]})
    new = NewItems(table, parse_catalogue(document), source)
    pixels = new.load(0, "image")
    assert pixels is not None and pixels.shape == (30, 40, 3)


def test_any_subset_of_columns_will_do(source: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,title\n007,Bond\n")
    new = NewItems.from_file(tmp_path / "new.csv", catalogue, source)
    assert new.item_id(0) == "007"
    assert new.load(0, "text") == {"title": "Bond"}
    assert [new.load(0, modality) for modality in MODALITIES[1:]] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("new.csv", "item_id,name\n1,x\n", UserError, "no column of media"),
        ("new.csv", "id,title\n1,x\n", DataError, "no column 'item_id'"),
        ("new.csv", "item_id,title\n1,x\n1,y\n", DataError, "'1' stands in rows 1 and 2"),
        ("new.txt", "item_id,title\n", DataError, "no such table"),
        ("new.parquet", "no parquet", DataError, "cannot be read"),
    ],
    ids=["no media", "no id", "twice", "ending", "not parquet"],
)
def test_bad_table_is_one_line(
    source: Path,
    catalogue: Catalogue,
    tmp_path: Path,
    name: str,
    content: str,
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        NewItems.from_file(tmp_path / name, catalogue, source)
    assert "\n" not in str(caught.value)


def test_modality_without_a_decoder_is_refused(data: PreparedData) -> None:
    with pytest.raises(UserError, match="encoders.smell: there is no decoder"):
        ItemInputs(data, {"smell": Recorder()})
