"""Tiny data for any catalogue file, made from the file itself, and settings small enough for them.

A catalogue file under `configs/catalogues` names tables, columns and media; `write_source` writes
all of them with made-up content. A run's YAML says in its header by which `mmrec prepare` its data
are made; `examples` pairs the two, so that a file that is added is tested without another line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tiny_catalogue import clip, encode, photograph, wave

from data_prep.catalogue import AttributeSpec, Catalogue, load_catalogue
from mmrec.config import Config, load_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NUM_ITEMS, NUM_USERS = 24, 30
FIRST_SECOND, HOUR, DAY = 1_700_000_000, 3_600, 86_400
WORDS = ("quiet", "red", "river", "storm", "night", "garden", "old", "machine", "letter", "sea")
MEDIA = {
    "image": (".png", lambda seed: encode(photograph(40, 48, seed=seed), "PNG")),
    "audio": (".wav", lambda seed: wave(0.3 + 0.01 * seed)),
    "video": (".mp4", lambda seed: clip(2 + seed % 3, sound=True)),
}
WITHOUT_MEDIA = 3  # this item has its texts alone, where the catalogue has texts

# What stands for an encoder with pretrained weights, which need not be installed.
SMALL: dict[str, dict[str, Any]] = {
    "text": {"width": 32, "num_layers": 1, "num_heads": 2, "vocabulary_size": 300},
    "image": {"width": 32, "size": 32},
    "audio": {"width": 32},
    "video": {"width": 32, "size": 32},
}
KEPT_OPTIONS = {"image": ("pictures",), "video": ("frames", "rule")}


@dataclass(frozen=True)
class Example:
    """A catalogue file with a run's YAML on it, or without one where no header names the file.

    Attributes:
        overrides: what each `mmrec prepare` of the header changes; a split a time.
        named: the header of the config names the catalogue file.
    """

    catalogue: Path
    config: Path | None
    overrides: tuple[tuple[str, ...], ...] = ((),)
    named: bool = False

    @property
    def name(self) -> str:
        """For the test's id."""
        return self.config.stem if self.config else f"catalogue-{self.catalogue.stem}"


def examples(configs: Path = CONFIGS) -> list[Example]:
    """Every YAML of a run with the catalogue file that its header names, and the files left over.

    A run of which no header says more, such as `tiny.yaml`, gets the first catalogue that has all
    of its modalities. Runs on several catalogues are left to `test_mix_run.py`.
    """
    files = sorted((configs / "catalogues").glob("*.yaml"))
    found, named = [], set()
    for path in sorted(configs.glob("*.yaml")):
        config = load_config(path)
        if config.catalogues:
            continue
        prepares = _prepares(path)
        if prepares:
            catalogue = configs.parent / prepares[0][0]
            named.add(catalogue)
            found.append(Example(catalogue, path, tuple(words for _, words in prepares), True))
        else:
            wanted = set(config.encoders)
            fitting = (each for each in files if wanted <= {*load_catalogue(each).modalities})
            found.append(Example(next(fitting), path))
    return [*found, *(Example(path, None) for path in files if path not in named)]


def _prepares(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Catalogue file and overrides of each `mmrec prepare configs/…` in a header."""
    header = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    assert header is not None
    text = re.sub(r"\\\n#", " ", header[0])
    commands = re.findall(r"^#\s+mmrec prepare (configs/\S+)(.*)$", text, flags=re.MULTILINE)
    return [
        (name, tuple(word for word in shlex.split(rest) if re.match(r"[a-z_.]+=", word)))
        for name, rest in commands
    ]


def small_settings(config: Config) -> list[str]:
    """Overrides that let two steps of a run's settings take a second, without weights.

    What has weights is heard, seen or read by a small encoder in its place; the cut, the method and
    all of the model stay as they are.
    """
    changes: dict[str, Any] = {
        "training.max_steps": 2,
        "training.batch_size": 8,
        "training.fresh_items": 8,
        "training.warmup_steps": 1,
        "training.freeze_content_epochs": 0,  # two steps should reach the encoders
        "training.precision": "fp32",
        "training.trackers": [],
        "training.start_from": None,
        "training.stop_on": "all",  # which slices thirty made users fall in is chance
        "data.num_workers": 0,
    }
    for modality, encoder in config.encoders.items():
        if modality in SMALL and encoder.kind != "small":
            document = encoder.model_dump(mode="json")
            kept = {key: encoder.options[key] for key in KEPT_OPTIONS.get(modality, ())
                    if key in encoder.options}  # fmt: skip
            document |= {"kind": "small", "weights": None, "architecture": None}
            document["options"] = SMALL[modality] | kept
            changes[f"encoders.{modality}"] = document
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def config_for(catalogue: Catalogue) -> dict[str, Any]:
    """Settings of a run on every modality of a catalogue, for files that have none."""
    encoders: dict[str, Any] = {}
    for modality in catalogue.modalities:
        if modality == "attributes":
            encoders[modality] = {"kind": "fields"}
        elif modality in SMALL:
            encoders[modality] = {"num_tokens": 4, "options": SMALL[modality]}
        else:
            encoders[modality] = {"kind": "vector"}
    model = {"width": 16, "fusion": {"num_latents": 2, "num_heads": 2}}
    model["history"] = {"num_blocks": 1, "num_heads": 2}
    return {"name": catalogue.name, "encoders": encoders, "model": model}


def write_source(catalogue: Catalogue, source: Path, config: Config | None = None) -> pl.DataFrame:
    """Writes the tables and media that a catalogue file describes; returns the table of items.

    Args:
        catalogue: the file.
        source: folder to write into.
        config: its heads and weights name types of events that the log should have.
    """
    items = _items(catalogue, source)
    write_table(items, source / catalogue.items.table)
    if catalogue.users is not None:
        write_table(_users(catalogue), source / catalogue.users.table)
    write_table(_log(catalogue, config), source / catalogue.interactions.table)
    return items


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Writes csv, jsonl or parquet by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
        assert not nested, f"a csv cannot hold {nested}"
        frame.write_csv(path)


def item_id(number: int) -> str:
    """Ids are text and look like numbers now and then."""
    return f"{number:03}" if number % 2 else f"item/{number}"


def _items(catalogue: Catalogue, source: Path) -> pl.DataFrame:
    spec = catalogue.items
    random = np.random.default_rng(0)
    numbers = range(NUM_ITEMS)
    columns: dict[str, Any] = {spec.id: [item_id(number) for number in numbers]}
    for name in spec.text:
        columns[name] = [f"The {' '.join(random.choice(WORDS, 4))} {number}." for number in numbers]
    for kind, (ending, make) in MEDIA.items():
        for place, name in enumerate(getattr(spec, kind)):
            if kind == "audio" and name in spec.video:
                continue  # the sound tracks of clips
            paths = []
            for number in numbers:
                path = source / "media" / f"{kind}{place}-{number}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(make(1000 * place + number))
                paths.append(path.relative_to(source).as_posix())
            if spec.text:
                paths[WITHOUT_MEDIA] = ""
            columns[name] = paths
    for name in spec.vectors.values():
        columns[name] = random.normal(size=(NUM_ITEMS, 6)).round(3).tolist()
    nests = not spec.table.endswith(".csv")
    for name, attribute in spec.attributes.items():
        if name not in columns:
            columns[name] = _attribute(attribute, NUM_ITEMS, random, nests=nests)
    if spec.available is not None and spec.available.start is not None:
        columns[spec.available.start] = [FIRST_SECOND - 3650 * DAY + n * HOUR for n in numbers]
    if spec.available is not None and spec.available.until is not None:
        columns[spec.available.until] = [None] * NUM_ITEMS
    columns |= {name: [value] * NUM_ITEMS for name, value in _conditions(spec.where).items()}
    return pl.DataFrame(columns, infer_schema_length=None)


def _attribute(
    spec: AttributeSpec, num_rows: int, random: np.random.Generator, *, nests: bool
) -> list[Any]:
    """Made-up values of one attribute; the second row has none."""
    if spec.type == "number":
        return [None if row == 1 else float(row + random.integers(5)) for row in range(num_rows)]
    if spec.type == "category":
        return ["" if row == 1 else str(random.choice(WORDS[:3])) for row in range(num_rows)]
    chosen = [sorted(set(random.choice(WORDS[:5], 2).tolist())) for _ in range(num_rows)]
    chosen[1] = []
    return chosen if nests else [spec.separator.join(each) for each in chosen]


def _conditions(where: str | None) -> dict[str, str]:
    """Columns with the value that a condition `column = 'value' AND …` asks for."""
    if where is None:
        return {}
    found = dict(re.findall(r"\"?(\w+)\"? = '([^']*)'", where))
    assert len(found) == 1 + len(re.findall(r"\bAND\b", where, flags=re.IGNORECASE)), (
        f"where is {where!r}: made-up data satisfy conditions of the form column = 'value' only"
    )
    return found


def _users(catalogue: Catalogue) -> pl.DataFrame:
    """A row for all but the last user."""
    assert catalogue.users is not None
    spec, random = catalogue.users, np.random.default_rng(1)
    columns: dict[str, Any] = {spec.id: [f"u{user}" for user in range(NUM_USERS - 1)]}
    nests = not spec.table.endswith(".csv")
    for name, attribute in spec.attributes.items():
        columns[name] = _attribute(attribute, NUM_USERS - 1, random, nests=nests)
    columns |= {name: [value] * (NUM_USERS - 1) for name, value in _conditions(spec.where).items()}
    return pl.DataFrame(columns, infer_schema_length=None)


def _log(catalogue: Catalogue, config: Config | None) -> pl.DataFrame:
    """Six to nine events a user, of all types; no item twice, apart from those that are shown."""
    spec, random = catalogue.interactions, np.random.default_rng(2)
    types = _event_types(catalogue, config)
    least = spec.targets.min_value or 0.0
    rows = []
    for user in range(NUM_USERS):
        chosen = random.permutation(NUM_ITEMS)[: 6 + user % 4]
        times = _times(catalogue, len(chosen), user)
        for position, (item, time) in enumerate(zip(chosen.tolist(), times, strict=True)):
            event = types[(user + position) % len(types)] if position % 3 == 0 else types[0]
            row: dict[str, Any] = {spec.user: f"u{user}", spec.item: item_id(item)}
            row |= {spec.order: position} if spec.order else {}
            row |= {spec.time: time} if spec.time else {}
            row |= {spec.event: event} if spec.event else {}
            row |= {spec.value: least + 1 + position % 4} if spec.value else {}
            row |= {name: ("phone", "desk")[(user + position) % 2] for name in spec.context}
            row |= _conditions(spec.where)
            rows.append(row)
            if spec.shown:
                shown = row | {spec.item: item_id(int(random.integers(NUM_ITEMS)))}
                rows.append(shown | {spec.event: spec.shown[0]})
    return pl.DataFrame(rows, infer_schema_length=None)


def _event_types(catalogue: Catalogue, config: Config | None) -> list[str]:
    """Types that the files name, one that may be a target first, and one more."""
    spec = catalogue.interactions
    named: list[str] = list(spec.targets.events or ())
    if config is not None:
        for head in config.model.heads.values():
            named += [*head.positive, *head.among]
        named += config.training.event_weights
    return [each for each in dict.fromkeys([*named, "other"]) if each not in spec.shown]


def _times(catalogue: Catalogue, num_events: int, user: int) -> list[int]:
    """Unix seconds of a user's events, on both sides of the instants of a split by time."""
    split = catalogue.split
    if split.validation_time is None or split.test_time is None:
        return [FIRST_SECOND + 60 * user + HOUR * position for position in range(num_events)]
    start, end = split.validation_time - 90 * DAY, split.test_time + 30 * DAY
    return [int(time) for time in np.linspace(start, end, num_events)]


def new_rows(items: pl.DataFrame, catalogue: Catalogue, copied: Mapping[str, int]) -> pl.DataFrame:
    """Rows of the table of items under new ids: what nobody has met, with media that are known."""
    parts: Sequence[pl.DataFrame] = [
        items[number].with_columns(pl.lit(name).alias(catalogue.items.id))
        for name, number in copied.items()
    ]
    return pl.concat(parts)
