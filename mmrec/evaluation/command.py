"""`mmrec evaluate`: our model beside the baselines on one split's targets, and the report.

RUN + DATA ─► cases ─► ours, baselines ─► metrics-WHICH.json, ranks-WHICH.parquet
                    └► each medium left out, before training, gap to training, offsets on
                       validation, costs, users' lists, stability.json where there is one
                       ─► report.html, report.json, report.md, scorecard.png
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from mmrec.data.histories import IntArray
from mmrec.errors import UserError
from mmrec.evaluation.ablation import before_training, knock_out, untrained
from mmrec.evaluation.asked import Asked, ask_validation
from mmrec.evaluation.baselines import Content, fit_baselines
from mmrec.evaluation.breakdown import breakdowns
from mmrec.evaluation.confidence import our_reliability
from mmrec.evaluation.cost import costs_of, measure_latency
from mmrec.evaluation.data_facts import data_facts
from mmrec.evaluation.evaluate import (
    Evaluation,
    evaluate_scorers,
    metrics_document,
    write_evaluation,
)
from mmrec.evaluation.exposure import ItemGroups, attribute_groups, event_groups, exposures
from mmrec.evaluation.findings import Findings, OffsetPoint
from mmrec.evaluation.gap import training_gap
from mmrec.evaluation.groups import attribute_breakdowns, check_groups
from mmrec.evaluation.heads import evaluate_heads
from mmrec.evaluation.initial import initial_content
from mmrec.evaluation.item_labels import evaluate_labels
from mmrec.evaluation.lists import ItemTraits, category_shares, users_of_items
from mmrec.evaluation.new_last import NEW_LAST, NewLast, in_lists
from mmrec.evaluation.new_users import new_user_figures
from mmrec.evaluation.protocol import (
    BoolArray,
    Cases,
    Which,
    load_cases,
    protocol_document,
    training_histories,
    training_popularity,
)
from mmrec.evaluation.ranking import Scorer, VectorScorer
from mmrec.evaluation.report import render_report
from mmrec.evaluation.stability import read_stability
from mmrec.evaluation.strips import even_strips, extreme_strips
from mmrec.evaluation.sweep import SHOWN, Sweep, at_costs, sweep_models
from mmrec.evaluation.tail import tail_curve
from mmrec.evaluation.variety import variety_curves
from mmrec.loaded import LoadedRun, load_run, open_source
from mmrec.model_inputs import ModelInputs
from mmrec.ranking.evaluate import evaluate_ranker
from mmrec.training.validate import case_vectors
from mmrec.vectors import item_vectors

logger = logging.getLogger(__name__)


def evaluate_run(
    run: Path,
    *,
    split: Which = "test",
    data: Path | None = None,
    overrides: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Ranks a split's targets with the run's model and its baselines, and writes the figures.

    Args:
        run: a finished run.
        split: whose targets.
        data: the prepared folder where it has moved.
        overrides: `section.field=value` of settings that count in use.
        progress: called with (model, cases done, cases).

    Returns:
        The content of metrics-WHICH.json. For `test`, report.html, report.json, report.md and
        scorecard.png are written as well.

    Raises:
        CheckpointMismatch: the run is not finished, or the data are others.
        ConfigError: an override is not allowed.
        UserError: the split has no targets.
    """
    loaded = load_run(run, data, overrides)
    assert loaded.data is not None and loaded.split is not None
    check_groups(loaded.config.evaluation.groups, loaded.data)
    cases = load_cases(loaded.data, loaded.split, split)
    if not len(cases):
        raise UserError(
            f"split {loaded.split.name} has no {split} targets: protocol none trains on "
            "everything; evaluate a run of another split"
        )
    popularity = training_popularity(loaded.split)
    source = open_source(loaded)
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    ours = VectorScorer(users, items)
    is_new = popularity[cases.candidates] == 0
    scorers: dict[str, Scorer] = {
        "mmrec": in_lists(ours, loaded.config.evaluation.new_last, is_new)
    }
    content = initial_content(loaded, source)
    scorers |= fit_baselines(
        loaded.config.evaluation.baselines,
        cases,
        train_users=loaded.split.train.user_index,
        train=training_histories(loaded.split),
        content=content,
        seed=loaded.config.training.seed,
    )
    traits = item_traits(loaded, content)
    groupings = item_groups(loaded, traits, popularity)
    evaluation = evaluate_scorers(
        scorers,
        cases,
        popularity=popularity,
        traits=traits,
        groupings=[each.shares for each in groupings],
        device=loaded.device,
        progress=progress,
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
    if loaded.config.data.event_share < 1:
        document["event_share"] = loaded.config.data.event_share
    if loaded.config.evaluation.popularity_share < 1:
        document["popularity_share"] = loaded.config.evaluation.popularity_share
    if loaded.config.evaluation.new_boost:
        document["new_boost"] = loaded.config.evaluation.new_boost
    if loaded.config.evaluation.new_last is not None:
        document["new_last"] = loaded.config.evaluation.new_last
    if loaded.config.data.new_users:
        document["new_users"] = new_user_figures(loaded, split, content=content)
    document |= {"heads": evaluate_heads(loaded, split)} if loaded.model.heads else {}
    document |= {"labels": evaluate_labels(loaded, split)} if loaded.model.label_sets else {}
    ranker = evaluate_ranker(loaded, cases)
    document |= {"ranker": ranker} if ranker else {}
    write_evaluation(
        run,
        split,
        evaluation,
        document,
        user_ids=loaded.data.user_ids,
        item_ids=loaded.data.items.item_ids,
    )
    if split == "test":
        findings = find_out(
            loaded,
            source,
            cases,
            ours=ours,
            scorers=scorers,
            evaluation=evaluation,
            popularity=popularity,
            traits=traits,
            groupings=groupings,
            content=content,
        )
        render_report(run, data=loaded.data, findings=findings)
    return document


def find_out(
    loaded: LoadedRun,
    source: ModelInputs | None,
    cases: Cases,
    *,
    ours: VectorScorer,
    scorers: Mapping[str, Scorer],
    evaluation: Evaluation,
    popularity: IntArray,
    traits: ItemTraits,
    groupings: Sequence[ItemGroups],
    content: Content | None,
) -> Findings:
    """Everything that the report shows beside metrics and ranks.

    Args:
        loaded: the run.
        source: its media; None for a model of ids.
        cases: of the test.
        ours: our vectors for them.
        scorers: all models, ours too, made for them.
        evaluation: all models' ranks.
        popularity: (N,) training events of each item.
        traits: of the items.
        groupings: of the items, in the order that exposures were counted by.
        content: vectors of content_knn.
    """
    assert loaded.data is not None and loaded.split is not None
    state, config = loaded.state, loaded.config
    users, items = ours.user_vectors, ours.item_vectors
    own = evaluation.ranks.filter(
        (pl.col("model") == "mmrec") & (pl.col("slice") != "cold_among_cold")
    )
    best, worst = extreme_strips(loaded, cases, users, items, own["rank"].to_numpy())
    events = np.zeros(len(loaded.data.user_ids), dtype=np.int64)
    events[loaded.split.train.user_index] = loaded.split.train.lengths
    tau = float(loaded.model.temperature.detach())
    fresh, asked = untrained(loaded), ask_validation(loaded)
    # lists are re-ranked by contents, as in use; a model of ids has its embeddings for them
    compared = traits.vectors if loaded.content is None else loaded.content
    sweeps = [] if asked is None else validation_sweeps(loaded, asked, popularity, content)
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
    return Findings(
        strips=even_strips(loaded, cases, users, items),
        best=best,
        worst=worst,
        knockout=() if source is None else knock_out(loaded, source, cases, popularity),
        before=None if fresh is None else before_training(fresh, cases, popularity),
        gap=training_gap(loaded),
        breakdowns=[
            *breakdowns(
                evaluation.ranks, popularity=popularity, candidates=cases.candidates, events=events
            ),
            *attribute_breakdowns(evaluation.ranks, loaded.data, config.evaluation.groups),
        ],
        exposures=exposures(
            groupings,
            evaluation.exposures,
            candidates=cases.candidates,
            popularity=popularity,
        ),
        offset_curve=curve,
        chosen_offset=state["offset"] if curve else None,
        warm_cost=config.evaluation.warm_cost if curve else None,
        sweeps=sweeps,
        at_costs=at_costs(
            sweeps,
            {**scorers, **with_new_last(scorers, popularity[cases.candidates] == 0)},
            cases,
            popularity,
            device=loaded.device,
        ),
        popularity_share=config.evaluation.popularity_share,
        tail_curve=() if asked is None else tail_curve(loaded.model, asked, popularity),
        variety_curve=() if asked is None else variety_curves(asked, compared),
        reliability=our_reliability(ours, cases, temperature=tau),
        costs=costs_of(
            state,
            vector_bytes=items.numel() * items.element_size(),
            latency=measure_latency(loaded),
        ),
        facts=data_facts(loaded.data, cases),
        stability=read_stability(loaded),
        diversity_by=traits.vectors_are,
        miscalibration_by=traits.attribute,
    )


def validation_sweeps(
    loaded: LoadedRun, asked: Asked, popularity: IntArray, content: Content | None
) -> list[Sweep]:
    """Cold against warm of every model on validation; nothing where it has no cold targets.

    Lists by score are swept once more with new items last, of models that tell new items apart.
    """
    assert loaded.split is not None
    cases = asked.cases
    if "cold" not in cases.slice:
        return []
    ours, settings = VectorScorer(asked.users, asked.items), loaded.config.evaluation
    is_new = popularity[cases.candidates] == 0
    scorers: dict[str, Scorer] = {"mmrec": in_lists(ours, settings.new_last, is_new)}
    scorers |= fit_baselines(
        loaded.config.evaluation.baselines,
        cases,
        train_users=loaded.split.train.user_index,
        train=training_histories(loaded.split),
        content=content,
        seed=loaded.config.training.seed,
    )
    if loaded.content is not None:
        scorers |= with_new_last(scorers, is_new)
    return sweep_models(scorers, cases, popularity, device=loaded.device)


def with_new_last(scorers: Mapping[str, Scorer], is_new: BoolArray) -> dict[str, Scorer]:
    """Lists with new items last of those models that tell new items apart and list by score."""
    return {
        name + NEW_LAST: NewLast(scorers[name], SHOWN, is_new)
        for name in ("mmrec", "content_knn")
        if name in scorers and not isinstance(scorers[name], NewLast)
    }


def item_traits(loaded: LoadedRun, content: Content | None) -> ItemTraits:
    """What lists are compared by: content from before any training, where the run has media.

    It is the same for every model and no model was trained on it. Where there is none, it is the
    model's own item embeddings, without the items that training never met.
    """
    assert loaded.data is not None
    if content is None:
        embedding = item_vectors(
            loaded.model, None, loaded.item_index_of, num_items=len(loaded.item_ids)
        ).embedding
        vectors, what = embedding, "the model's item embeddings (the run has no media)"
    else:
        vectors = torch.nn.functional.normalize(content.vectors, dim=1) * content.mask[:, None]
        what = "content vectors from before training"
    found = category_shares(loaded.data)
    met_by = None
    if loaded.split is not None:
        met_by = users_of_items(training_histories(loaded.split), len(loaded.item_ids))
    attribute, shares = found or (None, None)
    return ItemTraits(vectors, what, attribute=attribute, shares=shares, met_by=met_by)


def item_groups(loaded: LoadedRun, traits: ItemTraits, popularity: IntArray) -> list[ItemGroups]:
    """How exposure is told: by events, by the categories of lists, by `evaluation.groups`."""
    assert loaded.data is not None
    named = [] if traits.attribute is None else [traits.attribute]
    for name in loaded.config.evaluation.groups:
        whose, _, attribute = name.partition(".")
        named += [attribute] if whose == "items" else []
    by_attribute = [attribute_groups(loaded.data, name) for name in dict.fromkeys(named)]
    return [event_groups(popularity), *by_attribute]
