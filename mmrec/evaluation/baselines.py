"""Baselines without training: what a model has to beat, run in the same evaluation as the model.

    random       a seeded number per user and item
    popularity   events of the item
    item_knn     cosine of co-occurrence, summed over the history
    ease         closed-form linear item-item model
    als          matrix factorisation by alternating least squares
    markov       transitions from the last item, popularity where there is none
    content_knn  zero-shot: cosine to the mean content of the last ten items, by the encoders as
                 they were before any training; it learns nothing of the log, and is the only one
                 that cold items gain by

What they are fitted to, and what reproduces the published figures on ML-1M leave-one-out
(HR@10 / NDCG@10 .1099 / .0544 for EASE, .2144 / .1259 for Markov): popularity, item_knn, ease and
als see a users x items matrix and are asked with its rows, so they are fitted to the *inputs* of
the evaluation, everything a user met before his target, the validation event included for test
targets (`input_histories`). Fitted to the training histories alone EASE has .1084 / .0535 and
popularity .0369 instead of .0363 (.0364 where ties fall luckily). markov learns from the training
histories, as the model does; fitted to the inputs it has .2151 / .1261.
No cold item is in either, so none of these has met one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray, Ragged
from mmrec.evaluation.als import fit_als
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import Scorer, VectorScorer

logger = logging.getLogger(__name__)

NAMES = ("random", "popularity", "item_knn", "ease", "als", "markov", "content_knn")
EASE_REGULARISATION = 500.0
# N x N in double precision is 3.2 GB at this many, and its inverse takes minutes.
MAX_EASE_ITEMS = 20_000
# HR@10 on ML-1M leave-one-out: 10 .081, 20 .073, 50 .072, 100 .069, all .070
NUM_NEIGHBOURS = 20
CONTENT_HISTORY = 10

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Content:
    """What content_knn knows of the items.

    Attributes:
        vectors: (N, V) float32, a content vector an item.
        mask: (N,) True = the item has one.
    """

    vectors: Tensor
    mask: Tensor


def fit_baselines(
    names: Sequence[str],
    cases: Cases,
    *,
    train_users: IntArray,
    train: Ragged,
    content: Content | None = None,
    inputs: Ragged | None = None,
    seed: int = 0,
) -> dict[str, Scorer]:
    """Fits baselines for the cases of one evaluation.

    Args:
        names: which, of `NAMES`; content_knn is left out where there is no content, and ease where
            the catalogue is too large for it, with a line in the log.
        cases: the evaluation; its histories are the inputs.
        train_users: (R,) user of each training history.
        train: R training histories of item_index, oldest to newest, without cold items.
        content: vectors for content_knn.
        inputs: what popularity, item_knn, ease and als are fitted to; None: `input_histories`.
        seed: of `random`, and of the first vectors of `als`.

    Raises:
        ValueError: a name is not known.
    """
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"baseline {min(unknown)!r}: allowed are {', '.join(NAMES)}")
    scorers: dict[str, Scorer] = {}
    if inputs is None:
        inputs = input_histories(cases, train_users=train_users, train=train)
    for name in names:
        if name == "random":
            scorers[name] = RandomScorer(cases, seed)
        elif name == "popularity":
            scorers[name] = PopularityScorer(cases, count_items(inputs, cases.num_items))
        elif name == "item_knn":
            scorers[name] = fit_item_knn(cases, inputs)
        elif name == "ease" and cases.num_items > MAX_EASE_ITEMS:
            logger.warning(
                "ease is left out: %d items, it takes %d at most", cases.num_items, MAX_EASE_ITEMS
            )
        elif name == "ease":
            scorers[name] = fit_ease(cases, inputs)
        elif name == "als":
            scorers[name] = fit_als(cases, inputs, seed=seed)
        elif name == "markov":
            scorers[name] = fit_markov(cases, train)
        elif content is None:
            logger.warning("content_knn is left out: no content vectors")
        else:
            scorers[name] = fit_content_knn(cases, content)
    return scorers


def input_histories(cases: Cases, *, train_users: IntArray, train: Ragged) -> Ragged:
    """Of each user the longest of his training history and the inputs of his cases."""
    users = np.concatenate([train_users, cases.user_index])
    lengths = np.concatenate([train.lengths, cases.history.lengths])
    order = np.lexsort((lengths, users))
    is_last = np.append(np.diff(users[order]) != 0, True) if len(order) else order.astype(bool)
    both = Ragged(
        np.concatenate([train.values, cases.history.values]),
        np.concatenate([train.offsets, cases.history.offsets[1:] + len(train.values)]),
    )
    return both.take(order[is_last])


def count_items(histories: Ragged, num_items: int) -> IntArray:
    """(N,) how often each item occurs."""
    return np.bincount(histories.values, minlength=num_items)


@dataclass(frozen=True)
class RandomScorer:
    """A number in [0, 1) that depends on seed, user and item alone, whatever the tiles."""

    cases: Cases
    seed: int

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) numbers of 24 bits, so that few tie."""
        user = self.cases.user_index[case_rows].astype(np.uint64)[:, None]
        item = self.cases.candidates[candidate_rows].astype(np.uint64)[None, :]
        seed = np.array([self.seed], np.uint64)  # an array wraps around without a warning
        row = _mix(user + seed * np.uint64(0x9E3779B97F4A7C15))
        bits = _mix(row + item) >> np.uint64(40)
        return torch.from_numpy(bits.astype(np.float32) / np.float32(2**24))


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., 2014); wraps around on purpose."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class PopularityScorer:
    """The same list for everyone: items by number of events."""

    cases: Cases
    counts: IntArray

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) counts; float32 is exact up to 16.7 million events an item."""
        own = self.counts[self.cases.candidates[candidate_rows]].astype(np.float32)
        return torch.from_numpy(np.tile(own, (len(case_rows), 1)))


@dataclass(frozen=True)
class ItemItemScorer:
    """The sum, over the distinct items of the history, of their weights for the candidate.

    Attributes:
        cases: whose histories are the input.
        weights: (N, C) from item_index of the history to candidate, sparse by columns or dense.
    """

    cases: Cases
    weights: sparse.csc_array | Float32Array

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) sums."""
        met = _incidence(self.cases.history.take(case_rows), self.cases.num_items)
        product = met @ self.weights[:, candidate_rows]
        dense = product.toarray() if sparse.issparse(product) else product
        return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))


def fit_item_knn(cases: Cases, histories: Ragged) -> ItemItemScorer:
    """Item-item cosine, the twenty nearest of each item (Deshpande and Karypis, 2004).

    s_ij = |users of i and j| / sqrt(|users of i| |users of j|),  i != j
    """
    met = _incidence(histories, cases.num_items)
    norms = np.sqrt(np.maximum(met.sum(axis=0), 1)).astype(np.float32)
    similarity = (met.T @ met).tocsr()
    similarity.setdiag(0)
    rows = np.repeat(np.arange(cases.num_items), np.diff(similarity.indptr))
    similarity.data = similarity.data / (norms[rows] * norms[similarity.indices])
    similarity.eliminate_zeros()
    return ItemItemScorer(cases, _nearest(similarity)[:, cases.candidates].tocsc())


def _nearest(similarity: sparse.csr_array) -> sparse.csr_array:
    """Keeps the highest `NUM_NEIGHBOURS` of each row, of equal ones the first."""
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    order = np.lexsort((similarity.indices, -similarity.data, rows))
    place = np.arange(len(rows)) - similarity.indptr[rows]
    kept = order[place < NUM_NEIGHBOURS]
    return sparse.csr_array(
        (similarity.data[kept], (rows[kept], similarity.indices[kept])), shape=similarity.shape
    )


def fit_ease(cases: Cases, histories: Ragged) -> ItemItemScorer:
    """EASE (Steck, 2019, eq. 8): ridge regression of each item on all others.

        P = (X'X + 500 I)^-1;   B_ij = -P_ij / P_jj,  B_jj = 0

    An item without events has no weight: its score is 0 for everyone.

    Raises:
        ValueError: the catalogue has more than `MAX_EASE_ITEMS` items.
    """
    if cases.num_items > MAX_EASE_ITEMS:
        raise ValueError(f"ease takes at most {MAX_EASE_ITEMS} items, not {cases.num_items}")
    met = _incidence(histories, cases.num_items).astype(np.float64)
    known = np.flatnonzero(met.sum(axis=0))
    gram = (met.T @ met).tocsr()[known][:, known].toarray()
    gram[np.diag_indices_from(gram)] += EASE_REGULARISATION
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(gram))).numpy()
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    full = np.zeros((cases.num_items, cases.num_items), dtype=np.float32)
    full[np.ix_(known, known)] = weights
    return ItemItemScorer(cases, full[:, cases.candidates])


@dataclass(frozen=True)
class MarkovScorer:
    """Transitions from the last item of the history; popularity parts what they leave equal.

    Attributes:
        cases: whose histories are the input.
        transitions: (N, N) counts, row to column, by rows.
        back_off: (N,) float32 in [0, 1/2), grows with popularity: less than one transition.
    """

    cases: Cases
    transitions: sparse.csr_array
    back_off: Float32Array

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) counts of transitions plus back-off."""
        candidates = self.cases.candidates[candidate_rows]
        last = self.cases.history.take(case_rows).tail(1)
        scores = np.tile(self.back_off[candidates], (len(case_rows), 1))
        known = np.flatnonzero(last.lengths)
        scores[known] += self.transitions[last.values][:, candidates].toarray()
        return torch.from_numpy(scores)


def fit_markov(cases: Cases, train: Ragged) -> MarkovScorer:
    """First-order Markov chain: how often b came right after a in the training histories."""
    row, values = train.row_of_value, train.values
    together = row[1:] == row[:-1]
    pairs = (values[:-1][together], values[1:][together])
    ones = np.ones(len(pairs[0]), dtype=np.float32)
    transitions = sparse.coo_array((ones, pairs), shape=(cases.num_items, cases.num_items)).tocsr()
    counts = count_items(train, cases.num_items)
    back_off = (counts / (2 * counts.max(initial=0) + 1)).astype(np.float32)
    return MarkovScorer(cases, transitions, back_off)


def join_content(parts: Sequence[Content]) -> Content:
    """Several modalities as one content: unit vectors side by side, missing parts zero.

    The cosine of two joined vectors is the mean of the modalities' cosines where both items have
    all of them.
    """
    vectors = [
        torch.nn.functional.normalize(part.vectors.float(), dim=1) * part.mask[:, None]
        for part in parts
    ]
    mask = torch.stack([part.mask for part in parts]).any(0)
    return Content(torch.cat(vectors, dim=1), mask)


def fit_content_knn(cases: Cases, content: Content) -> VectorScorer:
    """Cosine between a candidate and the mean unit vector of the last ten items with content.

    Candidates without content score -1, below all others: a dimension says what is missing. A
    user whose history has no content gets a list of ties.
    """
    mask = content.mask.bool()
    unit = torch.nn.functional.normalize(content.vectors.float(), dim=1) * mask[:, None]
    recent = cases.history.keep(mask.numpy()[cases.history.values]).tail(CONTENT_HISTORY)
    sums = torch.zeros(len(cases), unit.shape[1])
    sums.index_add_(0, torch.from_numpy(recent.row_of_value), unit[torch.from_numpy(recent.values)])
    means = torch.nn.functional.normalize(sums, dim=1)
    candidates = torch.from_numpy(cases.candidates)
    missing = -(~mask[candidates]).float()
    return VectorScorer(
        torch.cat([means, torch.ones(len(means), 1)], dim=1),
        torch.cat([unit[candidates], missing[:, None]], dim=1),
    )


def _incidence(histories: Ragged, num_items: int) -> sparse.csr_array:
    """(R, N) float32: 1 where the item occurs in the history, however often."""
    ones = np.ones(len(histories.values), dtype=np.float32)
    shape = (len(histories), num_items)
    # copied: summing duplicates moves indices and offsets in place
    matrix = sparse.csr_array((ones, histories.values, histories.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
