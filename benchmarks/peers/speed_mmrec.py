"""mmrec's user model: target positions a second of whole steps, reading included."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from mmrec.build import assemble
from mmrec.config import load_config
from mmrec.training.distributed import ALONE
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import train_step
from mmrec.training.train import wrap


def main() -> None:
    prepared, out, settings_file = (Path(argument) for argument in sys.argv[1:4])
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    config = load_config(Path(settings["config"]), settings["changes"])
    torch.use_deterministic_algorithms(config.training.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as `train` does
    assembly = assemble(config, prepared)
    optimiser, trained = make_optimiser(assembly.model, config), wrap(assembly, ALONE)
    numbered = list(enumerate(assembly.stream.plan.batches(0)))
    # batches hold histories of like length: take some of every length
    numbered.sort(key=lambda each: int((each[1].stop - each[1].start).sum()))
    step = max(1, len(numbered) // settings["batches"])
    taken = numbered[step // 2 :: step][: settings["batches"]]
    # a kernel is made for every shape at its first use, and an epoch has few shapes
    targets, started = 0, 0.0
    for place, (index, samples) in enumerate([*taken, *taken]):
        if place == len(taken):
            targets, started = 0, time.perf_counter()
        output = train_step(
            trained,
            assembly.stream.prepare(samples, index),
            optimiser,
            None,
            config.training,
        )
        targets += output.num_targets
    figures = {"targets": targets, "seconds": time.perf_counter() - started}
    (out / "speed.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
