"""Several pictures an item: all of them are read, from the table to the score of a new item."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.errors import BrokenMedium
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import Config, parse_config
from mmrec.data.items import ItemInputs, NewItems, PreparedMedia
from mmrec.encoder_parts import make_encoder
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((48, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shop(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny catalogue with up to three pictures an item; one of item 0's is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    items = pl.read_csv(tiny_source / "items.csv").drop("poster", "sound")
    for column in range(3):
        names = []
        for number in range(len(items)):
            names.append(f"{number}-{column}.png" if column <= number % 4 < 3 else "")
            if names[-1]:
                (folder / names[-1]).write_bytes(picture(10 * number + column))
        items = items.with_columns(pl.Series(f"picture{column}", names))
    items.write_csv(folder / "items.csv")
    (folder / "log.csv").write_bytes((tiny_source / "log.csv").read_bytes())
    document = json.loads((tiny_source.parent / "catalogue.yaml").read_text())
    columns = [f"picture{column}" for column in range(3)]
    document["items"] |= {"image": columns, "audio": []}
    (folder / "catalogue.yaml").write_text(json.dumps(document))
    prepare(folder / "catalogue.yaml", folder, folder / "data", num_workers=1)
    return folder


def shop_config(pictures: int, trainable_blocks: int | str = 0) -> Config:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    document = tiny_config().model_dump(mode="json")
    options = {"width": 32, "size": 32, "pictures": pictures}
    image = {"num_tokens": 4, "options": options, "trainable_blocks": trainable_blocks}
    document["encoders"] = {"text": document["encoders"]["text"], "image": image}
    return parse_config(document)


def inputs_of(media: Any, pictures: int) -> ItemInputs:
    parts = make_encoder(
        "image", shop_config(pictures).encoders["image"], texts=list, vector_width=lambda _: 0
    )
    return ItemInputs(media, {"image": parts.transform})


def test_as_many_pictures_are_read_as_are_asked_for(shop: Path) -> None:
    data = PreparedData.open(shop / "data")
    items = np.arange(8)
    for most in (2, 3, 5):
        mask = inputs_of(data, most).collate(items)["image"]["mask"]
        having = [number % 4 + 1 if number % 4 < 3 else 0 for number in range(8)]
        assert mask.sum(dim=1).tolist() == [min(each, most) for each in having]
    assert inputs_of(data, 1).collate(items)["image"]["images"].ndim == 4


def test_a_change_of_the_second_picture_is_seen(shop: Path, tmp_path: Path) -> None:
    media = PreparedMedia(PreparedData.open(shop / "data"))
    assert media.digest_all(2, "image") != media.digest(2, "image")
    assert media.digest_all(3, "image") is None
    catalogue = PreparedData.open(shop / "data").catalogue
    table = "id,picture0,picture1,picture2\na,0.png,1.png,\n"
    (tmp_path / "new.csv").write_text(table)
    found = []
    for second in (1, 2):
        (tmp_path / "0.png").write_bytes(picture(0))
        (tmp_path / "1.png").write_bytes(picture(second))
        new = NewItems.from_file(tmp_path / "new.csv", catalogue, tmp_path)
        found.append((new.digest(0, "image"), new.digest_all(0, "image")))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]
    # one that is broken is left out; where all are, the item says so
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert len(NewItems.from_file(tmp_path / "new.csv", catalogue, tmp_path).load_all(0, "image"))
    (tmp_path / "0.png").unlink()
    with pytest.raises(BrokenMedium, match=r"0.png: No such file"):
        NewItems.from_file(tmp_path / "new.csv", catalogue, tmp_path).load_all(0, "image")


@pytest.mark.parametrize("trainable_blocks", [0, 1, "all"])
def test_from_training_to_the_score_of_a_new_item(
    shop: Path, tmp_path: Path, trainable_blocks: int | str
) -> None:
    run = tmp_path / "run"
    train(shop_config(3, trainable_blocks), shop / "data", run)
    export_run(run, tmp_path / "out", bundle=True)
    # the same first picture, another second one
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "1.png").write_bytes(picture(777))
    table = "id,picture0,picture1\none,0.png,\ntwo,0.png,1.png\n"
    (tmp_path / "new.csv").write_text(table)
    found = []
    for path in (run, tmp_path / "out" / "bundle"):
        recommender = Recommender.load(path)
        new = recommender.new_items(tmp_path / "new.csv", tmp_path)
        found.append(recommender.embed_items(new).content)
    assert found[0] is not None and found[1] is not None
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-3
