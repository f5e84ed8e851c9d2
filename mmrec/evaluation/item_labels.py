"""What the labels of items are worth that training never saw: its figures on cold items.

    cold items of validation or test: content ─► head ─► probabilities, beside their own labels

The baseline tells each item the commonest labels of training, in that order.

Legend: n items with a label · K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from mmrec.data.item_labels import OTHER, hot
from mmrec.data.ragged import IntArray
from mmrec.evaluation.protocol import Which

if TYPE_CHECKING:
    from mmrec.loaded import LoadedRun

Floats = npt.NDArray[np.float64]
PLACES = (1, 3)
"""K of P@K."""
SIZES = {
    "num_items": "new items with labels",
    "num_labels": "labels that are told",
    "unknown_labels": "other labels of these items",
}
WORDS = {"accuracy": "accuracy", "p@1": "P@1", "p@3": "P@3", "macro_f1": "macro F1"}


def evaluate_labels(loaded: LoadedRun, which: Which) -> dict[str, dict[str, Any]]:
    """Figures of each set of labels on the cold items of validation or test.

    Args:
        loaded: a finished run.
        which: whose items.

    Returns:
        By set num_items, num_labels, unknown_labels (of those items, none that is told) and what
        `category_figures` or `set_figures` gives; nothing for a set that no such item has.
    """
    found: dict[str, dict[str, Any]] = {}
    if not loaded.model.label_sets:
        return found
    assert loaded.data is not None and loaded.split is not None and loaded.content is not None
    roles = loaded.split.items.filter(pl.col("role") == f"cold_{which}")
    rows = roles["item_index"].to_numpy()
    records = [loaded.data.items.record(int(row)).get("attributes", {}) for row in rows]
    warm = loaded.split.items.filter(pl.col("role") == "warm")["num_events"].to_numpy()
    for name, head in loaded.model.label_heads.items():
        spec = loaded.model.label_sets[name]
        if spec.popularity is None:
            codes = [spec.codes(record) for record in records]
        else:  # events of the whole log, which training has not seen
            met = hot(roles["num_events"].to_numpy(), spec.popularity, warm)
            codes = [[int(each)] for each in met]
        kept = [place for place, own in enumerate(codes) if own]
        if not kept:
            continue
        chosen = torch.from_numpy(rows[kept].astype(np.int64)).to(loaded.device)
        with torch.inference_mode():
            told = head.probabilities(loaded.content[chosen]).double().cpu().numpy()
        own_codes = [codes[place] for place in kept]
        if spec.kind == "category":
            figures = category_figures(told, np.array([own[0] for own in own_codes]))
        else:
            wanted = np.zeros(told.shape, np.bool_)
            for row, own in enumerate(own_codes):
                wanted[row, [code for code in own if code != OTHER]] = True
            figures = set_figures(told, wanted, np.array(spec.rates))
        unknown = sum(own.count(OTHER) for own in own_codes)
        sizes = {"num_items": len(kept), "num_labels": len(spec.labels), "unknown_labels": unknown}
        found[name] = {**sizes, **figures}
    return found


def category_figures(told: Floats, wanted: IntArray) -> dict[str, float]:
    """Figures of labels of which an item has one.

    Args:
        told: (n, K) probabilities, the label that is commonest in training first.
        wanted: (n,) place of each item's label, OTHER for one that is not told: always missed.

    Returns:
        accuracy and macro_f1 (the mean over the labels that the items have), each with its
        `_of_majority`.
    """
    labels = np.unique(wanted[wanted != OTHER])
    figures: dict[str, float] = {}
    for name, guess in (("", told.argmax(1)), ("_of_majority", np.zeros(len(wanted), np.int64))):
        figures[f"accuracy{name}"] = float((guess == wanted).mean())
        figures[f"macro_f1{name}"] = _macro_f1(wanted, guess, labels)
    return figures


def set_figures(told: Floats, wanted: npt.NDArray[np.bool_], rates: Floats) -> dict[str, float]:
    """Figures of labels of which an item has any number.

    Args:
        told: (n, K) probabilities, the label that is commonest in training first.
        wanted: (n, K) which an item has; one that has none of those that are told is missed.
        rates: (K,) of training.

    Returns:
        p@1 and p@3, the share of the first that the item has, and macro_f1 (of those above one
        half, the mean over the labels that the items have), each with its `_of_majority`.
    """
    labels = np.flatnonzero(wanted.any(0))
    figures: dict[str, float] = {}
    for name, own in (("", told), ("_of_majority", np.broadcast_to(rates, told.shape))):
        order = np.argsort(-own, axis=1, kind="stable")
        hits = np.take_along_axis(wanted, order, axis=1)
        figures |= {f"p@{k}{name}": float(hits[:, :k].mean()) for k in PLACES}
        figures[f"macro_f1{name}"] = _macro_f1(wanted, own >= 0.5, labels)
    return figures


def _macro_f1(wanted: npt.NDArray[Any], guess: npt.NDArray[Any], labels: IntArray) -> float:
    from sklearn.metrics import f1_score  # a second, which few commands need

    if not len(labels):
        return 0.0
    return float(f1_score(wanted, guess, labels=labels, average="macro", zero_division=0.0))


def labels_lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a set of labels for a person."""
    lines = []
    for name, each in figures.items():
        parts = [
            f"{WORDS[key]} {each[key]:.4f} (majority {each[key + '_of_majority']:.4f})"
            for key in WORDS
            if key in each
        ]
        lines.append(f"{name}: {', '.join(parts)}, {each['num_items']:,} new items")
    return lines


def label_rows(
    figures: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each set of labels with its figures in words; nothing of a model that tells none."""
    found = []
    for name, each in figures.items():
        rows = [(label, f"{each[key]:,}") for key, label in SIZES.items()]
        for key, label in WORDS.items():
            if key in each:
                rows.append((label, f"{each[key]:.4f}"))
                rows.append((f"{label} of the commonest", f"{each[key + '_of_majority']:.4f}"))
        found.append((name, rows))
    return found
