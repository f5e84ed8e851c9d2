"""What a run would cost, before it starts: `mmrec train --dry-run`.

    settings + prepared folder ─► parameters by part · bytes of the state caches
                               ─► a few real steps on made states ─► memory · time of a step, of all

Nothing is written and no cache is filled: states at a cut are random numbers, as many for an item
as one of a few real ones has. What must be held at least is counted first, so that a run which
cannot fit is told without trying.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import PreparedData
from encoders.tokens import Tokens, masked
from mmrec.build import Assembly, assemble
from mmrec.config import Config
from mmrec.data.batch import batch_loader
from mmrec.data.cache import CacheSpec, StateCache
from mmrec.data.histories import IntArray
from mmrec.data.items import ItemInputs
from mmrec.encoder_builders import EncoderParts
from mmrec.errors import UserError
from mmrec.model import RecommenderModel
from mmrec.model_inputs import ModelInputs
from mmrec.training.distributed import ALONE
from mmrec.training.final import peak_memory
from mmrec.training.optimiser import make_optimiser
from mmrec.training.sharding import left_whole
from mmrec.training.step import train_step
from mmrec.training.train import wrap
from mmrec.training.unfreeze import set_trained

STATE_NUMBERS = {"adamw": 2.0, "sgd": 1.0, "adafactor": 0.0, "adamw8bit": 0.51}
"""fp32 numbers a trained parameter that each optimiser keeps; adafactor's rows are next to none,
adamw8bit's are two bytes and two scales a block of 256."""
SHARING_RANKS = (2, 4, 8)
"""Numbers of ranks whose share is told where parameters are shared."""
MOST_RANKS = 1024
PROBE_ITEMS = 32
"""Items encoded to see how long a cache takes to fill."""


@dataclass(frozen=True)
class CacheForecast:
    """The state cache of one modality.

    Attributes:
        tokens: states an item.
        width: of a state.
        dtype: that states are kept in.
        bytes_an_item: on disk.
        size_bytes: of all items.
        fill_seconds: to make it where nothing of it is there yet.
    """

    tokens: int
    width: int
    dtype: str
    bytes_an_item: int
    size_bytes: int
    fill_seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a run would cost.

    Attributes:
        parameters: trainable and frozen, by part.
        caches: by modality; those that train from raw media have none.
        steps_an_epoch, epochs, steps: of the whole run.
        step_seconds: median of the steps tried, with what it takes to read their batches.
        frozen_step_seconds: of a step while contents stand still; None where they never do.
        held_bytes: parameters, their gradients, the optimiser's state and the bank, of a process
            that has all of them.
        shared_bytes: the same of each of a number of ranks that share them; empty where
            training.sharding is none.
        peak_bytes: most that the process held while it tried.
        available_bytes: memory of the device.
        total_seconds: filling caches and all steps; looks at validation come on top.
    """

    parameters: Mapping[str, Mapping[Literal["trainable", "frozen"], int]]
    caches: Mapping[str, CacheForecast]
    steps_an_epoch: int
    epochs: int
    steps: int
    step_seconds: float
    frozen_step_seconds: float | None
    held_bytes: int
    shared_bytes: Mapping[int, int]
    peak_bytes: int
    available_bytes: int
    total_seconds: float


class MadeStates:
    """Stands where a state cache would.

    Args:
        masks: (P, T) bool, of items that were encoded.
        width: W of a state.
    """

    def __init__(self, masks: Tensor, width: int) -> None:
        self.masks, self.width = masks, width

    def read(self, item_index: IntArray) -> Tokens:
        """(M, T, W) random states of M items, each as many as an encoded item has."""
        mask = self.masks[torch.from_numpy(item_index) % len(self.masks)]
        return masked(torch.randn(*mask.shape, self.width), mask)


def forecast(config: Config, data_folder: Path, *, num_steps: int = 3) -> Forecast:
    """Tries a run and says what the whole of it would cost.

    Args:
        config: complete settings.
        data_folder: a prepared folder; nothing is written to it.
        num_steps: timed, after one that warms up.

    Raises:
        ConfigError: a setting does not fit the data.
        UserError: the run does not fit into memory; names settings to change.
    """
    torch.manual_seed(config.training.seed)
    caches: dict[str, CacheForecast] = {}

    def make_source(
        config: Config,
        data: PreparedData,
        parts: Mapping[str, EncoderParts],
        model: RecommenderModel,
        device: torch.device,
    ) -> tuple[ModelInputs, dict[str, str]]:
        specs = {
            name: CacheSpec.of(
                parts[name].encoder,
                parts[name].transform,
                modality=name,
                dtype=config.encoders[name].cache_dtype,
            )
            for name in sorted(model.cached)
        }
        made = {}
        for name, spec in specs.items():
            masks, seconds = _probe(data, name, parts[name], spec, device)
            caches[name] = _forecast_cache(spec, len(data.items), seconds)
            made[name] = cast(StateCache, MadeStates(masks, spec.state_width))
        raw = {name: each.transform for name, each in parts.items() if name not in model.cached}
        return ModelInputs(made, ItemInputs(data, raw) if raw else None), {}

    assembly = assemble(config, data_folder, make_source=make_source)
    held = held_bytes(assembly.model, config, assembly.num_rows)
    available = available_bytes(assembly.device)
    if held > available:
        raise UserError(_too_large(held, available, assembly))
    frozen_epochs = min(config.training.freeze_content_epochs, config.training.max_epochs)
    try:
        step_seconds = _time_steps(assembly, frozen_epochs, num_steps)
        frozen = _time_steps(assembly, 0, num_steps) if frozen_epochs and assembly.source else None
    except torch.OutOfMemoryError:
        raise UserError(_too_large(None, available, assembly)) from None
    peak = peak_memory(assembly.device)
    steps_an_epoch = assembly.stream.num_batches(0)
    steps = config.training.max_steps or config.training.max_epochs * steps_an_epoch
    frozen_steps = min(steps, frozen_epochs * steps_an_epoch) if frozen is not None else 0
    filling = sum(each.fill_seconds for each in caches.values())
    return Forecast(
        parameters=assembly.model.parameter_counts(),
        caches=caches,
        steps_an_epoch=steps_an_epoch,
        epochs=config.training.max_epochs,
        steps=steps,
        step_seconds=step_seconds,
        frozen_step_seconds=frozen,
        held_bytes=held,
        shared_bytes={
            ranks: held_bytes(assembly.model, config, assembly.num_rows, ranks=ranks)
            for ranks in SHARING_RANKS
            if config.training.sharding == "full"
        },
        peak_bytes=peak.get("peak_device_memory_bytes", peak["peak_memory_bytes"]),
        available_bytes=available,
        total_seconds=filling
        + frozen_steps * (frozen or 0.0)
        + (steps - frozen_steps) * step_seconds,
    )


def held_bytes(model: RecommenderModel, config: Config, num_rows: int, *, ranks: int = 1) -> int:
    """Bytes that each rank of a run holds whatever its batches are: all in fp32.

    Args:
        model: on any device, the meta device too.
        config: its settings.
        num_rows: R, items in training.
        ranks: that share what they can (training.sharding=full); 1 for a process that has all. A
            block is gathered on top as it runs.
    """
    whole = left_whole(model) if ranks > 1 else set()
    numbers = 1 + STATE_NUMBERS[config.training.optimiser]  # the gradient is one
    held = 0.0
    for each in model.parameters():
        share = 1 if each in whole else ranks
        held += each.numel() * (1 + numbers * each.requires_grad) / share
    bank = num_rows * config.model.width if config.model.item != "id" else 0
    return 4 * (math.ceil(held) + bank)


def available_bytes(device: torch.device) -> int:
    """Memory of a device; of a CPU what the machine could still give and this process has.

    Where the system does not say how much is free (others than Linux), all of it.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return free + resident


def _too_large(held: int | None, available: int, assembly: Assembly) -> str:
    """One line that says which setting to change."""
    room = f"{available / 2**30:.1f} GiB"
    if held is None:
        training = assembly.config.training
        return (
            f"a step does not fit into the {room} of {assembly.device}: lower "
            f"training.fresh_items ({training.fresh_items}), training.batch_size "
            f"({training.batch_size}) or data.max_history ({assembly.config.data.max_history}), or "
            "set training.activation_checkpointing=true or training.micro_batches=4"
        )
    if assembly.config.training.sharding == "full":
        held_by = partial(held_bytes, assembly.model, assembly.config, assembly.num_rows)
        ranks = next((n for n in range(2, MOST_RANKS) if held_by(ranks=n) < available), None)
        enough = "no number of ranks is enough" if ranks is None else f"share them among {ranks}"
        least = held_by(ranks=ranks or MOST_RANKS) / 2**30
        return (
            f"parameters, gradients, optimiser and bank need {held / 2**30:.1f} GiB of the {room} "
            f"of {assembly.device}, where a step is tried on one rank: {enough} ({least:.1f} GiB "
            "each, and a block gathered at a time)"
        )
    counts = assembly.model.parameter_counts()
    largest = max(counts, key=lambda name: counts[name]["trainable"])
    return (
        f"parameters, gradients, optimiser and bank need {held / 2**30:.1f} GiB of the {room} of "
        f"{assembly.device}: train less of {largest} (trainable_blocks, or method=lora), or set "
        "training.optimiser=adafactor, or share them among several devices with "
        "training.sharding=full"
    )


def _forecast_cache(spec: CacheSpec, num_items: int, fill_seconds: float) -> CacheForecast:
    return CacheForecast(
        tokens=spec.num_tokens,
        width=spec.state_width,
        dtype=spec.dtype,
        bytes_an_item=spec.row_bytes,
        size_bytes=num_items * spec.row_bytes,
        fill_seconds=fill_seconds,
    )


def _probe(
    data: PreparedData, name: str, parts: EncoderParts, spec: CacheSpec, device: torch.device
) -> tuple[Tensor, float]:
    """Masks (P, T) of a few items that have the medium, and seconds to encode all of those."""
    has = np.flatnonzero(data.items.has(name))
    if not len(has):
        return torch.zeros(1, spec.num_tokens, dtype=torch.bool), 0.0
    chosen = has[np.linspace(0, len(has) - 1, min(PROBE_ITEMS, len(has))).astype(np.int64)]
    inputs = ItemInputs(data, {name: parts.transform})
    parts.encoder.to(device).eval()
    started = time.perf_counter()
    media = inputs.collate(chosen)[name]
    with torch.inference_mode():
        states = parts.encoder.below({key: value.to(device) for key, value in media.items()})
    seconds = (time.perf_counter() - started) * len(has) / len(chosen)
    return states.mask.clone().cpu(), seconds


def _time_steps(assembly: Assembly, epoch: int, num_steps: int) -> float:
    """Median seconds of a step of an epoch, its batch read too; the first is left out."""
    config = assembly.config
    optimiser, trained = make_optimiser(assembly.model, config), wrap(assembly, ALONE)
    set_trained(assembly.model, config, config.training.max_epochs)  # all that will ever train
    bank: Tensor | None = None
    if assembly.source is not None:
        bank = torch.zeros(assembly.num_rows, config.model.width, device=assembly.device)
        bank[:, 0] = 1.0
    loader = iter(batch_loader(assembly.stream, epoch=epoch, first_batch=0, num_workers=0))
    seconds = []
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        batch = next(loader, None)
        if batch is None:
            break
        output = train_step(trained, batch.to(assembly.device), optimiser, bank, config.training)
        float(output.loss)  # waits for the device
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:] or seconds)
