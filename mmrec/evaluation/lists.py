"""What the lists look like beside their hits: alike or varied, and as mixed as what the user met.

    lists + vectors of items       ─► diversity@10            a number a case
    lists + who met which item     ─► behaviour_diversity@10  a number a case
    lists + categories             ─► categories@10           a number a case
    lists + histories + categories ─► miscalibration@10       a number a case

All need more than ranks: traits of the items that are the same for every model compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
import torch
from torch import Tensor

from data_prep.shards import PreparedData
from mmrec.data.ragged import IntArray, Ragged
from mmrec.evaluation.metrics import FloatArray

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
LIST_LENGTH = 10
# Steck's alpha: how much of the history's mix is blended into the list's, so that a category that
# no list shows costs a finite amount.
BLEND = 0.01
# A mix over thousands of tags says nothing of ten items, and a user's would no longer be small.
MAX_CATEGORIES = 500
# Who met an item is told by so many users at most: a list of popular items costs as much as they
# were met.
MAX_USERS = 10_000
_TILE = 512


@dataclass(frozen=True)
class ItemTraits:
    """What is known of the items apart from any model's scores.

    Attributes:
        vectors: (N, V) unit vectors, zeros where an item has none.
        vectors_are: in words, what the vectors are.
        attribute: the attribute that categories come from; None where the catalogue has none.
        shares: (N, G) share of each category in an item, rows sum to 1 or, without a category, 0.
        met_by: (N, R) rows of length 1 over the users who met an item in training, or 0.
    """

    vectors: Tensor
    vectors_are: str
    attribute: str | None = None
    shares: sparse.csr_array | None = None
    met_by: sparse.csr_array | None = None


def category_shares(data: PreparedData) -> tuple[str, sparse.csr_array] | None:
    """The first attribute of kind `set`, else of kind `category`, and each item's share of each.

    An item of three genres is a third of each (Steck, 2018). Attributes with fewer than
    2 or more than 500 values are passed over.

    Returns:
        The name and (N, G) shares; None where the catalogue has no such attribute.
    """
    kinds = {name: spec.type for name, spec in data.catalogue.items.attributes.items()}
    names = [name for kind in ("set", "category") for name, own in kinds.items() if own == kind]
    if not names:
        return None
    records = [data.items.record(row).get("attributes", {}) for row in range(len(data.items))]
    for name in names:
        values = [record.get(name) or [] for record in records]
        rows = [[each] if isinstance(each, str) else list(each) for each in values]
        counted = Counter(value for row in rows for value in row)
        if 2 <= len(counted) <= MAX_CATEGORIES:
            return name, _shares(rows, sorted(counted))
        logger.info("attribute %s has %d values: lists are not compared by it", name, len(counted))
    return None


def users_of_items(train: Ragged, num_items: int) -> sparse.csr_array:
    """(N, R) 1 / sqrt(n) where one of an item's n users met it, however often.

    Args:
        train: training histories of item_index; of more than `MAX_USERS` as many, taken evenly.
        num_items: N.
    """
    if len(train) > MAX_USERS:
        train = train.take(np.linspace(0, len(train) - 1, MAX_USERS).astype(np.int64))
    cells = np.unique(train.values * len(train) + train.row_of_value)
    item, user = cells // max(len(train), 1), cells % max(len(train), 1)
    length = np.sqrt(np.bincount(item, minlength=num_items))
    return sparse.csr_array((1 / length[item], (item, user)), shape=(num_items, len(train)))


def _shares(rows: list[list[str]], names: list[str]) -> sparse.csr_array:
    place = {name: column for column, name in enumerate(names)}
    item = [row for row, own in enumerate(rows) for _ in own]
    column = [place[value] for own in rows for value in own]
    share = [1 / len(own) for own in rows for _ in own]
    shape = (len(rows), len(names))
    return sparse.coo_array((share, (item, column)), shape=shape).tocsr()


def case_list_metrics(
    top_items: IntArray, history: Ragged, traits: ItemTraits, *, k: int = LIST_LENGTH
) -> dict[str, FloatArray]:
    """What each list looks like, as far as the traits are known.

    Args:
        top_items: (U, K_max) item_index, best first; -1 where a list is shorter.
        history: U rows of item_index that the lists were made from.
        traits: of the items.
        k: K, how much of a list counts.

    Returns:
        `diversity@K`, `behaviour_diversity@K`, `categories@K`, `miscalibration@K`: (U,) each; nan
        where a list or history has too little to tell.
    """
    shown = top_items[:, :k]
    metrics = {f"diversity@{k}": intra_list_diversity(shown, traits.vectors)}
    if traits.met_by is not None:
        metrics[f"behaviour_diversity@{k}"] = behaviour_diversity(shown, traits.met_by)
    if traits.shares is not None:
        metrics[f"categories@{k}"] = num_categories(shown, traits.shares)
        metrics[f"miscalibration@{k}"] = miscalibration(shown, history, traits.shares)
    return metrics


def intra_list_diversity(shown: IntArray, vectors: Tensor) -> FloatArray:
    """1 - mean cosine over the pairs of a list (Ziegler et al., 2005, as a mean, not a sum).

    With n unit vectors v of a list:  1 - (|sum v|^2 - n) / (n (n - 1)).

    Args:
        shown: (U, K) item_index, -1 where there is none.
        vectors: (N, V) unit vectors, zeros where an item has none: it is left out.

    Returns:
        (U,), nan where fewer than two items of the list have a vector.
    """
    has_vector = (vectors != 0).any(1).cpu().numpy()
    real = (shown >= 0) & has_vector[np.maximum(shown, 0)]
    squared = np.empty(len(shown))
    for start in range(0, len(shown), _TILE):
        rows = slice(start, start + _TILE)
        items = torch.from_numpy(np.maximum(shown[rows], 0)).to(vectors.device)
        weights = torch.from_numpy(real[rows].astype(np.float32)).to(vectors.device)
        total = torch.nn.functional.embedding_bag(
            items, vectors, per_sample_weights=weights, mode="sum"
        )
        squared[rows] = total.double().square().sum(1).cpu().numpy()
    count = real.sum(1)
    pairs = np.where(count > 1, count * (count - 1), np.nan)
    diversity: FloatArray = 1 - (squared - count) / pairs
    return diversity


def behaviour_diversity(shown: IntArray, met_by: sparse.csr_array) -> FloatArray:
    """1 - mean cosine over the pairs of a list, an item being the set of users who met it.

    Two items are alike where the same users met them, whatever they show: what `diversity` cannot
    see. Items that nobody met are left out.

    Args:
        shown: (U, K) item_index, -1 where there is none.
        met_by: (N, R) rows of length 1, or 0.

    Returns:
        (U,), nan where fewer than two items of the list were met.
    """
    was_met = np.diff(met_by.indptr) > 0
    real = (shown >= 0) & was_met[np.maximum(shown, 0)]
    squared = np.empty(len(shown))
    for start in range(0, len(shown), _TILE):
        rows = slice(start, start + _TILE)
        total = _incidence(shown[rows], real[rows], met_by.shape[0]) @ met_by
        squared[rows] = np.asarray(total.multiply(total).sum(axis=1)).ravel()
    count = real.sum(1)
    pairs = np.where(count > 1, count * (count - 1), np.nan)
    diversity: FloatArray = 1 - (squared - count) / pairs
    return diversity


def num_categories(shown: IntArray, shares: sparse.csr_array) -> FloatArray:
    """How many different categories the items of a list have.

    Args:
        shown: (U, K) item_index, -1 where there is none.
        shares: (N, G) share of each category in an item.

    Returns:
        (U,), nan where no item of the list has a category.
    """
    found = np.empty(len(shown))
    for start in range(0, len(shown), _TILE):
        rows = slice(start, start + _TILE)
        total = (_incidence(shown[rows], shown[rows] >= 0, shares.shape[0]) @ shares).tocsr()
        found[rows] = np.diff(total.indptr)
    return np.where(found > 0, found, np.nan)


def exposure_shares(
    top_items: IntArray, shares: sparse.csr_array, *, k: int = LIST_LENGTH
) -> FloatArray:
    """(G,) each group's share of the exposure of all lists; zeros where nothing is shown.

        sum over lists and places p <= K of share(item at p, g) / log2(1 + p), over the sum of all

    Args:
        top_items: (U, K_max) item_index, best first; -1 where a list is shorter.
        shares: (N, G) share of each group in an item.
        k: how much of a list counts.
    """
    shown = top_items[:, :k]
    worth = np.broadcast_to(1 / np.log2(np.arange(2, shown.shape[1] + 2)), shown.shape)
    real = shown >= 0
    of_item = np.bincount(shown[real], weights=worth[real], minlength=shares.shape[0])
    total = of_item.sum()
    return np.asarray(of_item @ shares) / total if total else np.zeros(shares.shape[1])


def _incidence(shown: IntArray, real: BoolArray, num_items: int) -> sparse.csr_array:
    """(b, N) 1 where a list shows an item."""
    offsets = np.concatenate([[0], np.cumsum(real.sum(1))])
    ones = np.ones(offsets[-1])
    return sparse.csr_array((ones, shown[real], offsets), shape=(len(shown), num_items))


def miscalibration(shown: IntArray, history: Ragged, shares: sparse.csr_array) -> FloatArray:
    """How far the mix of categories of a list is from that of the history (Steck, 2018).

        KL = sum_g p(g) log(p(g) / q'(g)),   q' = 0.99 q + 0.01 p     in nats, 0 = the same mix

    p(g) and q(g) are the mean shares of category g over the items met and the items shown; Steck
    may weigh both by recency and place, here all count the same. Items without a category are left
    out.

    Args:
        shown: (U, K) item_index, -1 where there is none.
        history: U rows of item_index.
        shares: (N, G) share of each category in an item.

    Returns:
        (U,), nan where no item of the list or of the history has a category.
    """
    result = np.full(len(shown), np.nan)
    for start in range(0, len(shown), _TILE):
        rows = np.arange(start, min(start + _TILE, len(shown)))
        of_history = _mix(history.take(rows), shares)
        of_list = _mix(Ragged.from_rows([row[row >= 0] for row in shown[rows]]), shares)
        blended = (1 - BLEND) * of_list + BLEND * of_history
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(of_history > 0, of_history * np.log(of_history / blended), 0.0)
        known = (of_history.sum(1) > 0) & (of_list.sum(1) > 0)
        result[rows[known]] = terms.sum(1)[known]
    return result


def _mix(items: Ragged, shares: sparse.csr_array) -> FloatArray:
    """(b, G) mean shares of the items of each row; zeros where none has a category."""
    ones = np.ones(len(items.values))
    met = sparse.csr_array((ones, items.values, items.offsets), (len(items), shares.shape[0]))
    total: FloatArray = (met @ shares).toarray()
    return total / np.maximum(total.sum(1, keepdims=True), 1e-12)
