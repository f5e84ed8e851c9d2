"""`mmrec evaluate`: our model beside the baselines on one split's targets, and the report.

RUN + DATA ─► cases ─► ours, baselines ─► metrics-WHICH.json, ranks-WHICH.parquet
                    └► each modality left out, six users' lists ─► report.html
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrec.build import LoadedRun, ModelInputs, load_run, open_source
from mmrec.data.batch import media_to
from mmrec.data.histories import IntArray
from mmrec.encoder_parts import make_encoder, rebuild_encoder
from mmrec.errors import UserError
from mmrec.evaluation.baselines import Content, fit_baselines, join_content
from mmrec.evaluation.evaluate import (
    evaluate_scorers,
    metrics_document,
    slice_metrics,
    write_evaluation,
)
from mmrec.evaluation.protocol import (
    Cases,
    Which,
    load_cases,
    protocol_document,
    training_histories,
    training_popularity,
)
from mmrec.evaluation.ranking import Scorer, VectorScorer, rank_cases
from mmrec.evaluation.report import KnockoutRow, OffsetPoint, UserStrip, render_report
from mmrec.training.validate import case_vectors

logger = logging.getLogger(__name__)

NUM_STRIPS = 6
STRIP_LENGTH = 8


def evaluate_run(
    run: Path,
    *,
    split: Which = "test",
    data: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Ranks a split's targets with the run's model and its baselines, and writes the figures.

    Args:
        run: a finished run.
        split: whose targets.
        data: the prepared folder where it has moved.
        progress: called with (model, cases done, cases).

    Returns:
        The content of metrics-WHICH.json. For `test`, report.html is written as well.

    Raises:
        CheckpointMismatch: the run is not finished, or the data are others.
        UserError: the split has no targets.
    """
    loaded = load_run(run, data)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, split)
    if not len(cases):
        raise UserError(
            f"split {loaded.split.name} has no {split} targets: protocol none trains on "
            "everything; evaluate a run of another split"
        )
    popularity = training_popularity(loaded.split)
    source = open_source(loaded)
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    scorers: dict[str, Scorer] = {"mmrec": VectorScorer(users, items)}
    scorers |= fit_baselines(
        loaded.config.evaluation.baselines,
        cases,
        train_users=loaded.split.train.user_index,
        train=training_histories(loaded.split),
        content=initial_content(loaded, source),
        seed=loaded.config.training.seed,
    )
    evaluation = evaluate_scorers(
        scorers, cases, popularity=popularity, device=loaded.device, progress=progress
    )
    document = metrics_document(
        evaluation,
        split=loaded.split.name,
        protocol=protocol_document(
            loaded.split,
            split,
            repeats=loaded.data.catalogue.repeats,
            available=cases.availability is not None,
        ),
        data_hash=loaded.data.data_hash,
        checkpoint=f"step {loaded.state['step']}",
        seed=loaded.config.training.seed,
    )
    share = loaded.config.data.user_share
    if share < 1:
        logger.warning("%s trained on a share of %g of the users: no figure to report", run, share)
        document["user_share"] = share
    write_evaluation(
        run,
        split,
        evaluation,
        document,
        user_ids=loaded.data.user_ids,
        item_ids=loaded.data.items.item_ids,
    )
    if split == "test":
        write_report(loaded, source, cases, users, items, popularity)
    return document


def initial_content(loaded: LoadedRun, source: ModelInputs | None) -> Content | None:
    """Vectors for content_knn: what the encoders gave before any training, modality by modality.

    A frozen encoder's are in its cache. One that trained is built anew: with its pretrained
    weights where it has some, else with the random weights of the run's seed.
    """
    if source is None:
        return None
    everything = np.arange(len(loaded.item_ids))
    parts = []
    for cache in source.caches.values():
        mask = torch.from_numpy(cache.present.copy())
        parts.append(Content(cache.pooled(everything), mask))
    for name in () if source.raw is None else source.raw.transforms:
        parts.append(_untrained(loaded, source, name, everything))
    return join_content(parts)


def _untrained(
    loaded: LoadedRun, source: ModelInputs, name: str, item_index: IntArray, tile: int = 128
) -> Content:
    assert source.raw is not None
    config = loaded.config.encoders[name]
    torch.manual_seed(loaded.config.training.seed)
    if config.weights is None:
        encoder = rebuild_encoder(loaded.parts[name].document).encoder
    else:
        encoder = make_encoder(name, config, texts=tuple, vector_width=lambda _: 1).encoder
    encoder = encoder.to(loaded.device).eval()
    transform = source.raw.transforms[name]
    vectors, masks = [], []
    for start in range(0, item_index.shape[0], tile):
        samples = source.raw.samples(item_index[start : start + tile], name)
        inputs = {key: value.to(loaded.device) for key, value in transform.collate(samples).items()}
        with torch.no_grad():
            vectors.append(encoder.pooled(encoder(inputs)).float().cpu())
        masks.append(inputs["present"].cpu())
    return Content(torch.cat(vectors), torch.cat(masks))


@torch.no_grad()
def content_of_subsets(
    loaded: LoadedRun, source: ModelInputs, subsets: Sequence[frozenset[str]], tile: int = 128
) -> list[Tensor]:
    """Content (N, D) of every item with only the modalities of each subset.

    Tokens are made once; what is left out is not given to the fusion at all.
    """
    assert loaded.model.fusion is not None
    loaded.model.eval()
    parts: list[list[Tensor]] = [[] for _ in subsets]
    for start in range(0, len(loaded.item_ids), tile):
        item_index = np.arange(start, min(start + tile, len(loaded.item_ids)))
        tokens = loaded.model.tokens(media_to(source.collate(item_index), loaded.device))
        for part, subset in zip(parts, subsets, strict=True):
            part.append(loaded.model.fusion({k: v for k, v in tokens.items() if k in subset}))
    return [torch.cat(part) for part in parts]


def knock_out(
    loaded: LoadedRun, source: ModelInputs, cases: Cases, popularity: IntArray
) -> list[KnockoutRow]:
    """NDCG@10 by slice with all media, with each modality left out, and with each alone."""
    names = sorted(loaded.parts)
    everything = frozenset(names)
    rows = {"all media": everything}
    if len(names) > 1:
        rows |= {f"without {name}": everything - {name} for name in names}
        if len(names) > 2:
            rows |= {f"{name} alone": frozenset({name}) for name in names}
    result = []
    contents = content_of_subsets(loaded, source, list(rows.values()))
    for name, content in zip(rows, contents, strict=True):
        users, items = case_vectors(loaded.model, cases, content, loaded.item_index_of)
        ranking = rank_cases(VectorScorer(users, items), cases, device=users.device)
        metrics = slice_metrics(ranking, cases, popularity=popularity)
        ndcg = {key: value["ndcg@10"] if value else None for key, value in metrics.items()}
        result.append(KnockoutRow(name, ndcg))
    return result


def write_report(
    loaded: LoadedRun,
    source: ModelInputs | None,
    cases: Cases,
    users: Tensor,
    items: Tensor,
    popularity: IntArray,
) -> Path:
    """Writes RUN/report.html: figures, curves, what each modality is worth, six users' lists."""
    assert loaded.data is not None
    state = loaded.state
    curve = [
        OffsetPoint(
            point["offset"],
            point["warm_ndcg@10"],
            point["cold_ndcg@10"],
            point["warm_hr@10"],
            point["cold_hr@10"],
        )
        for point in state["offset_curve"]
    ]
    parameters: dict[str, str | int | float] = {
        f"parameters of {part}": f"{counts['trainable']:,} trained, {counts['frozen']:,} frozen"
        for part, counts in state["parameters"].items()
    }
    return render_report(
        loaded.run,
        data=loaded.data,
        strips=user_strips(loaded, cases, users, items),
        knockout=knock_out(loaded, source, cases, popularity) if source is not None else (),
        offset_curve=curve,
        chosen_offset=state["offset"] if curve else None,
        warm_cost=loaded.config.evaluation.warm_cost if curve else None,
        facts={
            **parameters,
            "seconds of training": round(state["seconds"]),
            "epochs trained": state["epochs_trained"],
            "steps to the best validation": state["step"],
        },
    )


def user_strips(loaded: LoadedRun, cases: Cases, users: Tensor, items: Tensor) -> list[UserStrip]:
    """What six users met, are recommended, and which cold items score highest for them.

    Users are taken evenly from those with the most kinds of cases, not chosen by success.
    """
    assert loaded.data is not None
    rows_of: dict[int, list[int]] = {}
    for row, user in enumerate(cases.user_index.tolist()):
        rows_of.setdefault(user, []).append(row)
    most = max(len(rows) for rows in rows_of.values())
    pool = [rows for rows in rows_of.values() if len(rows) == most]
    chosen = [pool[i] for i in np.linspace(0, len(pool) - 1, NUM_STRIPS).astype(int)]
    strips = []
    for rows in itertools.islice(chosen, NUM_STRIPS):
        first = rows[0]  # the warm case comes first and has the longest history
        score = (users[first] @ items.T).cpu().numpy()
        column = {int(item): i for i, item in enumerate(cases.candidates)}
        score[[column[int(item)] for item in cases.seen[first] if int(item) in column]] = -np.inf
        unavailable = cases.unavailable(np.array([first]), 0, len(score))
        if unavailable is not None:
            score[unavailable[0]] = -np.inf
        order = [i for i in np.argsort(-score, kind="stable") if np.isfinite(score[i])]
        cold = [i for i in order if cases.candidate_is_cold[i]]
        strips.append(
            UserStrip(
                user_id=loaded.data.user_ids[int(cases.user_index[first])],
                met=cases.history[first][-STRIP_LENGTH:].tolist(),
                recommended=[int(cases.candidates[i]) for i in order[:STRIP_LENGTH]],
                cold=[int(cases.candidates[i]) for i in cold[:STRIP_LENGTH]],
                targets=[int(item) for row in rows for item in cases.targets[row]],
            )
        )
    return strips
