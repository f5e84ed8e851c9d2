"""Turns a prepared split into what a peer may see, and a peer's scores into a scorer of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.exchange import Task
from data_prep.shards import PreparedData, Split
from mmrec.build import attribute_fields
from mmrec.config import EncoderConfig
from mmrec.data.fill import fill_cache
from mmrec.data.items import ItemInputs
from mmrec.data.ragged import IntArray, Ragged
from mmrec.encoder_parts import make_encoder
from mmrec.evaluation.baselines import Content, join_content
from mmrec.evaluation.protocol import Cases, Which, load_cases, training_histories

logger = logging.getLogger(__name__)


def make_task(data: PreparedData, split: Split, which: Which, content: Content | None) -> Task:
    """What a peer is told to be asked the cases of a split.

    For `test`, rows to fit are what a user met before the earliest of his test targets; for
    `validation`, the training histories. Test targets stay here.

    Args:
        data: the prepared folder.
        split: one of its splits.
        which: whose cases are scored.
        content: frozen vectors of the items.
    """
    cases, train = load_cases(data, split, which), training_histories(split)
    train_user = split.train.user_index
    stop = cases if which == "validation" else load_cases(data, split, "validation")
    warm = np.flatnonzero([name == "warm" for name in stop.slice])
    fit_user, fit = train_user, train
    if which == "test":
        fit_user, fit = shortest_inputs(cases, train_user, train)
    return Task(
        num_users=len(data.user_ids),
        num_items=len(data.items),
        candidates=cases.candidates,
        train_user=np.array(train_user),
        train=rows_of(train),
        fit_user=np.array(fit_user),
        fit=rows_of(fit),
        stop_user=stop.user_index[warm],
        stop=rows_of(stop.history.take(warm)),
        stop_target=stop.targets.take(warm).values,
        case_user=cases.user_index,
        case=rows_of(cases.history),
        content=None if content is None else masked(content),
    )


def shortest_inputs(cases: Cases, train_users: IntArray, train: Ragged) -> tuple[IntArray, Ragged]:
    """Of each user the shortest input of his cases, or his training history where he has none.

    The shortest ends before the earliest target: a model with a vector a user learns from it
    without seeing what came after any of them.
    """
    users = np.concatenate([train_users, cases.user_index])
    asked = np.repeat([False, True], [len(train_users), len(cases)])
    lengths = np.concatenate([train.lengths, cases.history.lengths])
    order = np.lexsort((lengths, ~asked, users))  # a user's cases first, the shortest first
    is_first = np.append(True, np.diff(users[order]) != 0)
    both = Ragged(
        np.concatenate([train.values, cases.history.values]),
        np.concatenate([train.offsets, cases.history.offsets[1:] + len(train.values)]),
    )
    return users[order][is_first], both.take(order[is_first])


def rows_of(histories: Ragged) -> list[np.ndarray]:
    return [histories[row] for row in range(len(histories))]


def masked(content: Content) -> np.ndarray:
    """(N, W) float32 vectors, zeros where an item has no content."""
    vectors: np.ndarray = (content.vectors.float() * content.mask[:, None]).numpy()
    return vectors


def frozen_content(data: PreparedData, encoders: Mapping[str, Mapping[str, Any]]) -> Content:
    """Pooled vectors of frozen encoders, unit length a modality, side by side, as content_knn's.

    They come from the state cache of the prepared folder, which is filled where it is not.
    """
    parts = []
    for modality, document in encoders.items():
        made = make_encoder(
            modality,
            EncoderConfig.model_validate(document),
            texts=tuple,
            vector_width=lambda _: 1,
            attributes=attribute_fields(data),
        )
        made.encoder.eval().requires_grad_(False)
        inputs = ItemInputs(data, {modality: made.transform})
        cache, report = fill_cache(data.path / "cache", inputs, made.encoder, modality)
        logger.info("%s", report.line())
        everything = np.arange(len(data.items))
        parts.append(Content(cache.pooled(everything), torch.from_numpy(cache.present.copy())))
    return join_content(parts)


@dataclass(frozen=True)
class StoredScores:
    """A peer's scores as a scorer.

    Attributes:
        scores: (U, C) float32, nan where the peer does not know the candidate.
        last: (U,) below every score of the case; what an unknown candidate gets.
    """

    scores: np.ndarray
    last: np.ndarray

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) scores; unknown candidates tie in the last place."""
        block = np.array(self.scores[case_rows, candidate_rows], dtype=np.float32)
        return torch.from_numpy(np.where(np.isnan(block), self.last[case_rows, None], block))


def read_scores(path: Path, cases: Cases) -> StoredScores:
    """A peer's scores, mapped from its file.

    Raises:
        ValueError: their shape is another, or one is infinite.
    """
    scores = np.load(path, mmap_mode="r", allow_pickle=False)
    wanted = (len(cases), len(cases.candidates))
    if scores.shape != wanted or scores.dtype != np.float32:
        raise ValueError(f"scores of {scores.shape} {scores.dtype}, wanted {wanted} float32")
    last = np.empty(len(cases), dtype=np.float32)
    for start in range(0, len(cases), 512):
        block = np.array(scores[start : start + 512])
        if np.isinf(block).any():
            raise ValueError("a score is infinite")
        lowest = np.where(np.isnan(block), np.inf, block).min(axis=1)
        lowest[np.isinf(lowest)] = 0.0  # nothing is known: a list of ties
        last[start : start + 512] = lowest - 1.0 - np.abs(lowest)
    return StoredScores(scores, last)
