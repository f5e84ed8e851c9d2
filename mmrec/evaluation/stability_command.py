"""`mmrec stability`: whether lists stay as they are when media change a little, or the seed.

    media of some candidates ─ as they are ─► contents ─► lists of some users ─┐
                             └ perturbed ───► contents ─► lists ───────────────┴► overlap, NDCG
    runs of other seeds ──────────────────────────────────► lists ────────────► overlap, NDCG
                                                                     ─► RUN/stability.json

Test targets are asked, as the report it joins does; nothing is chosen by the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.tokens import Tokens
from mmrec.config import Config
from mmrec.data.items import ItemInputs, Media, PreparedMedia
from mmrec.data.media import media_to
from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.evaluation.evaluate import slice_metrics
from mmrec.evaluation.metrics import FloatArray, user_means
from mmrec.evaluation.overlap import PERSISTENCE, rank_biased_overlap
from mmrec.evaluation.perturbations import PERTURBATIONS, Perturbation, PerturbedMedia
from mmrec.evaluation.protocol import Cases, load_cases, training_popularity
from mmrec.evaluation.ranking import Ranking, VectorScorer, rank_cases
from mmrec.evaluation.report_document import write_document
from mmrec.evaluation.stability import (
    SCHEMA,
    STABILITY_FILE,
    BySlice,
    Overlap,
    PerturbationRow,
    SeedRun,
    Seeds,
    Stability,
)
from mmrec.loaded import LoadedRun, load_run
from mmrec.model_inputs import LiveInputs
from mmrec.retrieval.load import retriever_of
from mmrec.training.validate import case_vectors

LIST_LENGTH = 10
NUM_DRAWS = 5
_TILE = 64

Progress = Callable[[str, int, int], None]


def measure_stability(
    run: Path,
    others: Sequence[Path] = (),
    *,
    data: Path | None = None,
    num_users: int = 1000,
    num_items: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stability:
    """Measures how stable a run's lists are, and writes RUN/stability.json.

    The media of `num_items` items are encoded once as they are, and those of one modality five
    times more for each perturbation; so are the histories of `num_users` users.

    Args:
        run: a finished run.
        others: runs that differ from it in training.seed alone.
        data: the prepared folder where it has moved.
        num_users: test users asked, drawn by the seed; all where there are fewer.
        num_items: candidates whose media are changed, drawn by the seed; all where there are fewer.
        seed: of users, items and draws.
        progress: called with (stage, items done, items).

    Raises:
        CheckpointMismatch: a run is not finished, or the data are others.
        UserError: the split has no test targets, there is nothing to change and no other run, or
            the runs differ in more than their seed.
        ShardError: a shard does not hold what its index says.
    """
    loaded = load_run(run, data)
    assert loaded.data is not None and loaded.split is not None
    runs = [loaded, *(load_run(other, data) for other in others)]
    _check_seeds(runs)
    chosen = {n: each for n, each in PERTURBATIONS.items() if each.modality in loaded.parts}
    if not chosen and not others:
        raise UserError(
            f"{run}: the model reads {', '.join(loaded.parts) or 'no media'}, and only "
            f"{', '.join(each.modality for each in PERTURBATIONS.values())} can be perturbed; name "
            "runs of other seeds to compare"
        )
    cases = load_cases(loaded.data, loaded.split, "test")
    if not len(cases):
        raise UserError(
            f"split {loaded.split.name} has no test targets: protocol none trains on everything; "
            "ask a run of another split"
        )
    random = np.random.default_rng(seed)
    users = _draw(np.unique(cases.user_index), num_users, random)
    cases = cases.take(np.flatnonzero(np.isin(cases.user_index, users)))
    items = _draw(cases.candidates, num_items if chosen else 0, random)
    popularity = training_popularity(loaded.split)
    found = Stability(
        schema=SCHEMA,
        data_hash=loaded.data.data_hash,
        model_hash=retriever_of(loaded).model_hash,
        checkpoint=f"step {loaded.state['step']}",
        seed=seed,
        list_length=LIST_LENGTH,
        persistence=PERSISTENCE,
        num_draws=NUM_DRAWS,
        num_users=len(users),
        num_items=len(items),
        num_candidates=len(cases.candidates),
        ndcg=_ndcg(_rank(loaded, cases, loaded.content), cases, popularity),
        perturbations=list(
            _perturbation_rows(loaded, cases, chosen, items, popularity, seed, progress)
        ),
        seeds=_compare_seeds(runs, cases, popularity) if others else None,
    )
    write_document(run / STABILITY_FILE, asdict(found))
    return found


def perturbed_contents(
    loaded: LoadedRun,
    items: IntArray,
    perturbations: Mapping[str, Perturbation],
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, dict[str, Perturbed]]:
    """Contents of items from their raw media, as they are and with one modality changed.

    Media go the way that `score` takes: door, transform, encoder below the cut, rounding, above.
    Both sides go it, in equal tiles: what is not changed gives equal bits.

    Args:
        loaded: a run that reads media.
        items: (n,) rows.
        perturbations: by name; of modalities that the run reads.
        seed: of the changes.
        progress: called with ("media", items done, items).

    Returns:
        (n, D) before, and by name what each perturbation makes of it.
    """
    assert loaded.data is not None and loaded.model.fusion is not None
    media = PreparedMedia(loaded.data)
    asis = {name: _inputs(loaded, media, name) for name in loaded.parts}
    changed = {
        name: [
            _inputs(loaded, PerturbedMedia(media, each, seed, draw), each.modality)
            for draw in range(NUM_DRAWS)
        ]
        for name, each in perturbations.items()
    }
    before: list[Tensor] = []
    after: dict[str, list[list[Tensor]]] = {n: [[] for _ in range(NUM_DRAWS)] for n in changed}
    has: dict[str, list[Tensor]] = {name: [] for name in loaded.parts}
    with torch.no_grad():
        for start in range(0, len(items), _TILE):
            rows = items[start : start + _TILE]
            tokens = {name: _tokens(loaded, asis[name], name, rows) for name in asis}
            before.append(loaded.model.fusion(tokens))
            for name, each in tokens.items():
                has[name].append(each.mask.any(1))
            for name, draws in changed.items():
                modality = perturbations[name].modality
                for parts, inputs in zip(after[name], draws, strict=True):
                    other = {modality: _tokens(loaded, inputs, modality, rows)}
                    parts.append(loaded.model.fusion({**tokens, **other}))
            if progress is not None:
                progress("media", start + len(rows), len(items))
    return torch.cat(before), {
        name: Perturbed(
            contents=[torch.cat(parts) for parts in after[name]],
            has=torch.cat(has[perturbations[name].modality]),
            num_broken=len({broken.item_index for each in draws for broken in each.inputs.broken}),
        )
        for name, draws in changed.items()
    }


@dataclass(frozen=True)
class Perturbed:
    """Contents after a perturbation.

    Attributes:
        contents: (n, D) each, one a draw.
        has: (n,) bool, True where there was something to change.
        num_broken: items whose medium could not be used.
    """

    contents: list[Tensor]
    has: Tensor
    num_broken: int


def _inputs(loaded: LoadedRun, media: Media, modality: str) -> LiveInputs:
    """One modality of media as the model reads new items'."""
    inputs = ItemInputs(media, {modality: loaded.parts[modality].transform})
    return LiveInputs(inputs, loaded.model, loaded.state.get("cache_dtypes", {}))


def _tokens(loaded: LoadedRun, inputs: LiveInputs, modality: str, rows: IntArray) -> Tokens:
    return loaded.model.tokens(media_to(inputs.collate(rows), loaded.device))[modality]


def _perturbation_rows(
    loaded: LoadedRun,
    cases: Cases,
    perturbations: Mapping[str, Perturbation],
    items: IntArray,
    popularity: IntArray,
    seed: int,
    progress: Progress | None,
) -> Iterator[PerturbationRow]:
    if not perturbations:
        return
    assert loaded.content is not None
    place = torch.from_numpy(items).to(loaded.device)

    def rank_with(contents: Tensor) -> Ranking:
        """Ranks the cases where `items` have these contents and the others their own."""
        assert loaded.content is not None
        return _rank(loaded, cases, loaded.content.index_copy(0, place, contents))

    content, changed = perturbed_contents(
        loaded, items, perturbations, seed=seed, progress=progress
    )
    before = rank_with(content)
    ndcg_before = _ndcg(before, cases, popularity)
    for name, found in changed.items():
        overlaps, changes, cosines = [], [], []
        for number, each in enumerate(found.contents, start=1):
            after = rank_with(each)
            overlaps.append(_user_overlaps(before, after, cases))
            ndcg = _ndcg(after, cases, popularity)
            changes.append({s: _minus(ndcg[s], ndcg_before[s]) for s in ndcg})
            cosines += (each * content).sum(1)[found.has].tolist()
            if progress is not None:
                progress(f"lists after {name}", number, NUM_DRAWS)
        change, deviation = _over(changes)
        yield PerturbationRow(
            name=name,
            modality=perturbations[name].modality,
            words=perturbations[name].words,
            num_items=int(found.has.sum()),
            num_broken=found.num_broken,
            overlap=_overlap(overlaps),
            cosine=float(np.mean(cosines)) if cosines else None,
            ndcg_change=change,
            ndcg_deviation=deviation,
        )


def _compare_seeds(runs: Sequence[LoadedRun], cases: Cases, popularity: IntArray) -> Seeds:
    rankings = [_rank(each, cases, each.content) for each in runs]
    figures = [_ndcg(ranking, cases, popularity) for ranking in rankings]
    mean, deviation = _over(figures)
    return Seeds(
        runs=[
            SeedRun(each.run.resolve().name, each.config.training.seed, ndcg)
            for each, ndcg in zip(runs, figures, strict=True)
        ],
        overlap=_overlap([_user_overlaps(*pair, cases) for pair in combinations(rankings, 2)]),
        ndcg=mean,
        ndcg_deviation=deviation,
    )


def _check_seeds(runs: Sequence[LoadedRun]) -> None:
    """Refuses runs that differ in anything but their seed.

    Raises:
        UserError: they do, or two share a seed.
    """
    first, *others = runs
    assert first.data is not None and first.split is not None
    settings = _settings(first.config)
    seeds = {first.config.training.seed: first.run}
    for other in others:
        assert other.data is not None and other.split is not None
        if (other.data.data_hash, other.split.hash) != (first.data.data_hash, first.split.hash):
            raise UserError(
                f"{other.run}: was trained on other data or another split than {first.run}; give "
                "runs that differ in training.seed alone"
            )
        theirs = _settings(other.config)
        for key in {**settings, **theirs}:
            ours, value = settings.get(key), theirs.get(key)
            if ours != value and key not in ("name", "training.seed"):
                raise UserError(
                    f"{other.run}: {key} is {json.dumps(value)}, that of {first.run} is "
                    f"{json.dumps(ours)}; give runs that differ in training.seed alone"
                )
        seed = other.config.training.seed
        if seed in seeds:
            raise UserError(
                f"{other.run}: training.seed is {seed}, as that of {seeds[seed]}; give a run of "
                "another seed"
            )
        seeds[seed] = other.run


def _settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name."""

    def walk(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    return dict(walk(config.model_dump(mode="json"), ""))


def _draw(values: IntArray, count: int, random: np.random.Generator) -> IntArray:
    """At most `count` of the values, ascending."""
    chosen = random.choice(len(values), min(count, len(values)), replace=False)
    return values[np.sort(chosen)]


def _rank(loaded: LoadedRun, cases: Cases, content: Tensor | None) -> Ranking:
    users, items = case_vectors(loaded.model, cases, content, loaded.item_index_of, has=loaded.has)
    scorer = VectorScorer(users, items)
    return rank_cases(scorer, cases, top_k=LIST_LENGTH, device=users.device)


def _ndcg(ranking: Ranking, cases: Cases, popularity: IntArray) -> BySlice:
    metrics = slice_metrics(ranking, cases, popularity=popularity, ks=(LIST_LENGTH,))
    return {name: each[f"ndcg@{LIST_LENGTH}"] if each else None for name, each in metrics.items()}


def _user_overlaps(first: Ranking, second: Ranking, cases: Cases) -> FloatArray:
    """(U,) of each user, the mean over his cases."""
    return user_means(rank_biased_overlap(first.top_items, second.top_items), cases.user_index)


def _overlap(repetitions: Sequence[FloatArray]) -> Overlap:
    values = np.stack(repetitions)  # (R, U)
    return Overlap(
        float(values.mean()), _deviation(values.mean(axis=0)), _deviation(values.mean(axis=1))
    )


def _over(figures: Sequence[BySlice]) -> tuple[BySlice, BySlice]:
    """Mean and standard deviation by slice of several figures."""
    mean: BySlice = {}
    deviation: BySlice = {}
    for name in figures[0]:
        values = np.array([value for each in figures if (value := each[name]) is not None])
        mean[name] = float(values.mean()) if len(values) else None
        deviation[name] = _deviation(values)
    return mean, deviation


def _deviation(values: FloatArray) -> float | None:
    """Standard deviation of a sample; None of fewer than two."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
