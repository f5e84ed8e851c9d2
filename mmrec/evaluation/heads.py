"""What the heads are worth: their figures on events that training never saw.

    each user: his events from his first target on (to the next part's first target)
    state of all that came before an event, embedding of its item ─► head ─► beside its own label

An event is told as it would be in use, from everything before it; its baselines know as much. They
are events of every type, whether they may be targets of lists or not: a dislike is what a head of
ratings is asked about.

Legend: n examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from mmrec.data.labels import expected, not_met
from mmrec.data.ragged import IntArray, Ragged
from mmrec.data.thinning import ThinnedSplit
from mmrec.data.told import Told, columns_of, join_columns, request_behind, times_before
from mmrec.evaluation.protocol import Which, is_cold_item
from mmrec.vectors import item_vectors, user_vectors

if TYPE_CHECKING:
    from data_prep.shards import History, Split
    from mmrec.data.labels import HeadSpec
    from mmrec.loaded import LoadedRun

NUM_BINS = 10
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The events of a user that are told.

    Attributes:
        history: complete.
        usable: (n,) bool, events that a model is shown.
        places: of the events that are told, ascending, then those before which something was
            shown that he did not meet afterwards.
        items: of both.
        num_events: how many places are of events.
    """

    history: History
    usable: npt.NDArray[np.bool_]
    places: IntArray
    items: IntArray
    num_events: int

    def before(self, place: int) -> IntArray:
        """Places of what is shown before an event."""
        return np.flatnonzero(self.usable[:place])


def evaluate_heads(loaded: LoadedRun, which: Which) -> dict[str, dict[str, Any]]:
    """Figures of each head on the events of validation or test.

    Args:
        loaded: a finished run.
        which: whose events.

    Returns:
        By head, see `binary_figures` and `value_figures`; nothing for a head without an example.
    """
    model = loaded.model
    if not len(model.heads):
        return {}
    assert loaded.data is not None and loaded.split is not None
    windows = told_windows(loaded.split, which)
    if not windows:
        return {}
    model.eval()
    items = item_vectors(
        model,
        loaded.content,
        loaded.item_index_of,
        num_items=len(loaded.item_ids),
        has=loaded.has,
    ).embedding
    users = _states(loaded, items, windows)
    targets = np.concatenate([each.items for each in windows])
    found = {}
    for name, head in model.heads.items():
        spec = model.head_specs[name]
        of_items = np.zeros(len(loaded.item_ids), np.float32)
        if name in model.value_offsets:
            of_items[loaded.item_index_of] = model.value_offsets[name].cpu().numpy()
        labels, offsets = window_labels(spec, windows, of_items)
        kept = np.flatnonzero(~np.isnan(labels))
        if not len(kept):
            continue
        with torch.inference_mode():
            told = head(
                users[torch.from_numpy(kept).to(users.device)],
                items[torch.from_numpy(targets[kept]).to(users.device)],
                torch.from_numpy(offsets[kept]).to(users.device),
            )
        values, wanted = told.double().cpu().numpy(), labels[kept].astype(np.float64)
        if spec.kind == "binary":
            rate = 1 / (1 + np.exp(-spec.base))
            found[name] = binary_figures(1 / (1 + np.exp(-values)), wanted, rate=rate)
        else:
            found[name] = value_figures(
                values, wanted, mean=spec.base, means=spec.base + offsets[kept]
            )
    return found


def binary_figures(told: Floats, wanted: Floats, *, rate: float) -> dict[str, Any]:
    """Figures of probabilities.

    Args:
        told: (n,) in (0, 1).
        wanted: (n,) 1 or 0.
        rate: of training, which knows nothing of user and item.

    Returns:
        num, positive_share, auc (None where all are alike), log_loss, log_loss_of_rate, accuracy
        (at .5), accuracy_of_majority, calibration_error, confusion [[true no, false yes], [false
        no, true yes]], and precision, recall and f1 of no and yes.
    """
    from sklearn import metrics  # a second, which few commands need

    guess = told >= 0.5
    share = float(wanted.mean())
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        wanted, guess, labels=[0, 1], zero_division=0.0
    )
    constant = np.full(len(wanted), rate)
    return {
        "num": len(wanted),
        "positive_share": share,
        "auc": float(metrics.roc_auc_score(wanted, told)) if 0 < share < 1 else None,
        "log_loss": float(metrics.log_loss(wanted, told, labels=[0, 1])),
        "log_loss_of_rate": float(metrics.log_loss(wanted, constant, labels=[0, 1])),
        "accuracy": float((guess == wanted).mean()),
        "accuracy_of_majority": max(share, 1 - share),
        "calibration_error": calibration_error(told, wanted),
        "confusion": metrics.confusion_matrix(wanted, guess, labels=[0, 1]).tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
    }


def calibration_error(told: Floats, wanted: Floats) -> float:
    """Mean distance of what is told from what happens, over ten parts of like size by what is told.

    Source: Naeini et al., 2015, expected calibration error, with bins of equal mass.
    """
    order = np.argsort(told, kind="stable")
    parts = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    gaps = [len(part) * abs(told[part].mean() - wanted[part].mean()) for part in parts]
    return float(sum(gaps) / len(told))


def value_figures(
    told: Floats, wanted: Floats, *, mean: float, means: npt.NDArray[Any]
) -> dict[str, Any]:
    """Figures of values.

    Args:
        told: (n,).
        wanted: (n,).
        mean: of training.
        means: (n,) of it, the item and the user: the baseline to beat.

    Returns:
        num, rmse, mae, rmse_of_mean, rmse_of_item_and_user_means.
    """

    def rmse(found: Any) -> float:
        return float(np.sqrt(np.mean((found - wanted) ** 2)))

    return {
        "num": len(wanted),
        "rmse": rmse(told),
        "mae": float(np.abs(told - wanted).mean()),
        "rmse_of_mean": rmse(mean),
        "rmse_of_item_and_user_means": rmse(means),
    }


def heads_lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a head for a person."""
    lines = []
    for name, each in figures.items():
        if "rmse" in each:
            lines.append(
                f"{name}: RMSE {each['rmse']:.4f} (means of item and user "
                f"{each['rmse_of_item_and_user_means']:.4f}, mean {each['rmse_of_mean']:.4f}), "
                f"MAE {each['mae']:.4f}, {each['num']:,} events"
            )
        else:
            auc = "-" if each["auc"] is None else f"{each['auc']:.4f}"
            lines.append(
                f"{name}: AUC {auc}, log-loss {each['log_loss']:.4f} (rate of training "
                f"{each['log_loss_of_rate']:.4f}), accuracy {each['accuracy']:.4f} (majority "
                f"{each['accuracy_of_majority']:.4f}), calibration error "
                f"{each['calibration_error']:.4f}, {each['num']:,} events"
            )
    return lines


def told_windows(split: Split, which: Which) -> list[Window]:
    """The events of each user who has targets there."""
    first = {
        name: split.targets(name).group_by("user_index").agg(first=pl.col("position").min())
        for name in ("validation", "test")
    }
    firsts = {name: dict(table.iter_rows()) for name, table in first.items()}
    is_cold = is_cold_item(split)
    row_of_user = {int(user): row for row, user in enumerate(split.full.user_index)}
    found = []
    for user, start in sorted(firsts[which].items()):
        history = split.full.read(row_of_user[user])
        stop = len(history.item_index)
        if which == "validation" and firsts["test"].get(user, -1) > start:
            stop = firsts["test"][user]
        usable = ~is_cold[history.item_index]
        if isinstance(split, ThinnedSplit):
            usable &= split.knows(history)
        events, before = np.arange(start, stop), history.shown_before
        of_shown = not_met(history) & (before >= start) & (before < stop)
        places = np.concatenate([events, before[of_shown]])
        items = np.concatenate([history.item_index[events], history.shown_items[of_shown]])
        found.append(Window(history, usable, places, items, len(events)))
    return found


def _states(loaded: LoadedRun, items: Tensor, windows: list[Window]) -> Tensor:
    """(n, D) states of the users before each event that is told."""
    assert loaded.data is not None
    rows, events, requests, attributes = [], [], [], []
    for each in windows:
        columns = columns_of(each.history)
        of_user = loaded.data.user_attributes[each.history.user_index]
        for place in each.places.tolist():
            before = each.before(place)
            known = columns.take(before)
            known = replace(known, before=times_before(known.time))
            rows.append(each.history.item_index[before])
            events.append(known)
            requests.append(request_behind(known, columns.take(np.array([place]))))
            attributes.append(of_user)
    told = Told(join_columns(events), join_columns(requests), attributes)
    return user_vectors(loaded.model, items, Ragged.from_rows(rows), told)


def window_labels(
    spec: HeadSpec, windows: list[Window], of_items: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(n,) labels, NaN where there is none, and what is expected beside the base."""
    labels, offsets = [], []
    for each in windows:
        own = spec.labels(each.history)
        events = each.places[: each.num_events]
        nothing = np.zeros(len(each.places) - len(events), np.float32)
        labels.append(np.concatenate([own[events], nothing if spec.shown else nothing * np.nan]))
        items = of_items[each.history.item_index]
        told = np.where(each.usable, own, np.nan).astype(np.float32)
        offsets.append(np.concatenate([expected(spec, told, items)[events], nothing]))
    return np.concatenate(labels), np.concatenate(offsets)
