"""How far states of two sets of media are apart: a classifier's AUC, and the kernel's MMD.

    states (n, W) and (m, W) ─► figure, limit

The classifier finds one direction in which the sides differ, however little else moves; the kernel
says how much of all that tells items apart is which side they are from.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmrec.drift.two_samples import CHANCE, FloatArray, Gap, Z

AUC_LIMIT = 0.6
"""A classifier that picks the new one of two items no more often than this knows no real gap."""
SHARE_LIMIT = 0.02
"""Of the variance of all states: Cohen's small effect is .01, a medium one .06."""

NUM_FOLDS = 5
NUM_PERMUTATIONS = 999
MOST_OF_A_KERNEL = 2000
"""Items a side: a kernel of 4,000 by 4,000 takes 64 MB, and as much again a few times over."""
REGULARISATION = 0.01
"""Inverse strength of the classifier's: hundreds of channels of dozens of items are learnt by heart
otherwise."""


def classifier_gap(earlier: FloatArray, new: FloatArray, *, seed: int = 0) -> Gap:
    """Classifier two-sample test: how well a logistic regression tells the two sides apart.

    The figure is the AUC on items that the classifier has not seen, the mean over five folds: .5
    where nothing tells them apart, 1 where everything does. Its standard error is that of Hanley
    and McNeil ("The meaning and use of the area under a ROC curve", Radiology 143, 1982, equation
    1), which knows nothing of the folds: near .5 the figure of two halves spreads by 1.3 to 1.5
    times as much, which the limit has room for. Source of the test: Lopez-Paz and Oquab,
    "Revisiting Classifier Two-Sample Tests", ICLR 2017.

    Args:
        earlier: (n, W) states, n at least `FEWEST`.
        new: (m, W) likewise.
        seed: of the folds.
    """
    states = np.concatenate([earlier, new]).astype(np.float64)
    is_new = np.repeat([0, 1], [len(earlier), len(new)])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=REGULARISATION, max_iter=1000, class_weight="balanced"),
    )
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    auc = float(cross_val_score(classifier, states, is_new, cv=folds, scoring="roc_auc").mean())
    error = _auc_error(auc, len(earlier), len(new))
    interval = max(auc - 1.96 * error, 0.0), min(auc + 1.96 * error, 1.0)
    # of no gap: the error of a high AUC is small, and it is chance that is asked about
    chance = _auc_error(0.5, len(earlier), len(new))
    return Gap(auc, min(AUC_LIMIT + Z * chance, 0.99), interval)


def _auc_error(auc: float, num_earlier: int, num_new: int) -> float:
    n, m = num_earlier, num_new
    both_new = auc / (2 - auc)
    both_earlier = 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (both_new - auc**2) + (n - 1) * (both_earlier - auc**2)
    return math.sqrt(variance / (n * m))


def kernel_gap(earlier: FloatArray, new: FloatArray, *, seed: int = 0) -> Gap:
    """Maximum mean discrepancy: how much of the variance of all states the two sides explain.

    The figure is MMD² / 4 over the variance in the space of a Gaussian kernel, whose width is the
    median distance: 0 where the sides are alike, 1 where each is one point of its own. MMD² is the
    unbiased estimate (Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3), so
    that the figure of two halves of one set lies around 0. The p-value is the share of random
    divisions, the given one among them, that are as far apart.

    Args:
        earlier: (n, W) states, n at least 2; of more than 2,000 as many are drawn.
        new: (m, W) likewise.
        seed: of the divisions.
    """
    random = np.random.default_rng((seed, 1))
    earlier, new = (_choose(side, random) for side in (earlier, new))
    kernel, variance = _gaussian_kernel(np.concatenate([earlier, new]))
    n, m = len(earlier), len(new)
    sides = np.zeros((n + m, NUM_PERMUTATIONS + 1), np.float32)
    sides[:n, 0] = 1
    for column in range(1, NUM_PERMUTATIONS + 1):
        sides[random.permutation(n + m)[:n], column] = 1
    shares = _squared_mmd(kernel, sides) / (4 * variance)
    figure, by_chance = float(shares[0]), shares[1:]
    limit = max(SHARE_LIMIT, float(np.quantile(by_chance, 1 - CHANCE)))
    # as far apart but for rounding: the same division may come up again
    as_far = int((by_chance >= figure - 1e-9).sum())
    return Gap(figure, limit, p_value=(1 + as_far) / (1 + NUM_PERMUTATIONS))


def _choose(states: FloatArray, random: np.random.Generator) -> FloatArray:
    if len(states) <= MOST_OF_A_KERNEL:
        return states
    return states[random.choice(len(states), MOST_OF_A_KERNEL, replace=False)]


def _gaussian_kernel(states: FloatArray) -> tuple[FloatArray, float]:
    """The kernel (R, R) float32 with a diagonal of 0, and the variance in its space."""
    states = states.astype(np.float32)
    states = states - states.mean(0)
    squares = (states**2).sum(1)
    distances = squares[:, None] + squares - 2 * states @ states.T
    np.fill_diagonal(distances, 0)
    np.maximum(distances, 0, out=distances)
    median = float(np.median(distances[np.triu_indices(len(states), 1)]))
    kernel = np.exp(-distances / max(median, 1e-12))
    np.fill_diagonal(kernel, 0)
    num_pairs = len(states) * (len(states) - 1)
    return kernel, max(1 - float(kernel.sum(dtype=np.float64)) / num_pairs, 1e-12)


def _squared_mmd(kernel: FloatArray, sides: FloatArray) -> FloatArray:
    """Unbiased MMD² of each of P divisions; sides (R, P) is 1 for the items of one side."""
    n = float(sides[:, 0].sum())
    m = len(sides) - n
    rows = kernel.sum(1, dtype=np.float64)
    within = (sides * (kernel @ sides)).sum(0, dtype=np.float64)
    across = rows @ sides - within
    others = rows.sum() - 2 * across - within
    found: FloatArray = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    return found
