"""How far few labelled examples of each class carry a text model, by what of it trains.

    python -m benchmarks.few_shot.run [--data DATA] [--draws 0,1,2] [--rate lora=0.001]

    OUT/results.md .json      balanced accuracy, mean and deviation over draws, by method and k
    OUT/curve.png             the same as a picture

Names of the stamps in English are told by category: eight classes that have more than sixteen
different names. A draw takes sixteen of each, of which the first k are learnt from; all other names
are asked. `probe` is a logistic regression on the vectors of the model as it is; the other methods
train what `encoders.text.method` of that name trains, in all blocks, beside a linear layer.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from benchmarks.runs import ROOT, install_weights
from encoders.adapters import adapt
from mmrec.config import EncoderConfig
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import make_encoder
from mmrec.evaluation.report_document import write_aside
from mmrec.evaluation.report_plots import STYLE

SHOTS = (1, 2, 4, 8, 16)
# full: the better of 2e-5 and 5e-5 on the draws 100 and 101, which no figure is of; the others are
# not searched yet
RATES: dict[str, float] = {"full": 5e-5, "lora": 1e-3, "prompt": 1e-2}
METHODS = ("probe", *RATES)
HEAD_RATE = 1e-2
STEPS, BATCH_SIZE = 60, 64
RANK = 8
ENCODER = EncoderConfig(kind="transformers", weights="minilm", options={"max_length": 32})
SCALE = 10.0  # of unit vectors before the linear layer


@dataclass(frozen=True)
class Names:
    """What is told apart.

    texts: of each item.
    labels: (N,) class of each, from 0.
    classes: their names.
    """

    texts: Sequence[str]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    classes: Sequence[str]


@dataclass(frozen=True)
class Row:
    """Accuracy of a method with k examples of each class, in one draw."""

    method: str
    shots: int
    draw: int
    accuracy: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all methods on all draws and write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "few_shot")
    parser.add_argument("--draws", default="0,1,2,3,4", help="seeds of examples and training")
    parser.add_argument("--rate", action="append", default=[], metavar="METHOD=RATE")
    given = parser.parse_args(arguments)
    rates = RATES | {name: float(rate) for name, rate in (each.split("=") for each in given.rate)}
    if unknown := rates.keys() - RATES.keys():
        parser.error(f"--rate: no method {', '.join(sorted(unknown))}; give {', '.join(RATES)}")
    install_weights("minilm")
    names = read_names(given.data / "stamps" / "items.csv")
    rows = []
    for draw in map(int, given.draws.split(",")):
        for method in METHODS:
            for shots in SHOTS:
                accuracy = measure(names, method, shots=shots, draw=draw, rate=rates.get(method))
                rows.append(Row(method, shots, draw, accuracy))
                print(f"draw {draw}, {method}, k = {shots}: {accuracy:.4f}", flush=True)
        write_results(rows, given.out, names, rates)
    print(render(rows, names, rates))
    return 0


def read_names(table: Path) -> Names:
    """The different names of the classes that have enough of them.

    Args:
        table: items.csv of the stamps.
    """
    items = pl.read_csv(table, infer_schema=False).unique("name_en", keep="first")
    items = items.sort("item_id")
    counts = Counter(items["category"].to_list())
    classes = sorted(name for name, count in counts.items() if count > max(SHOTS))
    items = items.filter(pl.col("category").is_in(classes))
    labels = np.array([classes.index(name) for name in items["category"]], np.int64)
    return Names(items["name_en"].to_list(), labels, classes)


def split(names: Names, *, shots: int, draw: int) -> tuple[Tensor, Tensor]:
    """Rows that are learnt from, k of each class, and those that are asked.

    The rows of a smaller k are among those of a larger one, and all k are asked the same.
    """
    random = np.random.default_rng(draw)
    learnt, asked = [], []
    for number in range(len(names.classes)):
        order = random.permutation(np.flatnonzero(names.labels == number))
        learnt.append(order[:shots])
        asked.append(order[max(SHOTS) :])
    return torch.from_numpy(np.concatenate(learnt)), torch.from_numpy(np.concatenate(asked))


def measure(names: Names, method: str, *, shots: int, draw: int, rate: float | None) -> float:
    """Balanced accuracy on the names that are asked: the mean over classes.

    Args:
        names: texts and classes.
        method: `probe`, or what trains.
        shots: k examples of each class.
        draw: seed.
        rate: of learning; None for the probe.
    """
    learnt, asked = split(names, shots=shots, draw=draw)
    labels = torch.from_numpy(names.labels)
    torch.manual_seed(draw)
    parts = make_encoder(
        "text",
        ENCODER,
        texts=lambda: names.texts,  # for a vocabulary, where weights bring none
        vector_width=lambda _: 0,
    )
    if rate is None:
        known, found = vectors(parts, names, learnt), vectors(parts, names, asked)
        probe = LogisticRegression(C=1.0, max_iter=1000).fit(known, labels[learnt])
        guesses = torch.from_numpy(probe.predict(found))
    else:
        adapt(parts.encoder, method, rank=RANK)  # type: ignore[arg-type]
        head = nn.Linear(parts.encoder.width, len(names.classes))
        nn.init.zeros_(head.weight)
        train(parts, head, names, learnt, rate=rate)
        with torch.inference_mode():
            guesses = head(torch.from_numpy(vectors(parts, names, asked))).argmax(1)
    right = (guesses == labels[asked]).double()
    return mean(float(right[labels[asked] == each].mean()) for each in range(len(names.classes)))


def train(parts: EncoderParts, head: nn.Linear, names: Names, rows: Tensor, *, rate: float) -> None:
    """Trains what `adapt` left trainable, and the linear layer, on some names."""
    encoder = parts.encoder
    trained = [each for each in encoder.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": trained, "lr": rate}, {"params": head.parameters(), "lr": HEAD_RATE}],
        weight_decay=0.01,
    )
    labels = torch.from_numpy(names.labels)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, STEPS)
    encoder.train()
    for _ in range(STEPS):
        batch = rows[torch.randperm(len(rows))[:BATCH_SIZE]]
        loss = F.cross_entropy(head(encode(parts, names, batch)), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder.eval()


def encode(parts: EncoderParts, names: Names, rows: Tensor) -> Tensor:
    """(n, W) vectors of equal length of some names, with a gradient."""
    samples = [parts.transform(names.texts[row]) for row in rows.tolist()]
    tokens = parts.encoder(parts.transform.collate(samples))
    return SCALE * F.normalize(parts.encoder.pooled(tokens), dim=-1)


@torch.inference_mode()
def vectors(parts: EncoderParts, names: Names, rows: Tensor) -> np.ndarray[Any, Any]:
    """The same of any number, without a gradient."""
    parts.encoder.eval()
    return torch.cat([encode(parts, names, each) for each in rows.split(256)]).numpy()


def render(rows: Sequence[Row], names: Names, rates: Mapping[str, float]) -> str:
    """The table in Markdown."""
    draws = sorted({row.draw for row in rows})
    asked = len(names.texts) - max(SHOTS) * len(names.classes)
    lines = [
        f"Balanced accuracy on {asked} names of {len(names.classes)} classes (chance "
        f"{1 / len(names.classes):.3f}), mean ± deviation over draws {', '.join(map(str, draws))}; "
        f"rates {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}",
        "",
        "| examples a class | " + " | ".join(METHODS) + " |",
        "|---|" + "---|" * len(METHODS),
    ]
    for shots in SHOTS:
        cells = []
        for method in METHODS:
            found = [each.accuracy for each in rows if (each.method, each.shots) == (method, shots)]
            spread = stdev(found) if len(found) > 1 else 0.0
            cells.append(f"{mean(found):.3f} ± {spread:.3f}" if found else "–")
        lines.append(f"| {shots} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_curve(rows: Sequence[Row], path: Path) -> None:
    """Writes accuracy against k, a line a method with its deviation over draws."""
    style: Any = {**STYLE, "axes.grid": True}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7, 4.6), dpi=110, layout="constrained")
        axes = figure.subplots()
        for method in METHODS:
            by_shots = [
                [each.accuracy for each in rows if (each.method, each.shots) == (method, shots)]
                for shots in SHOTS
            ]
            spread = [stdev(each) if len(each) > 1 else 0.0 for each in by_shots]
            axes.errorbar(
                SHOTS,
                [mean(each) for each in by_shots],
                spread,
                marker="o",
                capsize=3,
                label=method,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(SHOTS, list(map(str, SHOTS)))
        axes.set_xlabel("labelled examples a class")
        axes.set_ylabel("balanced accuracy on other items")
        axes.legend(title="what trains")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_aside(path, buffer.getvalue())


def write_results(rows: Sequence[Row], out: Path, names: Names, rates: Mapping[str, float]) -> None:
    """Writes the table, its figures and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    document = {"rates": dict(rates), "rows": [asdict(row) for row in rows]}
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows, names, rates).encode())
    draw_curve(rows, out / "curve.png")


if __name__ == "__main__":
    sys.exit(main())
