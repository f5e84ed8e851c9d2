"""RecBole's SASRec: targets a second of its own training loop, which takes one prefix for each.

A quarter of the users stand for all: RecBole lays out every prefix in memory before it starts.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from exchange import read_task
from peer_recbole import LimitReached, make_config, rows_with_targets, write_log
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

SHARE = 4


class TimedSASRec(SASRec):
    """Ends training once enough batches were taken."""

    warmup = batches = seen = targets = 0
    started = ended = 0.0

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Look at the clock: all of the batches before has been paid for."""
        self.ended = time.perf_counter()
        if self.seen == self.warmup:
            self.started = self.ended
        elif self.seen == self.warmup + self.batches:
            raise LimitReached
        self.targets += len(interaction) if self.seen >= self.warmup else 0
        self.seen += 1
        return super().calculate_loss(interaction)


def main() -> None:
    task = read_task(Path(sys.argv[1]))
    settings = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    kept = len(task.train_user) // SHARE
    task = replace(task, train_user=task.train_user[:kept], train=task.train[:kept])
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "task").mkdir()
        write_log(rows_with_targets(task), Path(name) / "task")
        config = make_config(
            "SASRec",
            name,
            {
                "train_neg_sample_args": None,
                "loss_type": "CE",
                "n_layers": settings["blocks"],
                "n_heads": settings["heads"],
                "hidden_size": settings["width"],
                "inner_size": 4 * settings["width"],
                "hidden_dropout_prob": settings["dropout"],
                "attn_dropout_prob": settings["dropout"],
                "MAX_ITEM_LIST_LENGTH": settings["length"],
                "train_batch_size": settings["batch_size"],
            },
        )
        init_seed(settings["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, _, _ = data_preparation(config, dataset)
        model = TimedSASRec(config, train.dataset)
        model.warmup, model.batches = settings["warmup"], settings["batches"]
        try:
            Trainer(config, model).fit(train, None, saved=False)
        except LimitReached:
            pass
    figures = {"targets": model.targets, "seconds": model.ended - model.started}
    (Path(sys.argv[2]) / "speed.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
