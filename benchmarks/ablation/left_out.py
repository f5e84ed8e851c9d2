"""What it costs to lose a modality that a model was trained with, beside never having had it.

    run with all modalities, validation cases ─► left-out.json: NDCG@10 by slice, without each
    that and the runs trained without ─► losses ─► Markdown

A model that is asked without a modality should be as good as one that was trained without it: an
item that lacks a picture must not suffer for those that have one.

    python -m benchmarks.ablation.left_out FOLDER     (one run of a plan, before its weights go)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.ablation.grid import Cell, Grid
from benchmarks.ablation.plan import COMPLETE, ROOT, Part
from benchmarks.peers.process import child_environment, run_process
from mmrec.evaluation.report_document import write_aside

SLICES = {"warm": "warm NDCG@10", "cold_among_cold": "cold among cold NDCG@10"}
LEFT_OUT = "left-out.json"
MOST_USERS = 1_000_000  # all of them, so that the figures are those of the ranks


@dataclass(frozen=True)
class Loss:
    """What it costs to lose one modality: NDCG@10 of one slice, means over seeds.

    Attributes:
        slice: of the targets.
        modality: the one that is lost.
        whole: with all modalities.
        asked_without: the same models, asked without it.
        trained_without: models that never had it.
        cost: share of `trained_without` that `asked_without` is short of it; below 0 where it is
            better.
        by_seed: the cost with each seed.
    """

    slice: str
    modality: str
    whole: float
    asked_without: float
    trained_without: float
    cost: float
    by_seed: tuple[float, ...]

    def document(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def ask_without(folder: Path, *, limit_s: float, threads: int) -> str | None:
    """Writes `folder/left-out.json` in a process of its own; None, or why it is broken."""
    ended = run_process(
        [sys.executable, "-m", "benchmarks.ablation.left_out", str(folder)],
        log=folder / "left-out.log",
        limit_s=limit_s,
        environment=child_environment(threads=threads, ours=True, root=ROOT),
    )
    return None if ended.reason is None else f"left out broken: {ended.reason} (log: {folder})"


def losses(grid: Grid, seeds: Sequence[int], out: Path) -> list[Loss]:
    """What losing each modality costs, over the seeds of which all runs are there."""
    found = []
    for name in grid.modalities:
        rest = tuple(each for each in grid.modalities if each != name)
        without = Part(Cell(rest, grid.fusions[0]).name, {})
        pairs = []
        for seed in seeds:
            asked = _figures(out, Part(COMPLETE, {}), seed, LEFT_OUT)
            never = _figures(out, without, seed, "run/metrics-validation.json")
            if asked is not None and never is not None:
                pairs.append((asked, never["models"]["mmrec"]))
        for slice_name in SLICES if pairs else ():
            whole = [asked["all media"][slice_name] for asked, _ in pairs]
            lost = [asked[f"without {name}"][slice_name] for asked, _ in pairs]
            never_had = [never[slice_name]["ndcg@10"] for _, never in pairs]
            found.append(
                Loss(
                    slice=slice_name,
                    modality=name,
                    whole=mean(whole),
                    asked_without=mean(lost),
                    trained_without=mean(never_had),
                    cost=1 - mean(lost) / mean(never_had),
                    by_seed=tuple(1 - a / b for a, b in zip(lost, never_had, strict=True)),
                )
            )
    return found


def _figures(out: Path, part: Part, seed: int, file: str) -> dict[str, Any] | None:
    path = out / "runs" / part.slug / f"seed-{seed}" / file
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def render_losses(found: Sequence[Loss]) -> str:
    """The table as Markdown: a row a modality and slice."""
    lines = [
        "What it costs to lose a modality: NDCG@10 of the model with all, of the same model asked "
        "without it, and of models trained without it; means over seeds. The cost is what the "
        "second is short of the third, with the least and the greatest of a seed.",
        "",
        "| lost | slice | with all | asked without | trained without | cost |",
        "|---|---|---|---|---|---|",
    ]
    for loss in found:
        numbers = (loss.whole, loss.asked_without, loss.trained_without)
        cells = " | ".join(f"{value:.4f}".removeprefix("0") for value in numbers)
        spread = f"{min(loss.by_seed):+.1%} to {max(loss.by_seed):+.1%}"
        title = SLICES[loss.slice].removesuffix(" NDCG@10")
        lines.append(f"| {loss.modality} | {title} | {cells} | {loss.cost:+.1%} ({spread}) |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks one run, on its validation targets."""
    from mmrec.evaluation.ablation import knock_out
    from mmrec.evaluation.protocol import load_cases, training_popularity
    from mmrec.loaded import load_run, open_source

    (folder,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    loaded = load_run(folder / "run")
    source = open_source(loaded)
    if loaded.data is None or loaded.split is None or source is None:
        print(f"{folder}: a run of ids alone has no modality to lose", file=sys.stderr)
        return 2
    cases = load_cases(loaded.data, loaded.split, "validation")
    popularity = training_popularity(loaded.split)
    rows = knock_out(loaded, source, cases, popularity, most_users=MOST_USERS)
    document = {row.name: row.ndcg for row in rows}
    write_aside(folder / LEFT_OUT, (json.dumps(document, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
