"""Whether a name in Chinese finds its item as a name in English does: Recall@10 by language.

    python -m benchmarks.languages.run [--data DATA] [--seeds 0,1,2] [--models characters,pieces]

    OUT/seed-0/source/ data/    stamps with simulated users, names in two columns, some taken out
    OUT/seed-0/MODEL/           a run
    OUT/results.md .json        the table

Items are indexed by picture, sound and names, all in one model. Questions are names of three kinds:

- `indexed`: the item has it among its texts;
- `new`: those of the indexed that training did not meet, nor their items (cold items);
- `hidden`: no item has it; its item is indexed by the name in the other language, and by media.

Beside the models stands a match of the same characters (tf-idf), which learns nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl

from benchmarks.languages.names import (
    COLUMN,
    LANGUAGES,
    FloatArray,
    Language,
    Questions,
    hide_names,
    hits,
    match_characters,
    questions,
)
from benchmarks.runs import ROOT, install_weights
from benchmarks.simulated.source import write_source
from data_prep.prepare import prepare
from mmrec.config import change, load_config
from mmrec.data.vocabulary import unknown_shares
from mmrec.evaluation.report_document import write_aside
from mmrec.loaded import LoadedRun, load_run
from mmrec.retrieval.content import encode_query
from mmrec.retrieval.load import load_retriever
from mmrec.training.train import train

CONFIG = ROOT / "configs" / "stamps-search.yaml"
CATALOGUE = ROOT / "configs" / "catalogues" / "stamps.yaml"
NUM_USERS, EVENTS_PER_USER = 400, 16
HIDDEN_SHARE = 0.15
KINDS = ("indexed", "new", "hidden")
K = 10
WANTED = 0.8  # of English, in Chinese
MODELS: dict[str, dict[str, Any]] = {
    "characters": {},
    "pieces": {"encoders.text.options.vocabulary": "pieces"},
}
MATCH = "same characters"


@dataclass(frozen=True)
class Row:
    """How many questions of a kind are answered among the first ten.

    Attributes:
        searcher: a model, or the match of characters.
        kind: see the module.
        language: of the questions.
        seed: of the names taken out, the items held back, and training.
        num_questions: how many there are.
        recall: share of them.
        unknown: share of their pieces that the vocabulary does not hold; None without one.
    """

    searcher: str
    kind: str
    language: Language
    seed: int
    num_questions: int
    recall: float
    unknown: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all; exit status 1 where indexed names in Chinese fall short of those in English."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "languages")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--models", default=",".join(MODELS), help="vocabularies")
    given = parser.parse_args(arguments)
    models = given.models.split(",")
    if unknown := [name for name in models if name not in MODELS]:
        parser.error(f"--models: no model {', '.join(unknown)}; give {', '.join(MODELS)}")
    stamps = given.data / "stamps"
    if not stamps.is_dir():
        print(f"{stamps}: no data there; name the folder above it with --data", file=sys.stderr)
        return 2
    install_weights("efficientnet-lite0")
    rows: list[Row] = []
    for seed in map(int, given.seeds.split(",")):
        rows += measure(stamps, given.out / f"seed-{seed}", models, seed=seed)
        write_results(rows, given.out)
    print(render(rows))
    return int(any(ratio(rows, name, "indexed")[0] < WANTED for name in models))


def measure(stamps: Path, folder: Path, models: Sequence[str], *, seed: int) -> list[Row]:
    """Hides names, trains each model and asks it.

    Args:
        stamps: the real folder.
        folder: to write; what is in it is made anew.
        models: names of MODELS.
        seed: of all that is drawn.
    """
    shutil.rmtree(folder, ignore_errors=True)
    items = pl.read_csv(stamps / "items.csv", infer_schema=False)
    indexed = hide_names(items, share=HIDDEN_SHARE, seed=seed)
    source, data = folder / "source", folder / "data"
    write_source(stamps, source, num_users=NUM_USERS, events_per_user=EVENTS_PER_USER, seed=seed)
    indexed.write_csv(source / "items.csv")
    # Chinese names are short, so that where a text is cut no name is lost
    columns = ", ".join(COLUMN[language] for language in reversed(LANGUAGES))
    prepare(CATALOGUE, source, data, overrides=[f"items.text=[{columns}]", f"split.seed={seed}"])
    rows = []
    for name in models:
        settings = change(load_config(CONFIG), MODELS[name] | {"training.seed": seed}, name)
        run = folder / name
        train(settings, data, run)
        loaded = load_run(run)
        asked = ask(items, indexed, cold_items(loaded))
        transform = loaded.parts["text"].transform
        rows += answer(name, asked, searcher_of(run, loaded), seed=seed, transform=transform)
    rows += answer(MATCH, asked, lambda texts: match_characters(indexed, texts), seed=seed)
    return rows


def ask(
    items: pl.DataFrame, indexed: pl.DataFrame, is_cold: np.ndarray[Any, np.dtype[np.bool_]]
) -> dict[tuple[str, Language], Questions]:
    """The questions by kind and language.

    Of `indexed` and `new` the same items are asked for in both languages.

    Args:
        items: the whole table.
        indexed: the same with names taken out.
        is_cold: (N,) True = held back from training.
    """
    has = {name: indexed[COLUMN[name]].is_not_null().to_numpy() for name in LANGUAGES}
    had = {name: items[COLUMN[name]].is_not_null().to_numpy() for name in LANGUAGES}
    both = np.logical_and.reduce([*has.values()])
    found: dict[tuple[str, Language], Questions] = {}
    for language in LANGUAGES:
        chosen = {
            "indexed": both,
            "new": both & is_cold,
            "hidden": had[language] & ~has[language],
        }
        for kind, rows in chosen.items():
            found[kind, language] = questions(items, np.flatnonzero(rows), language)
    return found


def cold_items(loaded: LoadedRun) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) True for items that training did not meet."""
    assert loaded.split is not None
    found = np.zeros(len(loaded.item_ids), np.bool_)
    for item, role in loaded.split.items.select("item_index", "role").iter_rows():
        found[item] = role.startswith("cold")
    return found


def searcher_of(run: Path, loaded: LoadedRun) -> Callable[[list[str]], FloatArray]:
    """Texts to cosines with all items, (Q, N), the way `mmrec similar --text` goes."""
    retriever = load_retriever(run)
    assert loaded.content is not None
    content = loaded.content.double().cpu().numpy()

    def search(texts: list[str]) -> FloatArray:
        # the same name is the same question, whichever item is asked for
        vectors = {text: encode_query(retriever, "text", text) for text in dict.fromkeys(texts)}
        asked = np.stack([vectors[text].double().cpu().numpy() for text in texts])
        found: FloatArray = asked @ content.T
        return found

    return search


def answer(
    name: str,
    asked: Mapping[tuple[str, Language], Questions],
    search: Callable[[list[str]], FloatArray],
    *,
    seed: int,
    transform: Any = None,
) -> list[Row]:
    """The rows of one searcher; `transform` is that of its texts, where it has one."""

    def unknown(texts: Sequence[str]) -> float | None:
        if transform is None:
            return None
        return unknown_shares(transform, [{"name": text} for text in texts]).get("name", 0.0)

    return [
        Row(
            name,
            kind,
            language,
            seed,
            len(each.texts),
            float(hits(search(each.texts), each, K).mean()),
            unknown(each.texts),
        )
        for (kind, language), each in asked.items()
    ]


def ratio(rows: Sequence[Row], searcher: str, kind: str) -> tuple[float, float]:
    """Chinese as a share of English, mean over seeds, and its deviation; 0 where English is 0."""
    own = [row for row in rows if (row.searcher, row.kind) == (searcher, kind)]
    found = {(row.seed, row.language): row.recall for row in own}
    each = [
        found[seed, "zh"] / found[seed, "en"] if found[seed, "en"] else 0.0
        for seed in sorted({seed for seed, _ in found})
    ]
    return mean(each) if each else 0.0, _deviation(each)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    seeds = sorted({row.seed for row in rows})
    lines = [
        f"Stamps: Recall@{K} of names among all items, mean ± deviation over seeds "
        f"{', '.join(map(str, seeds))}; in brackets the share of pieces unknown to the vocabulary",
        "",
        "| search by | names | questions | English | Chinese | Chinese / English |",
        "|---|---|---|---|---|---|",
    ]
    for searcher in dict.fromkeys(row.searcher for row in rows):
        for kind in KINDS:
            own = [row for row in rows if (row.searcher, row.kind) == (searcher, kind)]
            if not own:
                continue
            cells = [_cell([row for row in own if row.language == each]) for each in LANGUAGES]
            asked = "/".join(
                f"{mean(row.num_questions for row in own if row.language == each):.0f}"
                for each in LANGUAGES
            )
            share = "{:.2f} ± {:.2f}".format(*ratio(rows, searcher, kind))
            lines.append(f"| {searcher} | {kind} | {asked} | {cells[0]} | {cells[1]} | {share} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row]) -> str:
    recall = [row.recall for row in rows]
    unknown = [row.unknown for row in rows if row.unknown is not None]
    behind = f" ({mean(unknown):.1%})" if unknown else ""
    return f"{mean(recall):.3f} ± {_deviation(recall):.3f}{behind}"


def write_results(rows: Sequence[Row], out: Path) -> None:
    """Writes the table and its figures."""
    document = {"rows": [asdict(row) for row in rows]}
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
