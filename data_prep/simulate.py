"""Writes a simulated catalogue, its log and its hidden truth: a pure function of one seed.

What users like is in data_prep.tastes; how it shows in media in data_prep.drawing.

    OUT/catalogue.yaml        what the columns are
    OUT/items.csv             item_id, title, description, picture, sound, year, series
    OUT/users.csv             user_id, region (carries nothing)
    OUT/interactions.parquet  user_id, item_id, position, timestamp
    OUT/media/…               pictures (PNG, JPEG) and sounds (FLAC, WAV)
    OUT/new_items/            items.csv and media of items nobody has met
    OUT/truth/                items, new_items, users (parquet): hidden, for tests only
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import soundfile
from numpy.typing import NDArray
from PIL import Image

from data_prep.drawing import (
    GESTURES,
    MOODS,
    SAMPLE_RATE_HZ,
    SHAPES,
    TEXTURES,
    TIMBRES,
    TOPICS,
    draw_picture,
    synthesise_sound,
    write_text,
)
from data_prep.errors import DataError
from data_prep.tastes import (
    POPULARITY_SPREAD,
    Attributes,
    Floats,
    Wishes,
    draw_attributes,
    draw_log,
)

SCHEMA = "mmrec-simulation-1"

_REGIONS = ("north", "south", "east", "west")

# one stream of random numbers for each thing drawn, so that more users do not change the items
_STREAM_ATTRIBUTES, _STREAM_ITEM, _STREAM_NEW, _STREAM_USERS = range(4)


def simulate(
    out: Path,
    *,
    seed: int = 0,
    num_items: int = 1000,
    num_users: int = 2000,
    events_per_user: int = 15,
    num_new_items: int = 24,
) -> Path:
    """Writes a simulated catalogue; the same arguments give byte-identical files.

    About 5 % of the items have no sound, 3 % no picture and 2 % no text; the picture of one and the
    sound of another are broken on purpose. A folder that already holds the catalogue of the same
    arguments is left as it is.

    Args:
        out: Folder to write; made whole beside it, then renamed.
        seed: Of everything drawn.
        num_items: At least 40.
        num_users: At least 1.
        events_per_user: Mean length of a history, at least 3.
        num_new_items: Items for `new_items/`, which nobody has met.

    Returns:
        Path of catalogue.yaml; its --source is the folder it lies in.

    Raises:
        DataError: An argument is out of range, or `out` holds something else.
    """
    arguments = {
        "seed": seed,
        "num_items": num_items,
        "num_users": num_users,
        "events_per_user": events_per_user,
        "num_new_items": num_new_items,
    }
    least = {
        "seed": 0,
        "num_items": 40,
        "num_users": 1,
        "events_per_user": 3,
        "num_new_items": 0,
    }
    for name, value in arguments.items():
        if value < least[name]:
            raise DataError(f"simulate: {name} is {value}; it must be at least {least[name]}")
    mark = json.dumps({"schema": SCHEMA, **arguments}, indent=1, sort_keys=True) + "\n"
    if _already_there(out, mark):
        return out / "catalogue.yaml"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        aside.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
        _write(aside, **arguments)
        (aside / "simulation.json").write_text(mark)
        if out.is_dir():
            out.rmdir()  # empty: checked above
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out / "catalogue.yaml"


def _already_there(out: Path, mark: str) -> bool:
    """True where `out` holds just what would be written; refuses a folder of anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    written = out / "simulation.json"
    if written.is_file() and written.read_text() == mark:
        return True
    raise DataError(
        f"simulate: {out} already holds other files; give an empty folder or the same arguments"
    )


def _write(
    folder: Path,
    *,
    seed: int,
    num_items: int,
    num_users: int,
    events_per_user: int,
    num_new_items: int,
) -> None:
    rng = np.random.default_rng([seed, _STREAM_ATTRIBUTES])
    attributes = draw_attributes(rng, num_items)
    new_attributes = draw_attributes(rng, num_new_items)
    popularity = rng.normal(0, POPULARITY_SPREAD, num_items)
    lacking = _lacking_media(rng, num_items)

    item_ids = [f"i{k:05d}" for k in range(num_items)]
    new_ids = [f"n{k:05d}" for k in range(num_new_items)]
    rows = _write_items(folder, item_ids, attributes, lacking, seed=seed, stream=_STREAM_ITEM)
    _break_two(folder, rows)
    new_folder = folder / "new_items"
    whole = [""] * num_new_items
    new_rows = _write_items(
        new_folder, new_ids, new_attributes, whole, seed=seed, stream=_STREAM_NEW
    )
    pl.DataFrame(rows, schema=_ITEM_COLUMNS).write_csv(folder / "items.csv")
    pl.DataFrame(new_rows, schema=_ITEM_COLUMNS).write_csv(new_folder / "items.csv")

    log, wishes = draw_log(attributes, popularity, num_users, events_per_user, seed=seed)
    user_ids = [f"u{k:06d}" for k in range(num_users)]
    regions = np.random.default_rng([seed, _STREAM_USERS]).choice(_REGIONS, num_users)
    pl.DataFrame({"user_id": user_ids, "region": regions.tolist()}).write_csv(folder / "users.csv")
    log.select(
        pl.Series("user_id", np.array(user_ids)[log["user_index"].to_numpy()].tolist()),
        pl.Series("item_id", np.array(item_ids)[log["item_index"].to_numpy()].tolist()),
        "position",
        "timestamp",
    ).write_parquet(folder / "interactions.parquet")
    (folder / "catalogue.yaml").write_text(_CATALOGUE)

    truth = folder / "truth"
    truth.mkdir()
    _truth_table(item_ids, attributes, popularity).write_parquet(truth / "items.parquet")
    _truth_table(new_ids, new_attributes, None).write_parquet(truth / "new_items.parquet")
    pl.DataFrame({"user_id": user_ids, **asdict(wishes)}).write_parquet(truth / "users.parquet")


def _lacking_media(rng: np.random.Generator, num_items: int) -> list[str]:
    """Which medium each item lacks ("" for none); no item lacks two."""
    shares = {"sound": 0.05, "picture": 0.03, "text": 0.02}
    lacking: list[str] = []
    for medium, share in shares.items():
        lacking += [medium] * max(1, round(share * num_items))
    lacking += [""] * (num_items - len(lacking))
    return [lacking[k] for k in rng.permutation(num_items)]


_ITEM_COLUMNS = {
    "item_id": pl.String,
    "title": pl.String,
    "description": pl.String,
    "picture": pl.String,
    "sound": pl.String,
    "year": pl.Int64,
    "series": pl.String,
}


def _write_items(
    folder: Path,
    item_ids: list[str],
    attributes: Attributes,
    lacking: list[str],
    *,
    seed: int,
    stream: int,
) -> list[dict[str, str | int | None]]:
    """Writes the media of all items under folder/media and returns their table's rows."""
    (folder / "media").mkdir(parents=True)
    rows: list[dict[str, str | int | None]] = []
    for k, item_id in enumerate(item_ids):
        rng = np.random.default_rng([seed, stream, k])
        picture = draw_picture(
            rng, texture=TEXTURES[attributes.texture[k]], shape=SHAPES[attributes.shape[k]]
        )
        sound = synthesise_sound(
            rng, gesture=GESTURES[attributes.gesture[k]], timbre=TIMBRES[attributes.timbre[k]]
        )
        title, description = write_text(
            rng, topic=TOPICS[attributes.topic[k]], mood=MOODS[attributes.mood[k]]
        )
        row: dict[str, str | int | None] = {
            "item_id": item_id,
            "title": title,
            "description": description,
            # both kinds of picture and of sound file, so that either path is walked
            "picture": f"media/{item_id}.{'jpg' if k % 3 == 0 else 'png'}",
            "sound": f"media/{item_id}.{'wav' if k % 4 == 0 else 'flac'}",
            "year": int(rng.integers(1990, 2024)),
            "series": f"series {rng.integers(1, 9)}",
        }
        for column in _columns_of(lacking[k]):
            row[column] = None
        if row["picture"]:
            (folder / str(row["picture"])).write_bytes(_encode_picture(picture, k % 3 == 0))
        if row["sound"]:
            soundfile.write(folder / str(row["sound"]), sound, SAMPLE_RATE_HZ, subtype="PCM_16")
        rows.append(row)
    return rows


def _columns_of(medium: str) -> tuple[str, ...]:
    return ("title", "description") if medium == "text" else (medium,) if medium else ()


def _encode_picture(picture: NDArray[np.uint8], jpeg: bool) -> bytes:
    buffer = io.BytesIO()
    if jpeg:
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    else:
        Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _break_two(folder: Path, rows: list[dict[str, str | int | None]]) -> None:
    """Damages one picture and one sound of two items that have all media."""
    whole = [row for row in rows if row["picture"] and row["sound"] and row["title"]]
    for row, column in zip(whole[:2], ("picture", "sound"), strict=True):
        path = folder / str(row[column])
        path.write_bytes(path.read_bytes()[:20])  # cut inside the header


def _truth_table(
    item_ids: list[str], attributes: Attributes, popularity: Floats | None
) -> pl.DataFrame:
    columns = {name: codes.tolist() for name, codes in asdict(attributes).items()}
    logged = [None] * len(item_ids) if popularity is None else popularity.tolist()
    return pl.DataFrame(
        {"item_id": item_ids, **columns, "log_popularity": logged},
        schema={
            "item_id": pl.String,
            **dict.fromkeys(columns, pl.Int64),
            "log_popularity": pl.Float64,
        },
    )


def read_item_truth(path: Path) -> tuple[Attributes, Floats]:
    """Reads truth/items.parquet or truth/new_items.parquet.

    Returns:
        Attributes and log popularity (nan for new items), in the order of the table.
    """
    table = pl.read_parquet(path)
    columns = {name: table[name].to_numpy() for name in Attributes.__dataclass_fields__}
    return Attributes(**columns), table["log_popularity"].fill_null(float("nan")).to_numpy()


def read_user_truth(path: Path) -> Wishes:
    """Reads truth/users.parquet: the wishes at each user's last event, in the table's order."""
    table = pl.read_parquet(path)
    return Wishes(**{name: table[name].to_numpy() for name in Wishes.__dataclass_fields__})


_CATALOGUE = """\
# A simulated catalogue: pictures drawn, sounds synthesised, texts and log made up from one seed.
name: simulated
kind: simulated
repeats: forbid
items:
  table: items.csv
  id: item_id
  missing: [""]
  text: [title, description]
  image: [picture]
  audio: [sound]
  attributes:
    year: {type: number}
    series: {type: category}
users:
  table: users.csv
  id: user_id
  attributes:
    region: {type: category}
interactions:
  table: interactions.parquet
  user: user_id
  item: item_id
  order: position
  time: timestamp
split: {protocol: leave_one_out, cold_validation: 0.05, cold_test: 0.1, seed: 0}
"""
