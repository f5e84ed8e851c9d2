"""The end of a run: RUN/checkpoints/final, which evaluation, export and service read."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.cut import StackedEncoder
from mmrec.build import Assembly
from mmrec.training.calibrate import NewItems, choose_for_new
from mmrec.training.checkpoint import SCHEMA, TrainState, load_model, model_tensors, write_folder
from mmrec.training.complete import fit_completion
from mmrec.training.confidence import fit_confidence
from mmrec.training.distributed import Ranks
from mmrec.training.sharding import look
from mmrec.training.validate import validate


def load_best(run: Path, model: nn.Module, state: TrainState) -> None:
    """Puts the best weights back, where validation has chosen some."""
    if state.best_step is not None:
        load_model(run / "checkpoints" / f"best-{state.best_step:08d}", model)


def write_final(
    run: Path, assembly: Assembly, trained: nn.Module, state: TrainState, ranks: Ranks
) -> None:
    """The weights, what was chosen for items without events, and every item's content.

    Of a sharded model every rank calls it; the first one writes.

    Args:
        run: folder of the run, or of one catalogue in it.
        assembly: the run's parts, or that catalogue's, with the best weights.
        trained: the model with its losses, or what wraps it.
        state: of the end.
        ranks: who trained.
    """
    config = assembly.config
    tensors: dict[str, Any] = {}
    new = NewItems()
    look(trained, lambda: fit_completion(assembly))
    if assembly.validation is not None:
        looked = look(trained, lambda: validate(assembly, precision="fp32"))
        new = look(trained, lambda: choose_for_new(assembly, looked, config.evaluation))
        assembly.model.offset.fill_(new.offset)
        if new.expectation is not None:
            assembly.model.expectation.copy_(new.expectation)
        look(trained, lambda: fit_confidence(assembly, looked))
    content = look(trained, assembly.all_content)
    if content is not None:
        tensors["content"] = {"content": content, "had": _had(assembly)}
    tensors["model"] = model_tensors(assembly.model)
    if not ranks.is_main:
        return
    added = _added(assembly, tensors["model"])
    if added:
        tensors["added"] = added
    write_folder(
        run / "checkpoints" / "final",
        tensors,
        {
            "schema": SCHEMA,
            "step": state.best_step if state.best_step is not None else state.step,
            "steps_trained": state.step,
            "epochs_trained": state.epoch,
            "seconds": round(state.seconds, 3),
            **peak_memory(assembly.device),
            "offset": float(assembly.model.offset),
            "offset_curve": new.curve,
            "expected_popularity_share": new.share,
            "data_hash": assembly.data.data_hash,
            "split_hash": assembly.split.hash,
            "item_ids": [assembly.data.items.item_ids[i] for i in assembly.item_index_of],
            "parameters": assembly.model.parameter_counts(),
            "encoders": assembly.encoder_documents,
            "cache_dtypes": assembly.cache_dtypes,
            "heads": {name: asdict(each) for name, each in assembly.model.head_specs.items()},
            "labels": {name: asdict(each) for name, each in assembly.model.label_sets.items()},
            "signals": assembly.model.reader and assembly.model.reader.spec.document(),
        },
    )


def _had(assembly: Assembly) -> Tensor:
    """(N, M) the modalities that training met each item with; none of those that it never met."""
    assert assembly.has is not None
    has = assembly.has.cpu()
    rows = torch.from_numpy(assembly.item_index_of)
    had = torch.zeros_like(has)
    had[rows] = has[rows]
    return had


def _added(assembly: Assembly, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LoRA and its like added to encoders: with the weights they started from, all of them."""
    return {
        f"{modality}.{name}": whole[f"encoders.{modality}.{name}"]
        for modality, encoder in assembly.model.encoders.items()
        if isinstance(encoder, StackedEncoder) and encoder.added
        for name in sorted(encoder.added)
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most memory this process has held, in bytes; of a resumed run that of its last part."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, see getrusage(2)
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
