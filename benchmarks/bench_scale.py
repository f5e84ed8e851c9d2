"""What a step costs as the catalogue grows: time and memory at 1e4, 1e5 and 1e6 items.

States at the cut are made (16 tokens of 384 channels an item, of the step's items alone: those of
the others wait on disk), M = 512 items a step, 32 histories of 50 events, width 64, bf16. The loss
compares every item, or 8,192 that are drawn. A slope is what ten times the items cost: 1 as much as
before, 10 ten times as much. Memory is what a model's steps add to the process, each size in a
process of its own. About five minutes on two quiet cores; no bars.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from measure import arguments, peak_gb, report, seconds_of

from encoders.tokens import Tokens
from fusion.item import LatentFusion
from fusion.projection import Modality
from mmrec.config import Config, parse_config
from mmrec.data.batch import Batch
from mmrec.data.draws import draw_candidates, draw_fresh
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import rebuild_encoder
from mmrec.network import make_model
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import TrainedModel, train_step

NUM_FRESH, NUM_HISTORIES, NUM_EVENTS, NUM_CANDIDATES = 512, 32, 50, 8192
TOKENS, CHANNELS, WIDTH = 16, 384, 64
LOSSES = ("all", "drawn")


class Step:
    """A model over N items, and one batch for it."""

    def __init__(self, num_items: int, candidates: int | None) -> None:
        torch.manual_seed(0)
        self.config = configure(candidates)
        self.counts = np.random.default_rng(0).geometric(1 / 20, num_items).astype(np.int64)
        self.model = make_model(
            self.config, {"vector.made": parts()}, torch.from_numpy(self.counts)
        )
        self.model.fusion = LatentFusion(
            {"vector.made": Modality(CHANNELS, TOKENS)}, width=WIDTH, num_latents=8, num_layers=1,
            num_heads=4, dropout=0.1, feature_dropout=0.3,
        )  # fmt: skip
        self.trained = TrainedModel(
            self.model, self.config.training, modality_dropout=0.0, repeats_forbidden=True
        )
        self.optimiser = make_optimiser(self.model, self.config)
        self.bank = torch.nn.functional.normalize(torch.randn(num_items, WIDTH), dim=1)
        self.batch = self._batch(num_items, candidates)

    def run(self) -> None:
        """One whole step."""
        train_step(self.trained, self.batch, self.optimiser, self.bank, self.config.training)

    def _batch(self, num_items: int, candidates: int | None) -> Batch:
        random = np.random.default_rng(1)
        events = NUM_HISTORIES * NUM_EVENTS
        met = random.integers(num_items, size=(2, events))
        fresh, weight = draw_fresh(met[1], num_items=num_items, size=NUM_FRESH, random=random)
        rows, log_inclusion = None, None
        if candidates is not None:
            rows, log_inclusion = draw_candidates(
                met[1], fresh, self.counts, size=candidates, random=random
            )
        states = torch.randn(len(fresh), TOKENS, CHANNELS)
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        return Batch(
            epoch=0,
            index=0,
            inputs=torch.from_numpy(met[0]),
            targets=torch.from_numpy(met[1]),
            counted=torch.ones(events, dtype=torch.bool),
            offsets=torch.arange(0, events + 1, NUM_EVENTS),
            fresh=torch.from_numpy(fresh),
            inverse_probability=torch.from_numpy(weight),
            media={"vector.made": Tokens(states, mask)},
            own=(0, len(fresh)),
            num_counted=events,
            candidates=None if rows is None else torch.from_numpy(rows),
            log_inclusion=None if log_inclusion is None else torch.from_numpy(log_inclusion),
        )


def parts() -> EncoderParts:
    """Ready-made states: what a cached encoder is in a step."""
    return rebuild_encoder(
        {"modality": "vector.made", "kind": "vector", "num_tokens": TOKENS, "options": {},
         "vector_width": CHANNELS}
    )  # fmt: skip


def configure(candidates: int | None) -> Config:
    """Settings of a cached run."""
    return parse_config(
        {
            "encoders": {"vector.made": {"kind": "vector"}},
            "model": {"width": WIDTH},
            "training": {"fresh_items": NUM_FRESH, "candidates": candidates, "precision": "bf16"},
        }
    )


def measure(num_items: int, loss: str, rounds: int) -> dict[str, Any]:
    """Seconds of each step after the first, and GB at the peak, of one size."""
    small = Step(1000, None)
    small.run()  # the libraries' own set-up is no part of the model
    del small
    seconds: list[float] = []

    def steps() -> None:
        step = Step(num_items, NUM_CANDIDATES if loss == "drawn" else None)
        step.run()  # the first makes the optimiser's state
        seconds.extend(seconds_of(step.run) for _ in range(rounds))

    memory = peak_gb(steps, beyond=True)
    return {"seconds": seconds, "gb": memory}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        print(json.dumps(measure(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
        return
    given = arguments(__doc__)
    sizes = (1_000, 10_000) if given.small else (10_000, 100_000, 1_000_000)
    setting = {
        "fresh": NUM_FRESH,
        "histories": NUM_HISTORIES,
        "events": NUM_EVENTS,
        "tokens": TOKENS,
        "channels": CHANNELS,
        "width": WIDTH,
        "precision": "bf16",
        "threads": torch.get_num_threads(),
    }
    for loss in LOSSES:
        config = setting | {"compared": NUM_CANDIDATES if loss == "drawn" else "all"}
        found = {}
        for num_items in sizes:
            command = [sys.executable, __file__, "--one", str(num_items), loss, str(given.rounds)]
            ended = subprocess.run(command, check=True, capture_output=True, text=True)
            found[num_items] = json.loads(ended.stdout.splitlines()[-1])
            name, own = f"scale_{loss}_{num_items:.0e}".replace("e+0", "e"), found[num_items]
            told = {"small": given.small, "config": config | {"items": num_items}}
            report(f"{name}_step", own["seconds"], unit="s", **told)
            report(f"{name}_memory", [own["gb"]], unit="GB", **told)
        for few, many in zip(sizes, sizes[1:], strict=False):
            between = {"small": given.small, "config": config | {"items": [few, many]}}
            name = f"scale_{loss}_{few:.0e}_{many:.0e}".replace("e+0", "e")
            tenfold = 1 / math.log10(many / few)
            steps = zip(sorted(found[few]["seconds"]), sorted(found[many]["seconds"]), strict=True)
            slopes = [(more / less) ** tenfold for less, more in steps]
            report(f"{name}_step_slope", slopes, unit="ratio", **between)
            grown = (found[many]["gb"] / max(found[few]["gb"], 1e-3)) ** tenfold
            report(f"{name}_memory_slope", [grown], unit="ratio", **between)


if __name__ == "__main__":
    main()
