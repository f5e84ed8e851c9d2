"""Probabilities of the ranker's heads: Platt scaling on validation, and how far it can be trusted.

A probability is told where validation has enough examples of yes and of no. Its error is taken
users apart: fitted on one half of the users, measured on the other, both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from mmrec.data.ragged import IntArray
from mmrec.evaluation.heads import calibration_error

# Two numbers are fitted; with fewer examples of either kind they would be chance.
LEAST = 20
Floats = npt.NDArray[np.float64]


def refusal(labels: Floats) -> str | None:
    """Why no probability can be told from labels (n,) of 1 and 0; None where one can."""
    yes, no = int((labels == 1).sum()), int((labels == 0).sum())
    if min(yes, no) >= LEAST:
        return None
    return (
        f"validation has {yes} examples of yes and {no} of no, {LEAST} of each are the least; log "
        "what was shown and not taken (interactions.shown of the catalogue file), or other events"
    )


def platt(logits: Floats, labels: Floats) -> tuple[float, float]:
    """Slope and intercept of the likeliest sigmoid(slope z + intercept).

    A yes counts as (n_yes + 1) / (n_yes + 2) of one, a no as 1 / (n_no + 2): where scores part the
    two without a mistake, a few hundred examples are no reason to tell a probability of 1.
    Source: Platt, Probabilistic outputs for support vector machines, 1999, section 2.2.

    Args:
        logits: (n,).
        labels: (n,) 1 or 0, some of each.
    """
    yes, no = float((labels == 1).sum()), float((labels == 0).sum())
    wanted = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    both = np.concatenate([logits, logits])[:, None]
    of_each = np.repeat([1, 0], len(logits))
    fitted = LogisticRegression(C=np.inf).fit(both, of_each, np.concatenate([wanted, 1 - wanted]))
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def calibrate(logits: Floats, labels: Floats, users: IntArray) -> dict[str, Any]:
    """What is kept of a head.

    Args:
        logits: (n,) of examples of validation.
        labels: (n,) 1 or 0, `refusal` of which is None.
        users: (n,) whose they are.

    Returns:
        slope, intercept, num, positive_share, and calibration_error before and after: the expected
        calibration error of the plain sigmoid, and of the scaled one on users it was not fitted to
        (None where a half has examples of one kind only).
    """
    slope, intercept = platt(logits, labels)
    half = np.searchsorted(np.unique(users), users) % 2 == 0
    after = np.full(len(labels), np.nan)
    for part in (half, ~half):
        if len(np.unique(labels[part])) == 2:
            after[~part] = _sigmoid(logits[~part], *platt(logits[part], labels[part]))
    return {
        "slope": slope,
        "intercept": intercept,
        "num": len(labels),
        "positive_share": float(labels.mean()),
        "calibration_error_before": calibration_error(_sigmoid(logits, 1.0, 0.0), labels),
        "calibration_error": None if np.isnan(after).any() else calibration_error(after, labels),
    }


def _sigmoid(logits: Floats, slope: float, intercept: float) -> Floats:
    scaled: Floats = 1 / (1 + np.exp(-(slope * logits + intercept)))
    return scaled
