"""The life of a catalogue: what a model of before makes of it, and one that starts from that."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import NUM_ITEMS, NUM_USERS, tiny_config, write_media

import data_prep.media_pool as media_pool_module
import mmrec.data.fill as fill_module
from data_prep.item_writer import ItemChanges
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import Assembly, assemble
from mmrec.config import Config, change
from mmrec.errors import CheckpointMismatch, UserError
from mmrec.evaluation.command import evaluate_run
from mmrec.loaded import load_run, open_data
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.summary import summarise
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

CHANGED, DELETED = "i2", "i6"
ADDED = [f"i{number}" for number in range(NUM_ITEMS, NUM_ITEMS + 10)]


class Grown:
    """A copy of the tiny folder that is brought up to date with a copy of its source."""

    def __init__(self, source: Path, data: Path, folder: Path) -> None:
        self.source, self.data = folder / "source", folder / "data"
        self.catalogue = source.parent / "catalogue.yaml"
        shutil.copytree(source, self.source)
        shutil.copytree(data, self.data)
        self.items = pl.read_csv(self.source / "items.csv", infer_schema=False)
        self.log = pl.read_csv(self.source / "log.csv", infer_schema=False)

    def grow(self) -> None:
        """Ten items added, one poster changed, one item deleted."""
        rows = [
            {"id": name, **write_media(self.source, number, seed=number)}
            for number, name in enumerate(ADDED, start=NUM_ITEMS)
        ]
        self.items = pl.concat([self.items, pl.DataFrame(rows)]).filter(pl.col("id") != DELETED)
        poster = self.items.filter(pl.col("id") == CHANGED)["poster"].item()
        other = write_media(self.source, 77, seed=77)["poster"]
        shutil.copyfile(self.source / other, self.source / poster)

    def meet(self, item_ids: list[str]) -> None:
        """Every user meets items behind all that he has met."""
        met = [
            (f"u{user}", item, str(100 + place))
            for user in range(NUM_USERS)
            for place, item in enumerate(item_ids)
        ]
        self.log = pl.concat([self.log, pl.DataFrame(met, self.log.columns, orient="row")])

    def update(self, *overrides: str) -> ItemChanges | None:
        self.items.write_csv(self.source / "items.csv")
        self.log.write_csv(self.source / "log.csv")
        options: dict[str, Any] = {"overrides": overrides, "num_workers": 1, "update": True}
        return prepare(self.catalogue, self.source, self.data, **options).changes


@pytest.fixture
def grown(tiny_source: Path, tiny_data: Path, tiny_run: Path, tmp_path: Path) -> Grown:
    """The folder with the caches that training filled; not yet up to date."""
    assert (tiny_data / "cache").is_dir()  # tiny_run is there
    return Grown(tiny_source, tiny_data, tmp_path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Items whose states are computed, by modality."""
    found: Counter[str] = Counter()
    encode = fill_module._encode

    def counted(cache: Any, batch: Any, *rest: Any) -> None:
        found[cache.spec.modality] += len(batch.rows)
        encode(cache, batch, *rest)

    monkeypatch.setattr(fill_module, "_encode", counted)
    yield found


def rows_of(table: Path, key: str) -> dict[str, Any]:
    """Every row by its id, floats bit for bit."""
    return {
        row[key]: {
            name: np.array(value, np.float32).tobytes() if isinstance(value, float | list)
            and name != "modalities" else value
            for name, value in row.items()
        }
        for row in pq.read_table(table).to_pylist()
    }  # fmt: skip


def test_ten_added_one_changed_one_deleted(
    grown: Grown,
    encoded: Counter[str],
    tiny_run: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only those are decoded and encoded, and the exports differ there alone."""
    export_run(tiny_run, tmp_path / "before", data=tiny_data)
    assert not encoded
    decoded: list[str] = []
    load: Callable[..., Any] = media_pool_module.load_medium

    def counted(job: Any, image_side: int) -> Any:
        decoded.append(job.path.name)
        return load(job, image_side)

    monkeypatch.setattr(media_pool_module, "load_medium", counted)
    grown.grow()
    assert grown.update() == ItemChanges(10, 1, 1, NUM_ITEMS - 2, decoded=21)
    assert len(decoded) == 21  # ten pictures, ten sounds, and the poster

    with caplog.at_level(logging.INFO, "mmrec"):
        export_run(tiny_run, tmp_path / "after", data=grown.data, bundle=True)
    # states of a text hang on the text, not on the poster of its item
    assert encoded == {"image": 11, "text": 10, "audio": 10}
    assert "image: 24 items, 11 computed, 11 kept, 2 without" in caplog.text
    assert "content of 11 items encoded, of 13 as it was" in caplog.text
    encoded.clear()
    export_run(tiny_run, tmp_path / "again", data=grown.data)
    assert not encoded
    items = "items.parquet"
    assert (tmp_path / "after" / items).read_bytes() == (tmp_path / "again" / items).read_bytes()

    before = rows_of(tmp_path / "before" / items, "item_id")
    after = rows_of(tmp_path / "after" / items, "item_id")
    assert set(before) - set(after) == {DELETED} and set(after) - set(before) == set(ADDED)
    assert {name for name in before if name in after and before[name] != after[name]} == {CHANGED}
    # users differ where they have met one of them
    users = "users.parquet"
    old, new = (rows_of(tmp_path / name / users, "user_id") for name in ("before", "after"))
    met = grown.log.filter(pl.col("item").is_in([CHANGED, DELETED]))["user"].to_list()
    differ = {name for name in old if old[name] != new[name]}
    assert differ and differ <= set(met) and len(old) > len(set(met))

    # what is new is its content, as the files themselves say it
    recommender = Recommender.load(tiny_run, data=grown.data)
    live = recommender.embed_items(recommender.new_items(grown.source / "items.csv", grown.source))
    stored = recommender.embed_items(live.item_ids)
    assert live.item_ids == list(after) and stored.content is not None
    assert np.abs(live.content - stored.content).max() < 1e-5  # type: ignore[operator]
    fresh = [live.item_ids.index(name) for name in ADDED]
    assert np.array_equal(stored.embedding[fresh], stored.content[fresh])
    listed = recommender.recommend("u0", k=50) + recommender.similar(CHANGED, k=50)
    assert DELETED not in {each.item_id for each in listed}
    # a bundle holds the catalogue as it is now
    bundled = Recommender.load(tmp_path / "after" / "bundle")
    assert np.array_equal(bundled.embed_items(live.item_ids).embedding, stored.embedding)


def test_a_model_of_ids_has_no_vector_of_new_items(
    grown: Grown, tiny_run_id: Path, tmp_path: Path
) -> None:
    grown.grow()
    grown.update()
    export_run(tiny_run_id, tmp_path / "out", data=grown.data)
    rows = rows_of(tmp_path / "out" / "items.parquet", "item_id")
    assert DELETED not in rows and all(rows[name]["embedding"] is None for name in ADDED)


def test_figures_are_refused_in_one_line(grown: Grown, tiny_run: Path) -> None:
    grown.grow()
    grown.update()
    for ask in (evaluate_run, summarise, load_run):
        with pytest.raises(CheckpointMismatch, match="was updated since") as caught:
            ask(tiny_run, data=grown.data) if ask is not load_run else ask(tiny_run, grown.data)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointMismatch, match=f"training.start_from={tiny_run}"):
        open_data(tiny_run, grown.data)


def starting_from(run: Path, **settings: Any) -> Config:
    return change(tiny_config(), {"training.start_from": str(run), **settings}, "test")


def learnt(assembly: Assembly) -> dict[str, torch.Tensor]:
    """The learnt part of each item in training, by id."""
    ids = [assembly.data.items.item_ids[row] for row in assembly.item_index_of]
    return dict(zip(ids, assembly.model.id_part.table.weight.detach(), strict=True))  # type: ignore[union-attr]


def test_a_warm_start_knows_what_it_knew(
    grown: Grown, encoded: Counter[str], tiny_run: Path, tmp_path: Path
) -> None:
    grown.grow()
    grown.meet(ADDED[:6])
    assert grown.update() == ItemChanges(10, 1, 1, NUM_ITEMS - 2, decoded=21)
    assembly = assemble(starting_from(tiny_run), grown.data)
    # the vocabulary is that of the weights, so that no text is read again
    assert encoded == {"image": 11, "text": 10, "audio": 10}
    final = tiny_run / "checkpoints" / "final"
    taken, state = load_file(final / "model.safetensors"), json.loads(
        (final / "state.json").read_text()
    )  # fmt: skip
    then = dict(zip(state["item_ids"], taken["id_part.table.weight"], strict=True))
    now = learnt(assembly)
    assert DELETED in then and DELETED not in now and len(set(now) - set(then)) >= 3
    for name, vector in now.items():
        assert torch.equal(vector, then.get(name, torch.zeros(16)))
    assert any(vector.any() for vector in now.values())
    # how often items were met is told by the log of now
    model = assembly.model
    assert torch.equal(model.counts, torch.from_numpy(assembly.popularity).float()[
        assembly.item_index_of]
    )  # fmt: skip
    assert torch.equal(model.counts, model.id_part.counts)  # type: ignore[union-attr]
    # and one more event adds to a score what it did, whatever the largest count is now
    popularity = model.popularity
    assert popularity is not None
    assert torch.equal(popularity.coefficients.detach(), taken["popularity.coefficients"])
    x = torch.log1p(model.counts) / taken["popularity.scale"]
    assert torch.allclose(popularity.means, torch.stack([x.mean(), x.square().mean()]))
    # contents are those of then, but for what has changed
    content = assembly.all_content()
    assert content is not None
    expected = load_file(final / "content.safetensors")["content"]
    same = [row for row in range(NUM_ITEMS) if f"i{row}" not in (CHANGED, DELETED)]
    torch.testing.assert_close(content[same], expected[same], atol=1e-5, rtol=0)

    run = tmp_path / "run"
    train(starting_from(tiny_run), grown.data, run)
    metrics = evaluate_run(run, split="validation")
    assert metrics["models"]["mmrec"]["all"]["num_users"] > 0
    assert load_run(run).state["item_ids"] == list(now)


def test_what_it_has_met_is_no_new_item(
    grown: Grown, tiny_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grown.meet([f"i{NUM_ITEMS - 1}"])
    grown.update()
    prepare(
        grown.catalogue, grown.source, grown.data, num_workers=1,
        overrides=["split.seed=5", "split.cold_test=0.4"],
    )  # fmt: skip
    assemble(starting_from(tiny_run, **{"data.split": "leave_one_out-cold"}), grown.data)
    assert "too good" not in caplog.text
    assemble(starting_from(tiny_run, **{"data.split": "leave_one_out-cold-seed5"}), grown.data)
    assert "seed5 keeps back as new" in caplog.text and "may have met its targets" in caplog.text


def test_another_folder_is_refused(grown: Grown, tiny_run: Path, tmp_path: Path) -> None:
    grown.grow()
    grown.meet(ADDED[:6])
    grown.update()
    anew = tmp_path / "anew"
    prepare(grown.catalogue, grown.source, anew, num_workers=1)
    with pytest.raises(CheckpointMismatch, match="or the same folder after an update"):
        assemble(starting_from(tiny_run), anew)


def test_the_last_model_trains_on_everything(grown: Grown, tiny_run: Path, tmp_path: Path) -> None:
    """`split: none`: cold items are trained on, nothing is asked, new items keep their offset."""
    grown.update("split={protocol: none, name: final}")
    data = PreparedData.open(grown.data)
    assert set(data.splits) == {"leave_one_out-cold", "final"}
    run = tmp_path / "run"
    config = starting_from(tiny_run, **{"data.split": "final"})
    assembly = assemble(config, grown.data)
    assert assembly.validation is None
    assert set(learnt(assembly)) == set(data.items.item_ids) - {f"i{NUM_ITEMS - 1}"}
    train(config, grown.data, run)
    final, start = (
        load_file(each / "checkpoints" / "final" / "model.safetensors") for each in (run, tiny_run)
    )
    assert torch.equal(final["offset"], start["offset"])
    assert torch.equal(final["expectation"], start["expectation"])
    assert summarise(run) is None
    for which in ("test", "validation"):
        with pytest.raises(UserError, match=f"has no {which} targets: protocol none") as caught:
            evaluate_run(run, split=which)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    export_run(run, tmp_path / "out")
    assert len(rows_of(tmp_path / "out" / "items.parquet", "item_id")) == NUM_ITEMS
