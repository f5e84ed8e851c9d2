"""Fills a state cache: loads and transforms media in threads while the encoder works.

    stale rows ─ aligned batches ─ threads: load, transform, collate ─► below ─ round ─► cache
                                                                       └► above ─ pooled ─┘

Encoders run in fp32 and eval mode. Where states are to be kept in fp16 and one exceeds what that
keeps well, the whole cache is made again in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.encoder import Encoder, Inputs
from mmrec.data.ahead import load_ahead
from mmrec.data.cache import CacheSpec, StateCache, StateDtype, Status, round_states, row_key
from mmrec.data.items import Broken, ItemInputs
from mmrec.errors import UserError

MAX_FLOAT16 = 3e4
"""Largest state kept in fp16. Its own limit is 65,504, and a new item may exceed the others."""

_COMMIT_BATCHES = 8
"""Batches between two flushes to disk; a killed fill loses at most these."""
_AHEAD = 2
"""Batches a thread has loaded before the encoder asks for them."""

Progress = Callable[[int, int], None]


class CachedEncoder(Encoder, Protocol):
    """An encoder that is an nn.Module, as all of ours are."""

    training: bool

    def train(self, mode: bool = True, /) -> Any:
        """Set training mode."""


@dataclass(frozen=True)
class FillReport:
    """What a fill did. num_items = computed + kept + missing + broken.

    Attributes:
        computed: items encoded now.
        kept: items whose states were already right.
        missing: items without the medium.
        broken: media that could not be used; their items count as lacking it.
    """

    modality: str
    num_items: int
    computed: int
    kept: int
    missing: int
    broken: tuple[Broken, ...]

    def line(self) -> str:
        """One line for the console; names the first broken medium."""
        line = (
            f"{self.modality}: {self.num_items} items, {self.computed} computed, {self.kept} kept, "
            f"{self.missing} without, {len(self.broken)} broken"
        )
        if self.broken:
            line += f" (first: item {self.broken[0].item_id}: {self.broken[0].reason})"
        return line


class ExceedsFloat16(Exception):
    """A state is too large for fp16."""


def fill_cache(
    root: Path,
    inputs: ItemInputs,
    encoder: CachedEncoder,
    modality: str,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 32,
    num_threads: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[StateCache, FillReport]:
    """The filled cache of an encoder's states.

    Args:
        root: folder that holds the caches of a prepared folder.
        inputs: its items, with the encoder's transform under `modality`.
        encoder: in fp32, on `device`.
        modality: the data's name of it, as `vector.clip`.
        dtype: of the states on disk; in place of fp16 it is bf16 where a state exceeds 3e4.
        batch_size: items encoded together.
        num_threads: threads that load and transform.
        device: where the encoder is.
        progress: called with (items done, items to do).

    Raises:
        UserError: the folder cannot be written, or another process is filling it.
        ShardError: a shard does not hold what its index says.
    """
    dtypes: dict[str, tuple[StateDtype, ...]]
    dtypes = {"float32": ("float32",), "float16": ("float16", "bfloat16")}
    for kept in dtypes[dtype]:
        spec = CacheSpec.of(encoder, inputs.transforms[modality], modality=modality, dtype=kept)
        cache = StateCache.open_or_create(root, spec, len(inputs))
        if cache.too_large:
            continue
        try:
            report = fill(
                cache,
                inputs,
                encoder,
                batch_size=batch_size,
                num_threads=num_threads,
                device=device,
                progress=progress,
            )
        except ExceedsFloat16:
            cache.too_large = True
            continue
        return cache, report
    raise AssertionError("bf16 holds what fp32 does")


def fill(
    cache: StateCache,
    inputs: ItemInputs,
    encoder: CachedEncoder,
    *,
    batch_size: int = 32,
    num_threads: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FillReport:
    """Computes every row of a cache whose key is not right; the others are kept.

    Rows are taken in aligned batches: a fill that was killed and taken up again then computes the
    same batches, hence the same bits, as one that was not.

    Raises:
        ExceedsFloat16: the cache is fp16 and a state exceeds 3e4.
        UserError: another process is filling this cache, or a state is not finite.
        ShardError: a shard does not hold what its index says.
    """
    media_state = inputs.media.state
    nothing = np.zeros(0, np.int64)
    with cache.lock():
        if media_state is not None and cache.complete_for == media_state:
            return _report(cache, nothing, [])
        cache.complete_for = None
        keys, has_medium = _wanted(cache.spec, inputs)
        stale = cache.find_stale(keys)
        cache.commit(stale, keys, Status.EMPTY)
        cache.commit(stale[~has_medium[stale]], keys, Status.MISSING)
        stale = stale[has_medium[stale]]

        broken: list[Broken] = []
        written: list[NDArray[np.int64]] = []
        done = 0
        with _evaluating(encoder, device):
            batches = _load(inputs, cache.spec.modality, _align(stale, batch_size), num_threads)
            for number, batch in enumerate(batches, start=1):
                if batch.inputs is not None:
                    _encode(cache, batch, encoder, device)
                    written.append(batch.rows)
                broken += batch.broken
                cache.commit(batch.missing, keys, Status.MISSING)
                if number % _COMMIT_BATCHES == 0:
                    cache.commit(np.concatenate([*written, nothing]), keys, Status.PRESENT)
                    written.clear()
                done += batch.size
                if progress is not None:
                    progress(done, len(stale))
        cache.commit(np.concatenate([*written, nothing]), keys, Status.PRESENT)
        cache.commit([item.item_index for item in broken], keys, Status.BROKEN)
        if not broken:  # a broken medium is tried again each time, and named each time
            cache.complete_for = media_state
        return _report(cache, stale, broken)


@dataclass(frozen=True)
class _Batch:
    """Rows that have a sample and their inputs (None where no row has), and those that have not."""

    size: int
    rows: NDArray[np.int64]
    inputs: Inputs | None
    missing: list[int]
    broken: list[Broken]


def _wanted(spec: CacheSpec, inputs: ItemInputs) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Keys (N, 32) that the rows should have, and (N,) whether the item has the medium."""
    fingerprint = spec.fingerprint
    keys = np.zeros((len(inputs), 32), np.uint8)
    has_medium = np.zeros(len(inputs), np.bool_)
    for row in range(len(inputs)):
        digest = inputs.digest(row, spec.modality)
        keys[row] = np.frombuffer(row_key(fingerprint, digest), np.uint8)
        has_medium[row] = digest is not None
    return keys, has_medium


def _align(stale: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Stale rows in blocks of the fixed grid [0, b), [b, 2b) and so on."""
    if len(stale) == 0:
        return []
    return np.split(stale, np.flatnonzero(np.diff(stale // batch_size)) + 1)


def _load(
    inputs: ItemInputs, modality: str, blocks: list[NDArray[np.int64]], num_threads: int
) -> Iterator[_Batch]:
    """Batches in order, a few loaded ahead by threads."""
    load = partial(_load_batch, inputs, modality)
    return load_ahead(load, blocks, num_threads=max(1, num_threads), ahead=_AHEAD * num_threads)


def _load_batch(inputs: ItemInputs, modality: str, block: NDArray[np.int64]) -> _Batch:
    found = {int(row): inputs.sample(int(row), modality) for row in block}
    broken = [sample for sample in found.values() if isinstance(sample, Broken)]
    missing = [row for row, sample in found.items() if sample is None]
    samples = {
        row: sample
        for row, sample in found.items()
        if sample is not None and not isinstance(sample, Broken)
    }
    collated = inputs.transforms[modality].collate(list(samples.values())) if samples else None
    return _Batch(len(block), np.array(list(samples), np.int64), collated, missing, broken)


def _encode(
    cache: StateCache, batch: _Batch, encoder: CachedEncoder, device: torch.device | str
) -> None:
    """Writes the states and pooled vectors of a batch's rows."""
    assert batch.inputs is not None
    states = encoder.below({name: tensor.to(device) for name, tensor in batch.inputs.items()})
    finite = states.values.isfinite().all(dim=2).all(dim=1).cpu().numpy()
    if not finite.all():
        raise UserError(
            f"state cache {cache.folder}: the {cache.spec.modality} states of row "
            f"{batch.rows[~finite][0]} are not finite: look at that medium, or install the "
            "weights again"
        )
    if cache.spec.dtype == "float16" and float(states.values.abs().max()) > MAX_FLOAT16:
        raise ExceedsFloat16
    states = round_states(states, cache.spec.dtype)
    pooled = encoder.pooled(encoder.above(states)).float() if cache.spec.pooled_width else None
    cache.put(batch.rows, states, pooled)


@contextmanager
def _evaluating(encoder: CachedEncoder, device: torch.device | str) -> Iterator[None]:
    """Eval mode, no gradients and no autocast, whatever the caller was doing."""
    training = encoder.training
    encoder.train(False)
    try:
        kind = torch.device(device).type
        with torch.inference_mode(), torch.autocast(kind, enabled=False):
            yield
    finally:
        encoder.train(training)


def _report(cache: StateCache, stale: NDArray[np.int64], broken: list[Broken]) -> FillReport:
    present = cache.present
    computed = int(present[stale].sum())
    num_present = int(present.sum())
    return FillReport(
        modality=cache.spec.modality,
        num_items=cache.num_items,
        computed=computed,
        kept=num_present - computed,
        missing=cache.num_items - num_present - len(broken),
        broken=tuple(broken),
    )
