"""What a run costs: parameters, seconds, memory, and how long one recommendation takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmrec.loaded import LoadedRun
from mmrec.retrieval.load import retriever_of
from mmrec.retrieval.recommend import recommend_next

NUM_CALLS = 200
NUM_WARM_UP = 10  # the first calls build the table of item vectors and fill caches
LIST_LENGTH = 10


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: read a history, encode it, score every candidate, list ten.

    Attributes:
        p50_ms: the median.
        p95_ms: one call of twenty takes longer.
        num_calls: calls measured, one after another, each for another user where there are enough.
        num_candidates: scored in each.
        num_threads: of torch.
        device: `cpu` or `cuda`.
    """

    p50_ms: float
    p95_ms: float
    num_calls: int
    num_candidates: int
    num_threads: int
    device: str


@dataclass(frozen=True)
class Costs:
    """What training took and what use takes.

    Attributes:
        parameters: part of the model -> `trainable` and `frozen`.
        training_s: seconds in steps, looks at validation apart.
        steps: trained.
        epochs: trained.
        step_of_model: the best on validation, whose weights are kept.
        peak_memory_bytes: most memory that training held; None where the run does not say.
        peak_device_memory_bytes: the same of the accelerator; None without one.
        vector_bytes: of the candidates' vectors in float32, what an exact index holds.
        latency: of one recommendation.
    """

    parameters: dict[str, dict[str, int]]
    training_s: float
    steps: int
    epochs: int
    step_of_model: int
    peak_memory_bytes: int | None
    peak_device_memory_bytes: int | None
    vector_bytes: int
    latency: Latency | None


def measure_latency(loaded: LoadedRun, *, num_calls: int = NUM_CALLS) -> Latency:
    """Times single recommendations for users with a history, taken evenly, one by one."""
    assert loaded.split is not None
    retriever = retriever_of(loaded)
    users = loaded.split.full.user_index
    places = np.linspace(0, len(users) - 1, NUM_WARM_UP + num_calls).astype(int)
    milliseconds = []
    for user in users[places].tolist():
        started = time.perf_counter()
        recommend_next(retriever, retriever.stored_user(user), LIST_LENGTH)
        milliseconds.append(1000 * (time.perf_counter() - started))
    p50, p95 = np.quantile(milliseconds[NUM_WARM_UP:], [0.5, 0.95]).tolist()
    return Latency(
        p50_ms=p50,
        p95_ms=p95,
        num_calls=num_calls,
        num_candidates=len(retriever.items.candidates),
        num_threads=torch.get_num_threads(),
        device=loaded.device.type,
    )


def costs_of(state: Mapping[str, Any], *, vector_bytes: int, latency: Latency | None) -> Costs:
    """Gathers the costs from the state of a finished run."""
    return Costs(
        parameters=state["parameters"],
        training_s=state["seconds"],
        steps=state["steps_trained"],
        epochs=state["epochs_trained"],
        step_of_model=state["step"],
        peak_memory_bytes=state.get("peak_memory_bytes"),
        peak_device_memory_bytes=state.get("peak_device_memory_bytes"),
        vector_bytes=vector_bytes,
        latency=latency,
    )
