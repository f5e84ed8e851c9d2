"""RecBole: SASRec, one training sample a prefix, and NeuMF, by its own loaders and trainer.

An epoch of prefixes takes an hour of a core on MovieLens-1M, so that a budget may end within one.
Its leave-one-out takes the last events of a user as validation and test: where the task has none
for it, the log it gets ends with the user's first item once more, which is never scored. The best
weights are kept in memory, not in its checkpoints, which are pickles.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exchange import CoreBudget, Fitted, Task, installed, run_peer
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import NeuMF
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class LimitReached(Exception):
    """Enough was trained: the budget is spent, or what was to be timed is over."""


class BoundedSASRec(SASRec):
    """Ends training at the first batch after its budget is spent; counts the prefixes it took."""

    budget = CoreBudget(float("inf"))
    prefixes = 0

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's loss of a batch; raises LimitReached once the budget is spent."""
        if self.budget.spent():
            raise LimitReached
        self.prefixes += len(interaction)
        return super().calculate_loss(interaction)


def write_log(rows: Iterable[tuple[int, list[int]]], folder: Path) -> None:
    """The events of each user, in their order."""
    with (folder / "task.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, events in rows:
            for place, item in enumerate(events):
                file.write(f"{user}\t{item}\t{place}\n")


def make_config(model: str, folder: str, settings: dict[str, Any]) -> Config:
    """RecBole's configuration for the log in a folder: leave-one-out."""
    ours = ("model", "threads", "limit_core_s")
    return Config(
        model=model,
        dataset="task",
        config_dict={
            **{key: value for key, value in settings.items() if key not in ours},
            "data_path": folder,
            "checkpoint_dir": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "mode": "full",
                "order": "TO",
                "group_by": "user",
            },
            "metrics": ["Recall", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "show_progress": False,
            "log_wandb": False,
        },
    )


def rows_of(dataset: Any, field: str, number: int) -> np.ndarray:
    """(number,) RecBole's row of each of ours, numbered as it met them; 0 = it has none."""
    found = np.zeros(number, dtype=np.int64)
    for token, row in dataset.field2token_id[field].items():
        if row:
            found[int(token)] = row
    return found


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    return {"sasrec": fit_sasrec, "neumf": fit_neumf}[settings["model"]](task, settings)


def rows_with_targets(task: Task) -> Iterator[tuple[int, list[int]]]:
    """Training history, validation target, and a stand-in for the test target, of each user."""
    target_of = dict(zip(task.stop_user.tolist(), task.stop_target.tolist(), strict=True))
    for user, history in zip(task.train_user.tolist(), task.train, strict=True):
        if user in target_of:
            yield user, [*history.tolist(), target_of[user], int(history[0])]


def fit_sasrec(task: Task, settings: dict[str, Any]) -> Fitted:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "task").mkdir()
        write_log(rows_with_targets(task), Path(name) / "task")
        config = make_config("SASRec", name, {**settings, "train_neg_sample_args": None})
        init_seed(settings["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, validation, _ = data_preparation(config, dataset)
        model = BoundedSASRec(config, train.dataset)
        model.budget = CoreBudget(settings["limit_core_s"])
        trainer = Trainer(config, model)
        notes: dict[str, Any] = {"epochs": 0, "best_epoch": 0, "limit": False}
        best: dict[str, Any] = {"score": -np.inf, "weights": None}

        def after_epoch(epoch: float, score: float) -> None:
            """Keep the best weights; RecBole calls it with the number of the epoch, from 0."""
            notes["epochs"] = round(epoch + 1, 2)
            if score > best["score"]:
                best.update(score=score, weights=copy.deepcopy(model.state_dict()))
                notes["best_epoch"] = notes["epochs"]

        try:
            trainer.fit(train, validation, saved=False, callback_fn=after_epoch)
        except LimitReached:
            notes["limit"] = True
            score_then, _ = trainer._valid_epoch(validation)
            after_epoch(model.prefixes / len(train.dataset) - 1, score_then)
        notes["best_validation_ndcg@10"] = float(best["score"])
        model.load_state_dict(best["weights"])
    model.eval()

    row_of = rows_of(dataset, dataset.iid_field, task.num_items)
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


def fit_neumf(task: Task, settings: dict[str, Any]) -> Fitted:
    """Neural collaborative filtering (He et al., 2017): a network over user and item vectors.

    It trains for as many epochs as it is told: validation is part of what it learns from.
    """
    rows = (
        (user, [*events.tolist(), int(events[0]), int(events[0])])
        for user, events in zip(task.fit_user.tolist(), task.fit, strict=True)
        if len(events)
    )
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "task").mkdir()
        write_log(rows, Path(name) / "task")
        config = make_config("NeuMF", name, settings)
        init_seed(settings["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, _, _ = data_preparation(config, dataset)
        model = NeuMF(config, train.dataset)
        Trainer(config, model).fit(train, saved=False)
    model.eval()
    item_row = rows_of(dataset, dataset.iid_field, task.num_items)[task.candidates]
    user_row = rows_of(dataset, dataset.uid_field, task.num_users)
    old = np.flatnonzero(item_row)
    items = torch.from_numpy(item_row[old])

    @torch.no_grad()
    def score(case_rows: np.ndarray) -> np.ndarray:
        scores = np.full((len(case_rows), len(task.candidates)), np.nan, dtype=np.float32)
        for place, user in enumerate(user_row[task.case_user[case_rows]]):
            if user:
                users = torch.full_like(items, int(user))
                scores[place, old] = model(users, items).numpy()
        return scores

    return Fitted(score, {"epochs": settings["epochs"]})


if __name__ == "__main__":
    run_peer(fit, installed("recbole", "torch"))
