"""How well search finds stamps: by words, by meaning and by both, by picture and by sound.

    python -m benchmarks.search.run [--data DATA] [--seed 1]

    OUT/source/ data/ run/      stamps with simulated users, some names taken out, and a model
    OUT/results.md .json        the table

Half of the questions, drawn by chance, are set aside: what words count beside meaning was chosen on
these, and the table is of the others. `benchmarks.search.stamps` says what is asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.languages.names import FloatArray, Questions, hits
from benchmarks.runs import ROOT, install_weights
from benchmarks.search.stamps import Asked, ask, by_half, train_run
from mmrec.evaluation.report_document import write_aside
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.search import WAYS, Query, Searcher, Way

K = 10
DRAWS = 2000
AMONG = "nameless, among themselves"  # how well pictures and sounds answer names at all
# among all items chance is half a question of these, which no interval of so few can exclude
MUST_BEAT_CHANCE = (AMONG, "picture", "sound")


@dataclass(frozen=True)
class Row:
    """How well one way answers questions of one kind.

    Attributes:
        kind: see `benchmarks.search.stamps`.
        language: of names; None of media.
        way: lexical, dense or hybrid.
        num_questions: how many there are.
        recall: share of questions whose item is among the first ten.
        recall_interval: of 95 %, over questions.
        mrr: mean of 1 / rank.
        mrr_interval: the same of it.
        chance: recall of an order drawn by lot.
    """

    kind: str
    language: str | None
    way: Way
    num_questions: int
    recall: float
    recall_interval: tuple[float, float]
    mrr: float
    mrr_interval: tuple[float, float]
    chance: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all; exit status 1 where `failures` has something to say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "search")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, help="a run that an earlier call of this seed made")
    parser.add_argument("--chosen-on", action="store_true", help="the half set aside instead")
    given = parser.parse_args(arguments)
    stamps = given.data / "stamps"
    if not stamps.is_dir():
        print(f"{stamps}: no data there; name the folder above it with --data", file=sys.stderr)
        return 2
    run = given.run
    if run is None:
        install_weights("efficientnet-lite0")
        run = train_run(stamps, given.out, seed=given.seed)
    searcher = Searcher(load_retriever(run))
    asked = ask(stamps, seed=given.seed)
    rows = [row for each in asked for row in answer(searcher, each, reported=not given.chosen_on)]
    given.out.mkdir(parents=True, exist_ok=True)
    document = {"seed": given.seed, "rows": [asdict(row) for row in rows]}
    write_aside(given.out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(given.out / "results.md", render(rows, given.seed).encode())
    print(render(rows, given.seed))
    found = failures(rows)
    for line in found:
        print(line, file=sys.stderr)
    return int(bool(found))


def answer(searcher: Searcher, asked: Asked, *, reported: bool) -> list[Row]:
    """The rows of one kind of questions, one a way that can answer them."""
    questions = by_half(asked, reported=reported)
    rows = []
    for way in WAYS if asked.modality == "text" else ("dense",):
        scores = scores_of(searcher, asked.modality, questions.texts, way)
        rows.append(judge(scores, questions, asked.kind, asked.language, way))
        if asked.kind == "nameless" and way == "dense":
            among = searcher.retriever.items.has["text"]
            few = replace(questions, answers=questions.answers | among)  # they stand aside
            rows.append(judge(scores, few, AMONG, asked.language, way))
    return rows


def scores_of(searcher: Searcher, modality: str, texts: Sequence[str], way: Way) -> FloatArray:
    """(Q, N) what a search orders items by."""
    if modality == "text" and way != "lexical":
        searcher.encoder.texts(texts)  # all in one batch; each search finds its own there
    queries = [Query(**{modality: Path(t) if modality != "text" else t}) for t in texts]  # type: ignore[arg-type]
    found = [searcher.match(query, way).scores.double().cpu().numpy() for query in queries]
    return np.stack(found)


def judge(
    scores: FloatArray, questions: Questions, kind: str, language: str | None, way: Way
) -> Row:
    """Recall and MRR; what is not found at all comes last, in an order drawn by lot."""
    scores = np.where(np.isfinite(scores), scores, -1e9)
    recall, mrr = hits(scores, questions, K), reciprocal_ranks(scores, questions)
    return Row(
        kind,
        language,
        way,
        len(questions.texts),
        float(recall.mean()),
        interval(recall),
        float(mrr.mean()),
        interval(mrr),
        float((K / (1 + (~questions.answers).sum(1))).mean()),
    )


def reciprocal_ranks(scores: FloatArray, asked: Questions) -> FloatArray:
    """(Q,) 1 / rank of each question's item, in the midst of those of equal score.

    Args:
        scores: (Q, N), larger is better.
        asked: the questions; other items of the same name stand aside.
    """
    own = scores[np.arange(len(asked.own)), asked.own][:, None]
    rivals = ~asked.answers
    above, level = ((scores > own) & rivals).sum(1), ((scores == own) & rivals).sum(1)
    found: FloatArray = 1 / (1 + above + level / 2)
    return found


def interval(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of means over questions drawn again, from the same draws each time."""
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def failures(rows: Sequence[Row]) -> list[str]:
    """Where hybrid search is worse than one of its halves, or media do no better than chance."""
    by_way: dict[tuple[str, str | None], dict[str, Row]] = {}
    for row in rows:
        by_way.setdefault((row.kind, row.language), {})[row.way] = row
    found = []
    for (kind, language), ways in by_way.items():
        name = f"{kind} {language or ''}".strip()
        if kind == "indexed" and ways["hybrid"].recall < max(each.recall for each in ways.values()):
            found.append(f"{name}: hybrid search finds less than one of its halves")
        row = ways["dense"]
        if kind in MUST_BEAT_CHANCE and row.recall_interval[0] <= row.chance:
            found.append(f"{name}: found no better than by chance, {row.chance:.3f}")
    return found


def render(rows: Sequence[Row], seed: int) -> str:
    """The table in Markdown."""
    lines = [
        f"Stamps, seed {seed}: Recall@{K} and MRR with intervals of 95 % over questions",
        "",
        f"| questions | number | search | Recall@{K} | by chance | MRR |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row.kind + (f", {row.language}" if row.language else "")
        cells = (_cell(row.recall, row.recall_interval), _cell(row.mrr, row.mrr_interval))
        lines.append(
            f"| {name} | {row.num_questions} | {row.way} | {cells[0]} | "
            f"{row.chance:.3f} | {cells[1]} |"
        )
    return "\n".join(lines) + "\n"


def _cell(value: float, between: tuple[float, float]) -> str:
    return f"{value:.3f} ({between[0]:.3f}–{between[1]:.3f})"


if __name__ == "__main__":
    sys.exit(main())
