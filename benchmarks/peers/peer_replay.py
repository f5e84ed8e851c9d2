"""RePlay: SASRec of `replay.nn`, trained with Lightning as its MovieLens-1M example does.

The best epoch by recall@10 on validation is kept, seen items left out. Batches are made here, in
the form that its own transforms make: left-padded, the next item as label at every position.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning
import numpy as np
import torch
from exchange import CoreBudget, Fitted, Task, installed, run_peer
from lightning.pytorch.callbacks import EarlyStopping
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from torch.utils.data import DataLoader

Batch = dict[str, Any]


def left_padded(histories: list[np.ndarray], length: int, padding: int) -> torch.Tensor:
    """(B, length) int64: the last items of each history, padding before them."""
    rows = np.full((len(histories), length), padding, dtype=np.int64)
    for row, history in zip(rows, histories, strict=True):
        kept = history[-length:]
        row[length - len(kept) :] = kept
    return torch.from_numpy(rows)


def inputs(histories: list[np.ndarray], length: int, padding: int) -> Batch:
    items = left_padded(histories, length, padding)
    return {"feature_tensors": {"item_id": items}, "padding_mask": items != padding}


def training_batch(histories: list[np.ndarray], length: int, padding: int) -> Batch:
    items = left_padded(histories, length + 1, padding)
    before, after = items[:, :-1].contiguous(), items[:, 1:, None].contiguous()
    return {
        "feature_tensors": {"item_id": before},
        "padding_mask": before != padding,
        "positive_labels": after,
        "target_padding_mask": (after != padding) & (before != padding)[:, :, None],
    }


class Recall(lightning.Callback):
    """Logs recall@10 over the validation batches; what the user has met is no candidate.

    The best weights are kept in memory: checkpoints of RePlay's module are pickles. It also ends
    training where the budget is spent.

    Args:
        budget: of the training.
    """

    def __init__(self, budget: CoreBudget) -> None:
        self.budget, self.curve, self.weights = budget, [], None

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        """Start counting."""
        self.hits, self.total = 0, 0

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count the hits of a batch."""
        scores = torch.nn.functional.pad(outputs["logits"], (0, 1))  # the padding is the last row
        scores.scatter_(1, batch["seen"], -torch.inf)
        shown = scores[:, :-1].topk(10, dim=1).indices
        self.hits += int((shown == batch["target"][:, None]).any(dim=1).sum())
        self.total += len(shown)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Log what was counted, keep the best weights, and stop where the budget is spent."""
        recall = self.hits / max(self.total, 1)
        module.log("recall", recall)
        if recall > max(self.curve, default=-1.0):
            self.weights = copy.deepcopy(module.state_dict())
        self.curve.append(recall)
        trainer.should_stop |= self.budget.spent()


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    lightning.seed_everything(settings["seed"], workers=True)
    known = np.unique(np.concatenate(task.train))
    row_of = np.full(task.num_items, -1)
    row_of[known] = np.arange(len(known))
    padding, length = len(known), settings["max_sequence_length"]

    def rows(histories: list[np.ndarray]) -> list[np.ndarray]:
        """Histories as rows of the item table, items without a row left out."""
        mapped = [row_of[history] for history in histories]
        return [history[history >= 0] for history in mapped]

    schema = TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=settings["embedding_dim"],
                padding_value=padding,
                cardinality=padding,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            )
        ]
    )
    network = SasRec.from_params(
        schema,
        embedding_dim=settings["embedding_dim"],
        num_heads=settings["num_heads"],
        num_blocks=settings["num_blocks"],
        max_sequence_length=length,
        dropout=settings["dropout"],
    )
    module = LightningModule(network, OptimizerFactory(learning_rate=settings["learning_rate"]))
    train = DataLoader(
        [history for history in rows(task.train) if len(history) > 1],
        batch_size=settings["batch_size"],
        shuffle=True,
        collate_fn=lambda batch: training_batch(batch, length, padding),
    )
    asked = row_of[task.stop_target] >= 0
    targets = row_of[task.stop_target][asked]
    histories = [h for h, wanted in zip(rows(task.stop), asked, strict=True) if wanted]
    longest = max(len(history) for history in histories)
    validation = DataLoader(
        list(zip(histories, targets, strict=True)),
        batch_size=settings["batch_size"],
        collate_fn=lambda batch: {
            **inputs([history for history, _ in batch], length, padding),
            "seen": left_padded([history for history, _ in batch], longest, padding),
            "target": torch.tensor([target for _, target in batch]),
        },
    )
    recall = Recall(CoreBudget(settings["limit_core_s"]))
    stopper = EarlyStopping("recall", mode="max", patience=settings["patience"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=settings["epochs"],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        num_sanity_val_steps=0,
        callbacks=[recall, stopper],
    )
    trainer.fit(module, train, validation)
    module.load_state_dict(recall.weights)
    module.eval()

    rows_of_candidates = row_of[task.candidates]
    old = rows_of_candidates >= 0

    @torch.no_grad()
    def score(case_rows: np.ndarray) -> np.ndarray:
        scores = np.full((len(case_rows), len(task.candidates)), np.nan, dtype=np.float32)
        batch = inputs(rows([task.case[row] for row in case_rows]), length, padding)
        logits = module(batch)["logits"].numpy()
        scores[:, old] = logits[:, rows_of_candidates[old]]
        return scores

    notes = {
        "epochs": len(recall.curve),
        "best_epoch": int(np.argmax(recall.curve)) + 1,
        "best_validation_recall@10": max(recall.curve),
        "limit": recall.budget.spent(),
    }
    return Fitted(score, notes)


if __name__ == "__main__":
    run_peer(fit, installed("replay-rec", "torch"))
