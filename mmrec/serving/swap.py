"""A version of the model beside the one that answers: loaded, checked, and only then put in place.

load ─ follow the database ─ check on probes ─ put in place between two batches ─ check again
                                    └────────── back to the one before ─────────────┘
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import torch

from mmrec.errors import ConfigError, MmrecError
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.recommend import recommend_next
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.second_stage import SecondStage, load_second_stage
from mmrec.serving.answering import follow
from mmrec.serving.database import Database
from mmrec.serving.live import Live

logger = logging.getLogger(__name__)
NUM_PROBES = 16
_UNIT = 1e-3
MOST_READ_AT_START = 50_000
"""Items whose words are read before the first request, in ten seconds or so; of more they are read
when a search first asks for them."""


class CheckFailed(MmrecError):
    """A model that must not answer."""


def load_live(path: Path, data: Path | None, version: str, database: Database) -> Live:
    """A model that is ready to answer.

    Args:
        path: folder of a run or a bundle.
        data: the prepared folder, where it has moved.
        version: its name.
        database: whose added items it takes up; what it has not encoded yet it does now.

    Raises:
        MmrecError: it cannot be loaded, or its answers are wrong.
        DataError: its data cannot be opened.
        DBAPIError: the database does not answer.
    """
    # messages name the version to whoever asks, and no folder of this machine
    retriever = replace(load_retriever(path, data), path=Path(version))
    live = Live(retriever, version, load_second_stage(retriever, path))
    follow(live, database)
    if len(retriever.items.item_ids) <= MOST_READ_AT_START:
        live.read_words()
    check(live.retriever, live.second_stage)
    return live


def check(retriever: Retriever, second_stage: SecondStage | None = None) -> None:
    """Asks a model for the lists of some users, as it will be asked.

    Args:
        retriever: the model.
        second_stage: beside it.

    Raises:
        CheckFailed: vectors that are no unit vectors, lists without items, or scores that are no
            numbers.
    """
    if not len(retriever.items.candidates):
        raise CheckFailed(f"{retriever.path}: has no item that may be listed")
    if not bool(torch.isfinite(retriever.candidate_side).all()):
        raise CheckFailed(f"{retriever.path}: has items whose vectors are not finite")
    probes = [
        retriever.stored_user(row) for row in range(min(NUM_PROBES, len(retriever.users.user_ids)))
    ]
    for probe in [each for each in probes if len(each.history)]:
        user = retriever.user_vectors([probe])[0]
        if not abs(float(user.norm()) - 1) < _UNIT:
            raise CheckFailed(f"{retriever.path}: the vector of a user is no unit vector")
        listed = recommend_next(retriever, probe, 10, user=user, second_stage=second_stage)
        if not all(math.isfinite(each.score) for each in listed):
            raise CheckFailed(f"{retriever.path}: a list has scores that are no numbers")
        unseen = len(retriever.items.candidates) - len(probe.seen)
        if not listed and unseen > 0 and retriever.items.available is None:
            raise CheckFailed(f"{retriever.path}: the list of a user is empty")


def version_folder(models: Path | None, version: str) -> Path:
    """Where a version lies: a folder in --models, nowhere else.

    Raises:
        ConfigError: there is no such folder.
    """
    if models is None:
        raise ConfigError("the service was started without --models, so its model stays")
    folder = (models / version).resolve()
    if folder.parent != models.resolve() or not folder.is_dir():
        known = sorted(each.name for each in models.iterdir() if each.is_dir())[:20]
        raise ConfigError(f"version '{version}': --models has {', '.join(known) or 'none'}")
    return folder
