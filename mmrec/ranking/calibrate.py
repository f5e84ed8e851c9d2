"""Probabilities of the ranker's heads: Platt scaling on validation, and how far it can be trusted.

A probability is told where validation has enough examples of yes and of no. Its error is taken
users apart: fitted on one half of the users, measured on the other, both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmrec.data.ragged import IntArray
from mmrec.evaluation.heads import calibration_error
from mmrec.platt import platt

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
