"""Platt scaling: a score becomes a probability."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def platt(logits: Floats, labels: Floats) -> tuple[float, float]:
    """Slope and intercept of the likeliest sigmoid(slope z + intercept).

    A yes counts as (n_yes + 1) / (n_yes + 2) of one, a no as 1 / (n_no + 2): where scores part the
    two without a mistake, a few hundred examples are no reason to tell a probability of 1.
    Source: Platt, Probabilistic outputs for support vector machines, 1999, section 2.2.

    Args:
        logits: (n,).
        labels: (n,) 1 or 0, some of each.
    """
    from sklearn.linear_model import LogisticRegression  # a second, which few commands need

    yes, no = float((labels == 1).sum()), float((labels == 0).sum())
    wanted = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    both = np.concatenate([logits, logits])[:, None]
    of_each = np.repeat([1, 0], len(logits))
    fitted = LogisticRegression(C=np.inf).fit(both, of_each, np.concatenate([wanted, 1 - wanted]))
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
