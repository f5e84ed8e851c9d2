"""One content, whichever way it is asked for: export, library, service and score, in any batch.

For each modality alone and for all at once, for encoders that are cached whole, up to a cut, or not
at all, of our own and of the families that have weights, which are random here: those part contents
most. Where states are cached in fp16, what two batches compute may fall on both sides of a step:
there 1e-5 holds for every item whose states are the same, and states differ by one step at most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from encoder_families import TEXTS, make_bert
from tiny_catalogue import clip
from tiny_run import NUM_ITEMS, tiny_config

from data_prep.prepare import prepare
from encoders.text import train_vocabulary
from encoders.tokens import Tokens
from mmrec.build import LiveInputs
from mmrec.config import Config, parse_config
from mmrec.data.items import ItemInputs, NewItems
from mmrec.loaded import LoadedRun, load_run, open_source
from mmrec.recommender import Recommender
from mmrec.retrieval.cold import score_file
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.serving.answering import encode_items
from mmrec.serving.given_items import Upload, stored_item
from mmrec.serving.settings import Limits
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

COLUMNS = {
    "text": ["title", "plot"],
    "image": ["poster"],
    "audio": ["sound"],
    "video": ["film"],
    "vector.look": ["look"],
    "attributes": ["year", "series"],
}
ALONE = dict(enumerate(COLUMNS, start=6))
"""Items that have one modality and nothing else; the others have all."""
FILES = ("poster", "sound", "film")
TOLERANCE = 1e-5
ONE_STEP = 5e-4
"""What one step of fp16 in a state of so small a model can do to a content; see test_cold.py."""
EVERYTHING = list(range(NUM_ITEMS))
LAST = "two threads, alone"
WAYS: dict[str, tuple[list[list[int]], int]] = {
    "together": ([EVERYTHING], 1),
    "alone": ([[row] for row in EVERYTHING], 1),
    "by threes": ([EVERYTHING[at : at + 3] for at in range(0, NUM_ITEMS, 3)], 1),
    "others beside": ([EVERYTHING[::-1][at : at + 5] for at in range(0, NUM_ITEMS, 5)], 1),
    "two threads": ([EVERYTHING], 2),
    LAST: ([[row] for row in EVERYTHING], 2),
}
"""Batches of items that are encoded together, and threads."""
LAST_RUN = "float16"
RUNS: dict[str, int | str] = {
    "cached": 0,
    "cut": 1,
    "whole": "all",
    "families": 0,
    "families-cut": 1,
    "families-int8": 0,
    LAST_RUN: 0,
}
"""Blocks that train in each run."""
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, and data prepared from it, of every modality."""
    folder = tmp_path_factory.mktemp("parity")
    source = folder / "source"
    source.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(NUM_ITEMS):
        for suffix in ("png", "wav"):
            name = f"{number}.{suffix}"
            (source / name).write_bytes((tiny_source / name).read_bytes())
        (source / f"{number}.mp4").write_bytes(clip(1 + number % 5))
        row: dict[str, Any] = {
            "title": f"The river {number}",
            "plot": "storm night " * (1 + number),
            "poster": f"{number}.png",
            "sound": f"{number}.wav",
            "film": f"{number}.mp4",
            "look": random.normal(size=5).tolist(),
            "year": 1990.0 + number,
            "series": f"s{number % 3}",
        }
        kept = COLUMNS[ALONE[number]] if number in ALONE else list(row)
        rows.append({"id": f"i{number}", **{k: v if k in kept else None for k, v in row.items()}})
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(source / "items.parquet")
    (source / "log.csv").write_bytes((tiny_source / "log.csv").read_bytes())
    document = json.loads((tiny_source.parent / "catalogue.yaml").read_text())
    document["items"] |= {
        "table": "items.parquet",
        "video": ["film"],
        "vectors": {"look": "look"},
        "attributes": {"year": {"type": "number"}, "series": {"type": "category"}},
    }
    (folder / "catalogue.yaml").write_text(json.dumps(document))
    prepare(folder / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder


def bert_folder(folder: Path) -> Path:
    """A small BERT of random weights, as transformers saves it."""
    make_bert().model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_vocabulary(TEXTS, 200), encoding="utf-8")
    return folder


def families(folder: Path, blocks: int) -> dict[str, dict[str, Any]]:
    """Encoders of families that have pretrained weights, here with random ones."""
    weights = {"kind": "transformers", "weights": str(bert_folder(folder))}
    net = {"kind": "timm", "architecture": "resnet10t", "options": {"size": 64}}
    return {
        "text": {**weights, "num_tokens": 8, "trainable_blocks": blocks},
        "image": {**net, "num_tokens": 4, "trainable_blocks": blocks},
        "audio": {"kind": "musicnn", "num_tokens": 4, "options": {"max_seconds": 3.0}},
    }


def settings_of(name: str, folder: Path) -> Config:
    """Settings of a run that reads every modality, by its name in RUNS."""
    blocks = RUNS[name]
    document = tiny_config(trainable_blocks=blocks).model_dump(mode="json")
    options = {"width": 32, "size": 32, "frames": 3}
    document["encoders"] |= {
        "video": {"num_tokens": 4, "options": options, "trainable_blocks": blocks},
        "vector.look": {"kind": "vector"},
        "attributes": {"kind": "fields"},
    }
    if name.startswith("families") and isinstance(blocks, int):
        document["encoders"] |= families(folder / f"weights-{name}", blocks)
    if name == "families-int8":
        document["encoders"]["text"]["options"] = {"int8": True}
    if name == "float16":
        for each in document["encoders"].values():
            each["cache_dtype"] = "float16"
    document["training"]["max_epochs"] = 1
    return parse_config(document)


@pytest.fixture(scope="module", params=[*list(RUNS)[:-1], pytest.param(LAST_RUN, marks=SLOW)])
def run(request: pytest.FixtureRequest, world: Path) -> Path:
    """A run that reads every modality; the export of it lies beside it."""
    folder = world / request.param
    train(settings_of(request.param, world), world / "data", folder)
    export_run(folder, folder / "export")
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return load_run(run)


def new_items(recommender: Recommender, source: Path, rows: Sequence[int]) -> NewItems:
    table = pl.read_parquet(source / "items.parquet")[list(rows)]
    table.write_parquet(source / "asked.parquet")
    return recommender.new_items(source / "asked.parquet", source)


def by_library(recommender: Recommender, source: Path, rows: Sequence[int]) -> np.ndarray:
    """Contents of some items in one call."""
    found = recommender.embed_items(new_items(recommender, source, rows))
    assert found.item_ids == [f"i{row}" for row in rows] and found.content is not None
    return found.content


def by_service(recommender: Recommender, source: Path, row: int) -> np.ndarray:
    """Content of one item, as `/v1/embed/media` and `/v1/score` make it of an upload."""
    given = pl.read_parquet(source / "items.parquet").row(row, named=True)
    known = {name: value for name, value in given.items() if value is not None}
    upload = Upload(
        known.pop("id"),
        {
            "vector.look" if name == "look" else name: str(value)
            for name, value in known.items()
            if name not in FILES
        },
        {name: (source / known[name]).read_bytes() for name in FILES if name in known},
    )
    retriever = recommender.retriever
    item = stored_item(
        upload, retriever.catalogue, image_side=retriever.image_side, limits=Limits()
    )
    found: np.ndarray = encode_items(retriever, [item]).content[0].numpy()
    return found


def same_states(
    recommender: Recommender, loaded: LoadedRun, source: Path, batches: list[list[int]]
) -> np.ndarray:
    """(N,) whether the states of an item in its batch are those that the cache holds.

    Where they are not, they are one step of fp16 apart.
    """
    cached = open_source(loaded)
    assert cached is not None
    media = new_items(recommender, source, EVERYTHING)
    inputs = ItemInputs(media, recommender.retriever.transforms)
    live = LiveInputs(inputs, loaded.model, loaded.state["cache_dtypes"])
    same = np.ones(NUM_ITEMS, np.bool_)
    for batch in batches:
        theirs, ours = (each.collate(np.array(batch)) for each in (cached, live))
        for name in loaded.model.cached:
            a, b = theirs[name], ours[name]
            assert isinstance(a, Tokens) and isinstance(b, Tokens)
            assert torch.equal(a.mask, b.mask)
            apart = (a.values - b.values).abs() * a.mask[..., None]
            assert (apart <= 2**-10 * a.values.abs() + 1e-6).all(), name
            same[batch] &= (apart.amax((1, 2)) == 0).numpy()
    return same


@pytest.mark.parametrize("way", [*list(WAYS)[:-1], pytest.param(LAST, marks=SLOW)])
def test_content_is_the_same_in_every_batch(
    run: Path, recommender: Recommender, loaded: LoadedRun, world: Path, way: str
) -> None:
    batches, threads = WAYS[way]
    source = world / "source"
    ids, exported = Export.open(run / "export").content()
    assert ids == [f"i{row}" for row in EVERYTHING]
    torch.set_num_threads(threads)
    found = np.zeros_like(exported)
    for batch in batches:
        found[batch] = by_library(recommender, source, batch)
    apart = np.abs(found - exported).max(axis=1)
    if run.name != "float16":
        assert apart.max() < TOLERANCE
        return
    same = same_states(recommender, loaded, source, batches)
    assert apart[same].max() < TOLERANCE and apart.max() < ONE_STEP
    assert same.sum() > NUM_ITEMS / 2


def test_service_and_tiles_give_the_bits_of_single_items_and_batches(
    recommender: Recommender, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world / "source"
    for row in EVERYTHING:
        alone = by_library(recommender, source, [row])[0]
        assert np.array_equal(by_service(recommender, source, row), alone)
    by_threes = [by_library(recommender, source, batch) for batch in WAYS["by threes"][0]]
    monkeypatch.setattr("mmrec.retrieval.content.TILE", 3)  # loaded ahead, in another thread
    assert np.array_equal(by_library(recommender, source, EVERYTHING), np.concatenate(by_threes))


def test_every_modality_is_there_alone_and_tells_items_apart(
    run: Path, recommender: Recommender
) -> None:
    has = recommender.retriever.items.modalities
    assert [has(row) for row in ALONE] == [[name] for name in ALONE.values()]
    assert sorted(has(0)) == sorted(COLUMNS)
    contents = Export.open(run / "export").content()[1]
    apart = np.abs(contents[:, None] - contents[None]).max(axis=2)
    assert apart[~np.eye(NUM_ITEMS, dtype=bool)].min() > 10 * TOLERANCE


def test_score_is_the_product_of_exported_vectors(
    run: Path, recommender: Recommender, loaded: LoadedRun, world: Path
) -> None:
    source, out = world / "source", run / "scores.parquet"
    whole = [row for row in range(NUM_ITEMS) if row not in ALONE]  # nothing is told from the rest
    new_items(recommender, source, whole)
    score_file(run, source / "asked.parquet", source, out)
    export = Export.open(run / "export")
    item_ids, content = export.content()
    user_ids, users = export.users()
    products = pl.DataFrame(
        {
            "user_id": np.repeat(user_ids, len(item_ids)),
            "item_id": item_ids * len(user_ids),
            "product": (users[:, :-1] @ content.T).ravel(),
        }
    )
    both = pl.read_parquet(out).join(products, on=["user_id", "item_id"])
    assert len(both) == len(whole) * len(user_ids)
    apart = (both["score"] - both["product"]).abs()
    if run.name != "float16":
        assert apart.max() < TOLERANCE
        return
    assert apart.max() < 4 * ONE_STEP
    same = same_states(recommender, loaded, source, [whole])
    equal = [f"i{row}" for row in whole if same[row]]
    assert apart.filter(both["item_id"].is_in(equal)).max() < TOLERANCE
