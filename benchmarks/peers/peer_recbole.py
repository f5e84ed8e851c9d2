"""RecBole: SASRec by its own loaders and trainer, one training sample a prefix.

Its leave-one-out takes the last event of a user as test: the log it gets ends with the user's first
item once more, which is never scored. The best weights are kept in memory, not in its checkpoints,
which are pickles.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exchange import CoreBudget, Fitted, Task, installed, run_peer
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class LimitReached(Exception):
    """Enough was trained: the budget is spent, or what was to be timed is over."""


def write_log(task: Task, folder: Path) -> None:
    """Training history, validation target, and a stand-in for the test target, of each user."""
    target_of = dict(zip(task.stop_user.tolist(), task.stop_target.tolist(), strict=True))
    with (folder / "task.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, history in zip(task.train_user.tolist(), task.train, strict=True):
            if user in target_of:
                events = [*history.tolist(), target_of[user], int(history[0])]
                for place, item in enumerate(events):
                    file.write(f"{user}\t{item}\t{place}\n")


def make_config(folder: str, settings: dict[str, Any]) -> Config:
    """RecBole's configuration for the log in a folder: leave-one-out, one sample a prefix."""
    return Config(
        model="SASRec",
        dataset="task",
        config_dict={
            **settings,
            "data_path": folder,
            "checkpoint_dir": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "mode": "full",
                "order": "TO",
                "group_by": "user",
            },
            "train_neg_sample_args": None,
            "metrics": ["Recall", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "show_progress": False,
            "log_wandb": False,
        },
    )


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "task").mkdir()
        write_log(task, Path(name) / "task")
        arguments = {
            key: value for key, value in settings.items() if key not in ("threads", "limit_core_s")
        }
        config = make_config(name, arguments)
        init_seed(settings["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, validation, _ = data_preparation(config, dataset)
        model = SASRec(config, train.dataset)
        trainer = Trainer(config, model)
        notes: dict[str, Any] = {"epochs": 0, "best_epoch": 0, "limit": False}
        best: dict[str, Any] = {"score": -np.inf, "weights": None}
        budget = CoreBudget(settings["limit_core_s"])

        def after_epoch(epoch: int, score: float) -> None:
            notes["epochs"] = epoch + 1
            if score > best["score"]:
                best.update(score=score, weights=copy.deepcopy(model.state_dict()))
                notes["best_epoch"] = epoch + 1
            if budget.spent():
                raise LimitReached

        try:
            trainer.fit(train, validation, saved=False, callback_fn=after_epoch)
        except LimitReached:
            notes["limit"] = True
        notes["best_validation_ndcg@10"] = float(best["score"])
        model.load_state_dict(best["weights"])
    model.eval()

    # tokens of a field are numbered in the order met, 0 is the padding
    row_of = np.zeros(task.num_items, dtype=np.int64)
    for token, row in dataset.field2token_id[dataset.iid_field].items():
        if row:
            row_of[int(token)] = row
    trained = np.bincount(np.concatenate(task.train), minlength=task.num_items) > 0
    row_of[~trained] = 0
    length = config["MAX_ITEM_LIST_LENGTH"]
    rows_of_candidates = row_of[task.candidates]
    old = rows_of_candidates > 0

    @torch.no_grad()
    def score(case_rows: np.ndarray) -> np.ndarray:
        items = np.zeros((len(case_rows), length), dtype=np.int64)
        lengths = np.ones(len(case_rows), dtype=np.int64)
        for place, case in enumerate(case_rows):
            history = row_of[task.case[case]]
            history = history[history > 0][-length:]
            items[place, : len(history)] = history
            lengths[place] = max(1, len(history))
        batch = Interaction(
            {
                model.ITEM_SEQ: torch.from_numpy(items),
                model.ITEM_SEQ_LEN: torch.from_numpy(lengths),
            }
        )
        scores = np.full((len(case_rows), len(task.candidates)), np.nan, dtype=np.float32)
        scores[:, old] = model.full_sort_predict(batch).numpy()[:, rows_of_candidates[old]]
        return scores

    return Fitted(score, notes)


if __name__ == "__main__":
    run_peer(fit, installed("recbole", "torch"))
