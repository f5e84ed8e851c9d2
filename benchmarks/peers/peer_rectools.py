"""RecTools: SASRec, eSASRec (SASRec with LiGR layers) and HSTU, as its tutorials train them.

The best epoch by recall@10 on validation is kept, seen items left out, as in its HSTU tutorial.
HSTU's relative attention to time is off: it would read the instant of the request, which no other
model of the table is told.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from exchange import CoreBudget, Fitted, Task, installed, run_peer
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.utils import leave_one_out_mask

MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "sasrec": (SASRecModel, {}),
    "esasrec": (
        SASRecModel,
        {"transformer_layers_type": LiGRLayers, "use_key_padding_mask": True},
    ),
    "hstu": (HSTUModel, {"relative_time_attention": False}),
}


class Recall(Callback):
    """Logs recall@10 over the validation batches; what the user has met is no candidate.

    It also ends training where the budget is spent.

    Args:
        budget: of the training.
    """

    def __init__(self, budget: CoreBudget) -> None:
        self.budget, self.curve = budget, []

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start counting."""
        self.hits, self.total = 0, 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the hits of a batch."""
        network = module.torch_model
        users = network.encode_sessions(batch, module.item_embs)[:, -1]
        scores = users @ module.item_embs.T
        scores.scatter_(1, batch["x"], -torch.inf)  # the padding, row 0, is among these
        shown = scores.topk(10, dim=1).indices
        self.hits += int((shown == batch["y"]).any(dim=1).sum())
        self.total += len(shown)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log what was counted, and stop where the budget is spent."""
        recall = self.hits / max(self.total, 1)
        self.curve.append(recall)
        module.log("recall", recall)
        trainer.should_stop |= self.budget.spent()


def table(users: np.ndarray, histories: list[np.ndarray]) -> pd.DataFrame:
    """Interactions whose dates count the events of a user, so that their order is exact."""
    lengths = [len(history) for history in histories]
    place = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame(
        {
            Columns.User: np.repeat(users, lengths),
            Columns.Item: np.concatenate(histories),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="s"),
        }
    )


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"], workers=True)
    make, fixed = MODELS[settings["model"]]
    target_of = dict(zip(task.stop_user.tolist(), task.stop_target.tolist(), strict=True))
    histories = [
        np.append(history, target_of[user]) if user in target_of else history
        for user, history in zip(task.train_user.tolist(), task.train, strict=True)
    ]
    folder = tempfile.TemporaryDirectory()
    best = ModelCheckpoint(folder.name, monitor="recall", mode="max", filename="best")
    stopper = EarlyStopping("recall", mode="max", patience=settings["patience"])
    recall = Recall(CoreBudget(settings["limit_core_s"]))

    def get_trainer() -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=settings["epochs"],
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
            callbacks=[recall, best, stopper],
        )

    arguments = {
        key: value
        for key, value in settings.items()
        if key not in ("model", "epochs", "patience", "seed", "threads", "limit_core_s")
    }
    model = make(
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_val_mask_func=leave_one_out_mask,
        get_val_mask_func_kwargs={"val_users": task.stop_user.tolist()},
        get_trainer_func=get_trainer,
        **fixed,
        **arguments,
    )
    model.fit(Dataset.construct(table(task.train_user, histories)))
    trainer = model.fit_trainer
    done = next(c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))
    model.load_weights_from_checkpoint(Path(done.best_model_path))
    # the model trains with a copy of the trainer, callbacks included
    recall = next(c for c in trainer.callbacks if isinstance(c, Recall))
    notes = {
        "epochs": len(recall.curve),
        "best_epoch": int(np.argmax(recall.curve)) + 1,
        "best_validation_recall@10": float(done.best_model_score),
        "limit": recall.budget.spent(),
    }
    folder.cleanup()

    column_of = np.full(task.num_items, -1)
    column_of[task.candidates] = np.arange(len(task.candidates))

    def score(rows: np.ndarray) -> np.ndarray:
        """The whole catalogue's list of each case, by `recommend`, as a matrix."""
        scores = np.full((len(rows), len(task.candidates)), np.nan, dtype=np.float32)
        inputs = table(np.arange(len(rows)), [task.case[row] for row in rows])
        users = np.unique(inputs[Columns.User])
        lists = model.recommend(
            users, Dataset.construct(inputs), k=task.num_items, filter_viewed=False
        )
        columns = column_of[lists[Columns.Item].to_numpy()]
        kept = columns >= 0
        place = lists[Columns.User].to_numpy()[kept], columns[kept]
        scores[place] = lists[Columns.Score].to_numpy()[kept]
        return scores

    return Fitted(score, notes)


if __name__ == "__main__":
    run_peer(fit, installed("rectools", "torch"))
