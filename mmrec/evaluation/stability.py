"""What `mmrec stability` found, and its file: RUN/stability.json."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from mmrec.loaded import LoadedRun
from mmrec.retrieval.load import retriever_of

logger = logging.getLogger(__name__)

SCHEMA = 1
STABILITY_FILE = "stability.json"

BySlice = dict[str, float | None]


@dataclass(frozen=True)
class Overlap:
    """Rank-biased overlap of lists, averaged over users and repetitions.

    Attributes:
        mean: over users, then over repetitions (draws of a perturbation, or pairs of runs).
        over_users: standard deviation over users of their means over repetitions; None of one.
        over_repetitions: standard deviation over repetitions of the means over users; None of one.
    """

    mean: float
    over_users: float | None
    over_repetitions: float | None


@dataclass(frozen=True)
class PerturbationRow:
    """What one perturbation does; means over draws, deviations over draws.

    Attributes:
        name: of the perturbation.
        modality: whose media are changed.
        words: what is done, for people.
        num_items: items whose media were changed.
        num_broken: items whose medium could not be used, counted and left out.
        overlap: of lists before and after.
        cosine: mean over the items of that between their contents before and after; None of none.
        ndcg_change: slice -> NDCG@10 after minus before.
        ndcg_deviation: slice -> standard deviation of the change.
    """

    name: str
    modality: str
    words: str
    num_items: int
    num_broken: int
    overlap: Overlap
    cosine: float | None
    ndcg_change: BySlice
    ndcg_deviation: BySlice


@dataclass(frozen=True)
class SeedRun:
    """One of the runs that differ in their seed: NDCG@10 by slice, for the users asked."""

    run: str
    seed: int
    ndcg: BySlice


@dataclass(frozen=True)
class Seeds:
    """How much the seed of training alone changes.

    Attributes:
        runs: the first is the run itself.
        overlap: of the lists of every two runs.
        ndcg: slice -> mean over runs.
        ndcg_deviation: slice -> standard deviation over runs.
    """

    runs: list[SeedRun]
    overlap: Overlap
    ndcg: BySlice
    ndcg_deviation: BySlice


@dataclass(frozen=True)
class Stability:
    """The content of stability.json.

    Attributes:
        schema: of the file.
        data_hash: of the prepared data.
        model_hash: of the model that was asked.
        checkpoint: step of its weights.
        seed: of users, items and draws.
        list_length: K.
        persistence: of the overlap.
        num_draws: of each perturbation.
        num_users: asked.
        num_items: candidates whose media were changed; the others stayed as they are.
        num_candidates: items that are ranked.
        ndcg: slice -> NDCG@10 of the run as it is, for the users asked.
        perturbations: those that the run's modalities allow.
        seeds: None where no other run was given.
    """

    schema: int
    data_hash: str
    model_hash: str
    checkpoint: str
    seed: int
    list_length: int
    persistence: float
    num_draws: int
    num_users: int
    num_items: int
    num_candidates: int
    ndcg: BySlice
    perturbations: list[PerturbationRow]
    seeds: Seeds | None


def read_stability(loaded: LoadedRun) -> Stability | None:
    """What `mmrec stability` found of this very model; None where it was not asked, or of another.

    Such a file is named in a warning and left out of the report.
    """
    path = loaded.run / STABILITY_FILE
    if not path.is_file():
        return None
    again = f"the report leaves it out; run `mmrec stability {loaded.run}` again"
    try:
        found = TypeAdapter(Stability).validate_json(path.read_bytes())
    except ValidationError as error:
        logger.warning("%s: %s; %s", path, error.errors()[0]["msg"], again)
        return None
    if found.schema != SCHEMA or found.model_hash != retriever_of(loaded).model_hash:
        logger.warning("%s: schema %d, of another model; %s", path, found.schema, again)
        return None
    return found
