"""A folder of new items, added to a running service by one command: no retraining, no restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from live_servers import serving
from tiny_catalogue import CATALOGUE as EVERY_KIND
from tiny_catalogue import write_source as write_every_kind
from tiny_run import write_media

from data_prep.build_items import convert_attributes
from data_prep.catalogue import Catalogue
from data_prep.interactions import read_items
from mmrec.cli import main
from mmrec.recommender import Recommender
from mmrec.serving.add_items import _catalogue, _fields, _files
from mmrec.serving.auth import add_key
from mmrec.serving.client import Client
from mmrec.serving.given_items import Upload, stored_item
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]
NEW = [f"new {number}" for number in range(6)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'service.sqlite'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table and its media: whole items, one of a picture alone, one of a sound alone."""
    folder = tmp_path / "new"
    (folder / "media").mkdir(parents=True)
    rows = []
    for number, item_id in enumerate(NEW):
        row = write_media(folder / "media", 200 + number, seed=100 + number)
        row |= {name: f"media/{row[name]}" for name in ("poster", "sound")}
        rows.append({"id": item_id, **row})
    rows[4] |= {"title": "", "plot": "", "sound": ""}
    rows[5] |= {"title": "", "plot": "", "poster": ""}
    pl.DataFrame(rows).write_csv(folder / "items.csv")
    return folder


def test_one_command_adds_a_folder_to_a_running_service(
    tiny_run: Path, url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are recommended, found and like what the library makes of them, to every worker."""
    settings = ServiceSettings(path=tiny_run, database=url)
    with (
        serving(settings) as (here, _),
        serving(settings) as (there, _),
        Client(here) as a,
        Client(there) as b,
    ):
        before = b.ready()
        assert not any(each.item_id in NEW for each in b.recommend("u1", k=50).items)
        assert main(["add", here, "--items", str(folder / "items.csv")]) == 0
        assert capsys.readouterr().out == "added 6 items\n"
        for client in (b, a):
            listed = {each.item_id: each.score for each in client.recommend("u1", k=50).items}
            assert set(NEW) <= set(listed)
            found = client.search("The quiet river 2", by="dense", k=50).items
            assert set(NEW) <= {each.item_id for each in found}
        title = pl.read_csv(folder / "items.csv")["title"][2]
        assert b.search(title, by="lexical", k=1).items[0].item_id == NEW[2]
        library = Recommender.load(tiny_run)
        embedded = library.embed_items(library.new_items(folder / "items.csv", folder))
        assert embedded.content is not None
        served = np.array([each.content for each in b.embed(item_ids=NEW).items])
        np.testing.assert_allclose(served, embedded.content, atol=1e-5)
        after = a.ready()
        assert (after.model, after.num_added) == (before.model, 6)

        assert main(["add", there, "--items", str(folder / "items.csv"), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == {"added": [], "known": NEW, "refused": {}}
        assert a.ready().num_added == 6


def test_what_is_refused_is_named_and_the_others_go_on(
    tiny_run: Path, url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "media" / "101.png").write_bytes(b"no picture")
    (folder / "media" / "103.wav").unlink()
    table = str(folder / "items.csv")
    with serving(ServiceSettings(path=tiny_run, database=url)) as (here, _), Client(here) as client:
        assert main(["add", here, "--items", table]) == 1
        told = capsys.readouterr()
        assert told.out == "added 4 items, 2 refused\n"
        assert "item 'new 1' is refused: poster: " in told.err
        assert "item 'new 3' is refused: sound: 'media/103.wav' is no file under" in told.err
        listed = {each.item_id for each in client.recommend("u1", k=50).items}
        assert listed & set(NEW) == {"new 0", "new 2", "new 4", "new 5"}
        # mended, the same command brings the rest
        write_media(folder / "media", 1, seed=101)
        write_media(folder / "media", 3, seed=103)
        assert main(["add", here, "--items", table, "--source", str(folder)]) == 0
        assert capsys.readouterr().out == "added 2 items, 4 were there already\n"

        pl.DataFrame({"id": ["x"], "colour": ["red"]}).write_csv(folder / "other.csv")
        assert main(["add", here, "--items", str(folder / "other.csv")]) == 2
        assert "knows none of its columns id, colour; give at least one of title, plot, poster" in (
            capsys.readouterr().err
        )


def test_keys_and_absent_services_are_one_line(
    tiny_run: Path,
    url: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {
        role: add_key(tmp_path / "keys.json", role, role, days=None, per_minute=600)
        for role in ("read", "write")
    }
    settings = ServiceSettings(path=tiny_run, database=url, keys=tmp_path / "keys.json")
    table = str(folder / "items.csv")
    with serving(settings) as (here, _):
        assert main(["add", here, "--items", table]) == 1
        assert main(["add", here, "--items", table, "--key", keys["read"]]) == 1
        error = capsys.readouterr().err
        assert "needs write" in error and "0 of 6 items had been sent" in error
        monkeypatch.setenv("MMREC_KEY", keys["write"])
        assert main(["add", here, "--items", table]) == 0
        assert capsys.readouterr().out == "added 6 items\n"
    monkeypatch.setattr("mmrec.serving.client.time.sleep", lambda _: None)
    assert main(["add", here, "--items", table]) == 1
    assert "/v1/catalogue" in capsys.readouterr().err


def test_every_kind_of_column_arrives_as_it_is_prepared(tmp_path: Path) -> None:
    """Sets, numbers, categories, vectors, two pictures and a clip: as `prepare` reads them."""
    source = write_every_kind(tmp_path / "source")
    whole = Catalogue.model_validate(EVERY_KIND)
    told = whole.items.model_dump(mode="json", by_alias=True, exclude={"table", "where"})
    catalogue = _catalogue(told, source / "items.jsonl")
    rows = list(read_items(catalogue, source, table=source / "items.jsonl").iter_rows(named=True))
    given: list[dict[str, Any]] = pl.read_ndjson(source / "items.jsonl").to_dicts()
    assert [row["item_id"] for row in rows] == [each["id"] for each in given]
    seen = set()
    for row in rows:
        files = {name: path.read_bytes() for name, path in _files(row, catalogue, source).items()}
        upload = Upload(row["item_id"], _fields(row, catalogue), files)
        stored = stored_item(upload, whole, image_side=256, limits=Limits())
        expected = convert_attributes(row, whole.items.attributes)
        assert {name: v for name, v in stored.attributes.items() if v} == expected
        assert stored.texts == {name: row[name] for name in whole.items.text if row[name]}
        assert list(stored.vectors.get("clip", [])) == list(row["vector"] or [])
        seen |= {each.slot for each in stored.media} | set(expected) | set(stored.vectors)
    assert seen == {"image0", "image1", "audio0", "video0", "tags", "year", "zip", "clip"}
