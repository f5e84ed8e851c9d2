"""Stamps as search meets them: names in two languages, some taken out, and items without any.

    items.csv ─ hide_names ─ without_names ─► the table that is indexed ─ prepare, train ─► a run
              └ ask ──► questions by kind, each in two halves: one to choose by, one to report

Kinds of questions:

- `indexed`: a name, and the item has it among its texts;
- `hidden`: a name that no item has; its item is indexed by the other language, and by media;
- `nameless`: a name of an item that is indexed by picture and sound alone;
- `picture`, `sound`: a medium of such an item.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.languages.names import COLUMN, LANGUAGES, IntArray, Questions, hide_names, questions
from benchmarks.languages.run import CATALOGUE, CONFIG, EVENTS_PER_USER, HIDDEN_SHARE, NUM_USERS
from benchmarks.simulated.source import write_source
from data_prep.prepare import prepare
from mmrec.config import change, load_config
from mmrec.training.train import train

NAMELESS_SHARE = 0.15
MEDIA = {"picture": "image", "sound": "audio"}
FILES = {"picture": "image", "sound": "sound"}

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """Questions of one kind.

    Attributes:
        kind: see the module.
        language: of names; None of media.
        modality: of the questions.
        questions: names, or paths of files.
        reported: (Q,) bool, False = the half that choices are made on.
    """

    kind: str
    language: str | None
    modality: str
    questions: Questions
    reported: BoolArray


def train_run(stamps: Path, folder: Path, *, seed: int) -> Path:
    """A run on stamps of which some names were taken out; what is in the folder is made anew.

    Args:
        stamps: the real folder.
        folder: to write: source, data, run.
        seed: of all that is drawn.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source, data, run = folder / "source", folder / "data", folder / "run"
    write_source(stamps, source, num_users=NUM_USERS, events_per_user=EVENTS_PER_USER, seed=seed)
    indexed_table(stamps, seed=seed).write_csv(source / "items.csv")
    # Chinese names are short, so that where a text is cut no name is lost
    columns = ", ".join(COLUMN[language] for language in reversed(LANGUAGES))
    prepare(CATALOGUE, source, data, overrides=[f"items.text=[{columns}]", f"split.seed={seed}"])
    train(change(load_config(CONFIG), {"training.seed": seed}, "search"), data, run)
    return run


def indexed_table(stamps: Path, *, seed: int) -> pl.DataFrame:
    """The items with what they are indexed by."""
    hidden = hide_names(whole_table(stamps), share=HIDDEN_SHARE, seed=seed)
    return without_names(hidden, share=NAMELESS_SHARE, seed=seed)


def whole_table(stamps: Path) -> pl.DataFrame:
    """The items with all their names."""
    return pl.read_csv(stamps / "items.csv", infer_schema=False)


def without_names(items: pl.DataFrame, *, share: float, seed: int) -> pl.DataFrame:
    """The table with some items that have lost both names; others of the same name lose theirs.

    Args:
        items: item_id, name_en, name_zh.
        share: of the items with two names.
        seed: of the draw.
    """
    random = np.random.default_rng([seed, 1])
    both = np.flatnonzero(_has_both(items))
    chosen = random.permutation(both)[: round(share * len(both))]
    names = items["name_en"].to_numpy()[chosen]
    lost = items["name_en"].is_in(names.tolist()).fill_null(False)
    return items.with_columns(
        pl.when(~lost).then(pl.col(column)).otherwise(None).alias(column)
        for column in COLUMN.values()
    )


def ask(stamps: Path, *, seed: int) -> list[Asked]:
    """All questions, in the order of the table."""
    items, indexed = whole_table(stamps), indexed_table(stamps, seed=seed)
    reported = np.random.default_rng([seed, 2]).random(len(items)) < 0.5
    both, nameless = _has_both(indexed), _nameless(items, indexed)
    found = []
    for language in LANGUAGES:
        had = items[COLUMN[language]].is_not_null().to_numpy()
        hidden = had & indexed[COLUMN[language]].is_null().to_numpy() & ~nameless
        for kind, chosen in {"indexed": both, "hidden": hidden, "nameless": nameless & had}.items():
            rows = np.flatnonzero(chosen)
            asked = questions(items, rows, language)
            found.append(Asked(kind, language, "text", asked, reported[rows]))
    for kind, modality in MEDIA.items():
        rows = np.flatnonzero(nameless & items[FILES[kind]].is_not_null().to_numpy())
        paths = [str(stamps / items[FILES[kind]][row]) for row in rows.tolist()]
        asked = Questions(paths, rows, _only(rows, len(items)))
        found.append(Asked(kind, None, modality, asked, reported[rows]))
    return found


def by_half(asked: Asked, *, reported: bool) -> Questions:
    """The questions of one half."""
    return asked.questions.take(asked.reported == reported)


def _only(rows: IntArray, num_items: int) -> BoolArray:
    """(Q, N) True for the item that each question is asked for."""
    return rows[:, None] == np.arange(num_items)[None]


def _has_both(items: pl.DataFrame) -> BoolArray:
    has = [items[column].is_not_null().to_numpy() for column in COLUMN.values()]
    found: BoolArray = np.logical_and.reduce(has)
    return found


def _nameless(items: pl.DataFrame, indexed: pl.DataFrame) -> BoolArray:
    """(N,) True for items that had a name and have none left."""
    lost = [indexed[column].is_null().to_numpy() for column in COLUMN.values()]
    had = [items[column].is_not_null().to_numpy() for column in COLUMN.values()]
    found: BoolArray = np.logical_and.reduce(lost) & np.logical_or.reduce(had)
    return found


def counts(asked: list[Asked]) -> Mapping[str, int]:
    """Questions by kind and language, of both halves."""
    return {f"{each.kind}/{each.language or '-'}": len(each.questions.texts) for each in asked}
