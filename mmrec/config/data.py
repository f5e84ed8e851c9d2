"""Settings of the data: which part of a prepared folder, or of several, a run reads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmrec.config.section import Section


class DataConfig(Section):
    """Which part of a prepared folder a run reads."""

    split: str | None = None
    """Name of the split; null where the folder holds one only."""
    max_history: int = Field(200, ge=2)
    """Events a history window holds. 200 is the setting that works on ML-1M."""
    windows: Literal["all", "last"] = "all"
    """Of a longer history: `all` makes every event a target once an epoch, `last` the newest only.
    Figures are means over users, and `all` gives long histories more of the loss."""
    reorder: float = Field(0.0, ge=0, le=1)
    """Share of the histories that training reads in another order, drawn anew each epoch: for
    catalogues whose order says little, such as a shop's or one of films that are all old. Lists are
    asked with histories as they were."""
    num_workers: int = Field(0, ge=0)
    """Processes that prepare batches; any number gives the same batches."""
    shuffle_window: int = Field(16, ge=1)
    """Shards of histories among which samples are permuted."""
    bucket_batches: int = Field(16, ge=1)
    """Batches sorted by length together, so that a batch holds histories of like length."""
    user_share: float = Field(1.0, gt=0, le=1)
    """Share of the users whose histories train and whose targets validation asks for, chosen by a
    hash of their ids; below 1 for cheap searches. A smaller share lies within a larger one. Items
    keep the counts of all training histories."""
    event_share: float = Field(1.0, gt=0, le=1)
    """Share of the events that the run knows of, chosen by a hash of user and item, to see how it
    stands sparse data. A smaller share lies within a larger one; every user keeps two training
    events where he has them. Histories, the inputs of validation and test, items' counts and the
    baselines are of known events alone; targets, candidates and what a list leaves out as seen are
    those of the whole log. `recommend`, `score` and `export` ask with whole histories."""
    new_users: float = Field(0.0, ge=0, lt=1)
    """Share of the users that training never sees, chosen by a hash of their ids: none of their
    events trains, is counted, is a target of validation or test, or is told to a baseline. Instead
    `evaluate` asks one half of them (the other with --split validation) behind their first events,
    see evaluation.first_events."""
    max_broken_media: float = Field(0.05, ge=0, le=1)
    """Share of media that may fail to decode before the run stops."""


class CatalogueConfig(Section):
    """One of several catalogues that a run trains on."""

    weight: float = Field(1.0, gt=0)
    """Passes over its histories in an epoch: 0.5 takes half of them in one epoch and the others in
    the next."""
    split: str | None = None
    """Name of the split; null where the folder holds one only."""
