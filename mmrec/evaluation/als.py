"""Matrix factorisation of who met what, by alternating least squares.

With p_ui = 1 where user u met item i and 0 elsewhere, and c_ui = 1 + WEIGHT p_ui, it minimises

    sum_ui c_ui (p_ui - x_u . y_i)^2 + REGULARISATION (sum_u |x_u|^2 + sum_i |y_i|^2)

over the users' vectors x and the items' y (Hu, Koren and Volinsky, 2008). One side given, each row
of the other has a closed form (`solve_rows`); the two take turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray, Ragged, offsets_of
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer

# NDCG@10 on validation at 1, 10, 20, 30: MovieLens-100K by time .041, .044, .057, .052;
# MovieLens-1M .0470, .0469 and, at 30, .0465 (at 100 .034); the demo .032, .034 and, at 30, .041
REGULARISATION = 20.0
WIDTH = 64
WEIGHT = 1.0
NUM_ROUNDS = 8  # fifteen give no more
# rows of one block times the longest of them: 64 MiB of vectors at the width above
BLOCK_VALUES = 1 << 18
FIRST_SCALE = 0.01


def fit_als(cases: Cases, histories: Ragged, *, seed: int = 0) -> VectorScorer:
    """Factorises the histories, then solves each case's user from what he met.

    Args:
        cases: the evaluation; a user without history has a list of ties.
        histories: rows of item_index; how often an item occurs in a row does not count.
        seed: of the items' first vectors.

    Returns:
        x . y of each case and candidate; an item that no history holds has 0.
    """
    items = factorise(histories, cases.num_items, seed=seed)
    users = solve_rows(_distinct(cases.history, cases.num_items), items)
    return VectorScorer(users, items[torch.from_numpy(cases.candidates)])


def factorise(
    histories: Ragged,
    num_items: int,
    *,
    seed: int,
    width: int = WIDTH,
    weight: float = WEIGHT,
    regularisation: float = REGULARISATION,
    num_rounds: int = NUM_ROUNDS,
) -> Tensor:
    """(N, width) float32, the items' vectors after as many rounds of users, then items."""
    items_of_user = _distinct(histories, num_items)
    users_of_item = _turned(items_of_user, num_items)
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(num_items, width, generator=generator) * FIRST_SCALE
    items[torch.from_numpy(users_of_item.lengths == 0)] = 0
    for _ in range(num_rounds):
        users = solve_rows(items_of_user, items, weight=weight, regularisation=regularisation)
        items = solve_rows(users_of_item, users, weight=weight, regularisation=regularisation)
    return items


def solve_rows(
    met: Ragged, factors: Tensor, *, weight: float = WEIGHT, regularisation: float = REGULARISATION
) -> Tensor:
    """The best vector of each row, given the other side's (eq. 4 of the paper).

        x = (Y'Y + weight sum_i y_i y_i' + regularisation I)^-1 (1 + weight) sum_i y_i

    with i over what the row met.

    Args:
        met: R rows of distinct rows of `factors`; an empty one has the zero vector.
        factors: (N, W) float32, the other side.
        weight: how much more an event counts than none.
        regularisation: of the squared length of a vector.

    Returns:
        (R, W) float32.
    """
    W = factors.shape[1]
    whole = factors.T @ factors + regularisation * torch.eye(W)
    padded = torch.cat([factors, torch.zeros(1, W)])  # the last row fills short rows up
    solved = torch.zeros(len(met), W)
    for rows, places in _blocks(met, padding=len(factors)):
        own = padded[places]  # (b, L, W)
        left = whole + weight * own.transpose(1, 2) @ own
        right = (1 + weight) * own.sum(1)
        solved[rows] = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(left))[:, :, 0]
    return solved


def _blocks(met: Ragged, *, padding: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that are not empty, the short ones first, with their values filled up: (b,), (b, L)."""
    lengths = met.lengths
    order = np.argsort(lengths, kind="stable")
    start = int(np.searchsorted(lengths[order], 1))
    while start < len(order):
        # as many as fit when all are as long as the last of them
        sizes = lengths[order[start:]] * np.arange(1, len(order) - start + 1)
        end = start + max(1, int(np.searchsorted(sizes, BLOCK_VALUES, side="right")))
        rows = order[start:end]
        places = np.full((len(rows), lengths[rows[-1]]), padding)
        own = met.take(rows)
        places[own.row_of_value, np.arange(len(own.values)) - own.offsets[own.row_of_value]] = (
            own.values
        )
        yield torch.from_numpy(rows), torch.from_numpy(places)
        start = end


def _distinct(histories: Ragged, num_items: int) -> Ragged:
    """Each row's items once, ascending."""
    pairs = np.unique(histories.row_of_value * num_items + histories.values)
    return _ragged(pairs // num_items, pairs % num_items, len(histories))


def _turned(rows: Ragged, num_columns: int) -> Ragged:
    """The rows that hold each value: users of an item from the items of a user."""
    order = np.argsort(rows.values, kind="stable")
    return _ragged(rows.values[order], rows.row_of_value[order], num_columns)


def _ragged(row_of_value: IntArray, values: IntArray, num_rows: int) -> Ragged:
    return Ragged(values, offsets_of(np.bincount(row_of_value, minlength=num_rows)))
