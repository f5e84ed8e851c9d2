"""`mmrec demo`: the main job on a simulated catalogue, from a folder of media to a report.

simulate ─► prepare ─► train ─► evaluate (report.html) ─► export ─► score items nobody has met
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import yaml

from data_prep.prepare import prepare
from data_prep.simulate import simulate
from mmrec.config import Config, parse_config
from mmrec.evaluation.command import evaluate_run
from mmrec.retrieval.cold import score_file
from mmrec.retrieval.export import export_run
from mmrec.training.train import train
from mmrec.weights import folder_of

logger = logging.getLogger(__name__)

# With fifteen, a thousand items and two thousand users not even ids beat popularity.
EVENTS_PER_USER = 40

# What takes the place of a small encoder where its weights are installed.
PRETRAINED = {
    "text": {"kind": "transformers", "weights": "minilm", "num_tokens": 16},
    "image": {"kind": "timm", "weights": "efficientnet-lite0", "num_tokens": 16},
}


def demo_config() -> Config:
    """The demo's settings: pretrained encoders where their weights are installed."""
    text = files("mmrec").joinpath("demo.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    for modality, encoder in PRETRAINED.items():
        if folder_of(str(encoder["weights"])) is not None:
            document["encoders"][modality] = encoder
            # silent channels keep 600 items from being learnt by heart; encoders that still have
            # to learn what to look at need them all
            document["model"]["fusion"]["feature_dropout"] = 0.3
    return parse_config(document, "demo.yaml")


def run_demo(
    out: Path,
    *,
    num_items: int = 600,
    num_users: int = 3000,
    config: Config | None = None,
) -> str:
    """Runs every stage and returns what it found, in a few lines.

    Args:
        out: folder for source, data, run, export, scores and report; what is simulated and
            prepared there already is kept, the run is trained anew.
        num_items: size of the simulated catalogue.
        num_users: users with simulated histories.
        config: settings; None: `demo_config`.
    """
    config = config or demo_config()
    source, data, run = out / "source", out / "data", out / "run"
    with _stage("simulate"):
        catalogue = simulate(
            source, num_items=num_items, num_users=num_users, events_per_user=EVENTS_PER_USER
        )
    with _stage("prepare"):
        prepared = prepare(catalogue, source, data)
    logger.info("%s", prepared.line())
    kinds = ", ".join(f"{name} {each.kind}" for name, each in config.encoders.items())
    with _stage(f"train ({kinds})"):
        shutil.rmtree(run, ignore_errors=True)
        train(config, data, run)
    with _stage("evaluate"):
        metrics = evaluate_run(run)
    with _stage("export"):
        shutil.rmtree(out / "export", ignore_errors=True)
        export_run(run, out / "export", formats=("parquet",))
    with _stage("score new items"):
        scored = score_file(
            run, source / "new_items" / "items.csv", source / "new_items", out / "scores.parquet"
        )
    report = out / "report.html"
    shutil.copyfile(run / "report.html", report)
    return "\n".join([*_findings(metrics["models"]), scored, f"report: {report}"])


def _findings(models: dict[str, dict[str, dict[str, float] | None]]) -> Iterator[str]:
    """One line a slice: ours, the best baseline, chance."""
    for name in ("warm", "cold", "cold_among_cold"):
        ours = models["mmrec"].get(name)
        others = {
            model: slices[name]["ndcg@10"]  # type: ignore[index]
            for model, slices in models.items()
            if model != "mmrec" and slices.get(name)
        }
        if ours is None or not others:
            continue
        best = max(others, key=lambda model: others[model])
        yield (
            f"{name} (simulated): NDCG@10 {ours['ndcg@10']:.4f}, best baseline {best} "
            f"{others[best]:.4f}, random {others.get('random', float('nan')):.4f}"
        )


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Logs a stage and its seconds."""
    started = time.perf_counter()
    logger.info("%s …", name)
    yield
    logger.info("%s: %.1f s", name, time.perf_counter() - started)
