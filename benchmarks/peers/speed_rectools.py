"""RecTools' SASRec: target positions a second in its own training loop."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from exchange import read_task
from peer_rectools import table
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


class Clock(Callback):
    """Counts targets and seconds from the end of the warm-up to the end of the last batch."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.targets = warmup, 0
        self.started = self.ended = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock."""
        self.ended = time.perf_counter()
        if batch_idx < self.warmup:
            self.started = self.ended
        else:
            self.targets += int((batch["y"] != 0).sum())


def main() -> None:
    task = read_task(Path(sys.argv[1]))
    settings = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"], workers=True)

    def get_trainer() -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=settings["warmup"] + settings["batches"],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Clock(settings["warmup"])],
        )

    model = SASRecModel(
        item_net_block_types=(IdEmbeddingsItemNet,),
        loss="softmax",
        n_factors=settings["width"],
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        session_max_len=settings["length"],
        batch_size=settings["batch_size"],
        dropout_rate=settings["dropout"],
        get_trainer_func=get_trainer,
    )
    model.fit(Dataset.construct(table(task.train_user, task.train)))
    # the model trains with a copy of the trainer, callbacks included
    clock = next(each for each in model.fit_trainer.callbacks if isinstance(each, Clock))
    figures = {"targets": clock.targets, "seconds": clock.ended - clock.started}
    (Path(sys.argv[2]) / "speed.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
