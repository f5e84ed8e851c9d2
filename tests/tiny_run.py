"""A dozen items with text, picture and sound, thirty users, and a run trained on them.

A plug-in of pytest, so that a session trains once for all modules that name it:

    pytest_plugins = ["tiny_run"]

Fixtures: `tiny_source` (tables and media as files), `tiny_data` (prepared), `tiny_run` (two epochs,
`item: both`, every encoder cached), `tiny_run_cut` (the top block of each trains from cached
states), `tiny_run_all` (every encoder trains from raw media) and `tiny_run_id` (no media).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from PIL import Image

from data_prep.prepare import prepare
from mmrec.config import Config, parse_config
from mmrec.training.train import train

NUM_ITEMS, NUM_USERS = 14, 30
# The last item is in the table and no event names it: exported and scorable, no candidate.
WITHOUT_EVENTS = f"i{NUM_ITEMS - 1}"
NO_PICTURE, NO_TEXT, NO_SOUND = "i3", "i4", "i5"

CATALOGUE: dict[str, Any] = {
    "name": "tiny",
    "kind": "video",
    "items": {
        "table": "items.csv",
        "id": "id",
        "text": ["title", "plot"],
        "image": ["poster"],
        "audio": ["sound"],
    },
    "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "position"},
    "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.1},
}
ENCODERS: dict[str, Any] = {
    "text": {"num_tokens": 8, "options": {"width": 16, "num_layers": 1, "num_heads": 2}},
    "image": {"num_tokens": 4, "options": {"width": 32, "size": 32}},
    "audio": {"num_tokens": 4, "options": {"width": 16}},
}
WORDS = ("quiet", "red", "river", "storm", "night", "garden", "old", "machine", "letter", "sea")


def write_media(source: Path, number: int, *, seed: int) -> dict[str, str]:
    """Writes the media of one item and returns its row of the table."""
    random = np.random.default_rng(seed)
    # the short side of some is above 256 pixels: those are made smaller at the door
    height, width = (300, 340) if number % 5 == 0 else (40, 48)
    coarse = random.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(source / f"{seed}.png")
    time = np.arange(2400 + 160 * number) / 8000
    tone = 0.4 * np.sin(2 * np.pi * random.uniform(200, 2000) * time)
    soundfile.write(source / f"{seed}.wav", tone.astype(np.float32), 8000)
    words = random.choice(WORDS, 6)
    return {
        "title": f"The {words[0]} {words[1]} {number}",
        "plot": " ".join(words[2:]).capitalize() + ".",
        "poster": f"{seed}.png",
        "sound": f"{seed}.wav",
    }


def write_source(source: Path) -> None:
    """Writes the tables, the media and, beside the folder, the catalogue file."""
    source.mkdir(parents=True)
    rows = []
    for number in range(NUM_ITEMS):
        row = {"id": f"i{number}", **write_media(source, number, seed=number)}
        if row["id"] == NO_PICTURE:
            row["poster"] = ""
        if row["id"] == NO_TEXT:
            row |= {"title": "", "plot": ""}
        if row["id"] == NO_SOUND:
            row["sound"] = ""
        rows.append(row)
    pl.DataFrame(rows).write_csv(source / "items.csv")
    random = np.random.default_rng(0)
    log = [
        (f"u{user}", f"i{item}", position)
        for user in range(NUM_USERS)
        for position, item in enumerate(random.permutation(NUM_ITEMS - 1)[: 6 + user % 5])
    ]
    pl.DataFrame(log, ["user", "item", "position"], orient="row").write_csv(source / "log.csv")
    (source.parent / "catalogue.yaml").write_text(json.dumps(CATALOGUE), encoding="utf-8")


def tiny_config(item: str = "both", trainable_blocks: int | str = 0) -> Config:
    """Settings of a run that takes a second or two."""
    encoders = {name: {**each, "trainable_blocks": trainable_blocks} for name, each in
                ENCODERS.items()}  # fmt: skip
    return parse_config(
        {
            "name": "tiny",
            "encoders": {} if item == "id" else encoders,
            "data": {"max_history": 8},
            "model": {
                "item": item,
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2},
                "history": {"num_blocks": 1, "num_heads": 2},
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 8,
                "warmup_steps": 1,
                "learning_rate": 0.01,
                "precision": "fp32",
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tables and media; `catalogue.yaml` lies beside it."""
    source = tmp_path_factory.mktemp("tiny") / "source"
    write_source(source)
    return source


@pytest.fixture(scope="session")
def tiny_data(tiny_source: Path) -> Path:
    """The prepared folder."""
    data = tiny_source.parent / "data"
    prepare(tiny_source.parent / "catalogue.yaml", tiny_source, data, num_workers=1)
    return data


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `item: both`, text, image and audio at cut 0."""
    run = tmp_path_factory.mktemp("tiny_run") / "run"
    train(tiny_config(), tiny_data, run)
    return run


@pytest.fixture(scope="session")
def tiny_run_cut(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `item: both`, the top block of text, image and audio trained."""
    run = tmp_path_factory.mktemp("tiny_run_cut") / "run"
    train(tiny_config(trainable_blocks=1), tiny_data, run)
    return run


@pytest.fixture(scope="session")
def tiny_run_all(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `item: both`, text, image and audio trained from raw media."""
    run = tmp_path_factory.mktemp("tiny_run_all") / "run"
    train(tiny_config(trainable_blocks="all"), tiny_data, run)
    return run


@pytest.fixture(scope="session")
def tiny_run_id(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `item: id`."""
    run = tmp_path_factory.mktemp("tiny_run_id") / "run"
    train(tiny_config("id"), tiny_data, run)
    return run
