"""What few events leave of each model: matrix factorisation, content, ids and both, share by share.

    python -m benchmarks.sparsity.run [--out OUT] [--jobs N] [--threads N] [--shares 1,0.1]

    OUT/source/ OUT/prepared/       the demo's simulated catalogue; no item is held out as new
    OUT/runs/SHARE/MODEL/VARIANT/   a run; of the one chosen on validation its ranks of the test
    OUT/results.md .json            the tables, written anew after each run

Every run is `mmrec train` and `mmrec evaluate` with `data.event_share` changed: smaller shares lie
within larger ones, and all models of a share see the same events and are asked the same questions.
What fits many events fits few of them too closely: each model of ours chooses on validation between
the demo's settings and firmer ones, as matrix factorisation chooses its factors.
A command that was interrupted goes on where it was. All figures are of simulated data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import svds

from benchmarks.runs import install_weights, is_begun, run_commands, train_command
from data_prep.prepare import prepare
from data_prep.shards import PreparedData, Split
from data_prep.simulate import simulate
from mmrec.data.ragged import Ragged
from mmrec.data.thinning import open_split
from mmrec.demo import EVENTS_PER_USER, PRETRAINED
from mmrec.evaluation.baselines import input_histories
from mmrec.evaluation.evaluate import evaluate_scorers, user_values
from mmrec.evaluation.metrics import FloatArray, bootstrap_interval
from mmrec.evaluation.protocol import Cases, load_cases, training_histories, training_popularity
from mmrec.evaluation.ranking import VectorScorer
from mmrec.evaluation.report_document import write_aside

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "mmrec" / "demo.yaml"
NUM_ITEMS, NUM_USERS = 600, 3000  # the demo's
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)
FEW_EVENTS = 50
METRIC = "ndcg@10"
MINUTES_A_RUN = 30.0

# The demo where weights are installed, without sound: with all states cached a run takes a minute
# or two. Silent channels and the whole gradient are what fits cached states (docs/log.md).
SETTINGS: dict[str, Any] = {
    "data.num_workers": 0,
    "encoders": PRETRAINED,
    "model.fusion.feature_dropout": 0.3,
    "training.content_gradient": 1.0,
    "training.stop_on": "warm",
    "evaluation.baselines": [],
}
BASELINES = ("ease", "content_knn", "popularity")
MODELS: dict[str, dict[str, Any]] = {
    "hybrid": {"model.item": "both", "evaluation.baselines": BASELINES},
    "content": {"model.item": "content"},
    "ids": {"model.item": "id", "encoders": {}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "demo": {},
    "firm": {"model.history.dropout": 0.6, "model.id_gate": 100.0},
}
FACTORS = "matrix factorisation"
NUM_FACTORS = (4, 8, 16, 32, 64)
ROWS = (*MODELS, FACTORS, *BASELINES)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where a run is broken."""
    given = parse(arguments)
    source, prepared = given.out / "source", given.out / "prepared"
    catalogue = simulate(
        source, num_items=NUM_ITEMS, num_users=NUM_USERS, events_per_user=EVENTS_PER_USER
    )
    no_cold = ["split.cold_validation=0", "split.cold_test=0"]
    print(prepare(catalogue, source, prepared, overrides=no_cold).line(), flush=True)
    for encoder in PRETRAINED.values():
        install_weights(str(encoder["weights"]))
    data = PreparedData.open(prepared)
    broken = []
    for share in given.shares:
        factorise(data, share, given.out)
    # the first run alone fills the state cache, which the others then share
    todo = [(share, name) for share in given.shares for name in MODELS]
    with ThreadPoolExecutor(given.jobs) as pool:
        for batch in (todo[:1], todo[1:]):
            waiting = {
                pool.submit(run_one, share, name, given, data): f"{share:g} {name}"
                for share, name in batch
            }
            for ended in as_completed(waiting):
                reason = ended.result()
                print(f"{waiting[ended]}: {reason or 'done'}", flush=True)
                if reason is not None:
                    broken.append(waiting[ended])
                write_results(data, given.shares, given.out)
    print((given.out / "results.md").read_text(encoding="utf-8"))
    print(f"{given.out / 'results.md'}; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sparsity")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument(
        "--shares", type=lambda text: tuple(float(each) for each in text.split(",")), default=SHARES
    )
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    return given


def settings_of(share: float, name: str) -> dict[str, Any]:
    """What `mmrec train` is told to change, whatever the variant."""
    return {**SETTINGS, **MODELS[name], "data.event_share": share}


def folder_of_run(out: Path, share: float, name: str) -> Path:
    """Where a run lies."""
    return out / "runs" / f"{share:g}" / name.replace(" ", "-")


def run_one(share: float, name: str, given: argparse.Namespace, data: PreparedData) -> str | None:
    """Trains every variant and ranks the best unless that is done; None, or why it is broken."""
    folder, settings = folder_of_run(given.out, share, name), settings_of(share, name)
    origin = [CONFIG.read_text(encoding="utf-8"), settings, VARIANTS, data.data_hash]
    if is_begun(folder, origin) and _ranks_file(folder).is_file():
        return None
    limit_s = 60 * MINUTES_A_RUN
    commands = {
        f"train-{variant}": train_command(
            CONFIG, {**settings, **changes}, data.path, folder / variant
        )
        for variant, changes in VARIANTS.items()
    }
    broken = run_commands(folder, commands, limit_s=limit_s, threads=given.threads)
    if broken is not None:
        return broken
    best = max(VARIANTS, key=lambda variant: best_look(folder / variant))
    evaluate = {"evaluate": ["evaluate", str(folder / best)]}
    broken = run_commands(folder, evaluate, limit_s=limit_s, threads=given.threads)
    if broken is None:
        for variant in VARIANTS:  # the ranks say all we need
            shutil.rmtree(folder / variant / "checkpoints", ignore_errors=True)
    return broken


def best_look(run: Path) -> float:
    """The best figure that validation had of a run, by which its weights were chosen."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [record["validation"] for record in map(json.loads, lines) if record.get("validation")]
    return max(look["warm"][METRIC] for look in looks)


def factorise(data: PreparedData, share: float, out: Path) -> None:
    """Ranks the test targets by matrix factorisation, with as many factors as validation likes."""
    folder = folder_of_run(out, share, FACTORS)
    if is_begun(folder, [NUM_FACTORS, data.data_hash]) and _ranks_file(folder).is_file():
        return
    split = open_split(data, None, share)
    popularity = training_popularity(split)
    found = {}
    for which in ("validation", "test"):
        cases = load_cases(data, split, which)  # type: ignore[arg-type]
        wanted = NUM_FACTORS
        if which == "test":
            best = max(NUM_FACTORS, key=lambda k: found[str(k)]["warm"][METRIC])  # type: ignore[index]
            wanted = (best,)
        scorers = {str(k): factor_scorer(cases, split, num_factors=k) for k in wanted}
        evaluation = evaluate_scorers(scorers, cases, popularity=popularity)
        found = evaluation.models
    ids = pl.Series(data.user_ids), pl.Series(data.items.item_ids)
    ranks = evaluation.ranks.select(
        pl.lit(FACTORS).alias("model"),
        ids[0].gather(evaluation.ranks["user_index"]).alias("user_id"),
        ids[1].gather(evaluation.ranks["item_index"]).alias("item_id"),
        "slice",
        "rank",
    )
    _ranks_file(folder).parent.mkdir(exist_ok=True)
    aside = folder / "ranks.part"
    ranks.write_parquet(aside)
    os.replace(aside, _ranks_file(folder))
    print(f"{share:g} {FACTORS}: {wanted[0]} factors", flush=True)


def factor_scorer(cases: Cases, split: Split, *, num_factors: int) -> VectorScorer:
    """PureSVD (Cremonesi et al., 2010): X = U S V', score of a history x is x V V'.

    Fitted to the inputs of the evaluation, as EASE is.
    """
    inputs = input_histories(
        cases, train_users=split.train.user_index, train=training_histories(split)
    )
    met = _incidence(inputs, cases.num_items)
    # a start of ones, or the same data would give other factors every time
    start = np.ones(min(met.shape))
    _, _, right = svds(met, k=num_factors, v0=start, return_singular_vectors="vh")
    items = torch.from_numpy(np.ascontiguousarray(right.T, dtype=np.float32))
    asked = _incidence(cases.history, cases.num_items)
    users = torch.from_numpy((asked @ right.T).astype(np.float32))
    return VectorScorer(users, items[torch.from_numpy(cases.candidates)])


def _incidence(histories: Ragged, num_items: int) -> sparse.csr_array:
    """(R, N) float64: 1 where the item occurs in the history; items do not repeat here."""
    ones = np.ones(len(histories.values))
    shape = (len(histories), num_items)
    return sparse.csr_array((ones, histories.values, histories.offsets), shape=shape)


def _ranks_file(folder: Path) -> Path:
    return next(folder.glob("*/ranks-test.parquet"), folder / "run" / "ranks-test.parquet")


def write_results(data: PreparedData, shares: Sequence[float], out: Path) -> None:
    """The tables of what there is so far, as Markdown and JSON."""
    rows = [row for share in shares for row in rows_of(data, share, out)]
    document = {
        "schema": 2,
        "simulated": True,
        "settings": SETTINGS,
        "variants": VARIANTS,
        "rows": rows,
    }
    content = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    write_aside(out / "results.json", content.encode())
    write_aside(out / "results.md", render(rows).encode())


def rows_of(data: PreparedData, share: float, out: Path) -> list[dict[str, Any]]:
    """Figures of the models of one share, over all targets and those of items with few events."""
    counts = training_popularity(open_split(data, None, share))
    few = [data.items.item_ids[row] for row in np.flatnonzero(counts < FEW_EVENTS)]
    tables = {}
    for name in (*MODELS, FACTORS):
        file = _ranks_file(folder_of_run(out, share, name))
        if file.is_file():
            own = pl.read_parquet(file)
            for model in own["model"].unique():
                tables[name if model == "mmrec" else str(model)] = own.filter(
                    pl.col("model") == model
                )
    rows = []
    for name in (each for each in ROWS if each in tables):
        row: dict[str, Any] = {"share": share, "model": name, "events": int(counts.sum())}
        if name in MODELS:
            row["variant"] = _ranks_file(folder_of_run(out, share, name)).parent.name
        for what, kept in (("all", None), ("few", few)):
            own, whole = (
                _values(tables[each], kept) if each in tables else None for each in (name, "hybrid")
            )
            row[what] = None if own is None else _figure(own, None if name == "hybrid" else whole)
        rows.append(row)
    return rows


def _values(ranks: pl.DataFrame, items: Sequence[str] | None) -> FloatArray | None:
    """(users,) NDCG@10; None where no target is of the items."""
    own = ranks if items is None else ranks.filter(pl.col("item_id").is_in(items))
    if own.is_empty():
        return None
    model = own["model"][0]
    values = user_values(own, model=model, slice_name="warm", metric=METRIC)["value"]
    return values.to_numpy()


def _figure(values: FloatArray, hybrid: FloatArray | None) -> dict[str, Any]:
    """Mean with its 95 % interval over users, and what the hybrid has above it, user by user."""
    low, high = bootstrap_interval(values)
    figure = {"num_users": len(values), "mean": float(values.mean()), "low": low, "high": high}
    if hybrid is None:
        return figure
    low, high = bootstrap_interval(hybrid - values)
    gain = {"mean": float((hybrid - values).mean()), "low": low, "high": high}
    return {**figure, "hybrid_gains": gain}


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table over all targets and one over those of items with few events."""
    shares = list(dict.fromkeys(row["share"] for row in rows))
    found = {(row["share"], row["model"]): row for row in rows}
    head = "| NDCG@10 (simulated) | " + " | ".join(f"{share:.0%}" for share in shares) + " |"
    lines = []
    for what, title in (
        (
            "all",
            "All targets; in brackets the 95 % interval over users, then the share kept of 100 %",
        ),
        (
            "few",
            f"Targets that at most {FEW_EVENTS - 1} known events are of; beneath, how many users",
        ),
    ):
        lines += [f"{title}:", "", head, "|---|" + "---|" * len(shares)]
        if what == "all":  # more than the share where users have few events: each keeps two
            known = [next(row["events"] for row in rows if row["share"] == s) for s in shares]
            lines.append("| known training events | " + " | ".join(f"{n:,}" for n in known) + " |")
        for name in ROWS:
            cells = []
            for share in shares:
                figure = (found.get((share, name)) or {}).get(what)
                cells.append("–" if figure is None else _cell(figure, what, found.get((1.0, name))))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    for name in MODELS:
        chosen = [f"{s:.0%} {found[s, name]['variant']}" for s in shares if (s, name) in found]
        lines.append(
            f"Settings of {name}, chosen on validation: {', '.join(chosen) or 'none yet'}."
        )
    return "\n".join([*lines, ""])


def _cell(figure: Mapping[str, Any], what: str, whole: Mapping[str, Any] | None) -> str:
    text = f"{_number(figure['mean'])} ({_number(figure['low'])} to {_number(figure['high'])})"
    if what == "few":
        return f"{text} {figure['num_users']:,}"
    if whole is None or not whole["all"]["mean"]:
        return text
    return f"{text} {figure['mean'] / whole['all']['mean']:.0%}"


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


if __name__ == "__main__":
    sys.exit(main())
