"""Checkpoints: folders of safetensors and JSON, written aside and renamed.

    RUN/checkpoints/step-00000480/   model · optimiser · bank · state.json   (the newest is kept)
                                     budget, where AdaLoRA has one
    RUN/checkpoints/best-00000432/   model · bank                            (best on validation)
    RUN/checkpoints/final/           what `mmrec.recommender` loads; `added` alone is what LoRA and
                                     its like put beside pretrained weights

Nothing is pickled. A folder without state.json is not a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrec.errors import CheckpointMismatch
from mmrec.training import budget
from mmrec.training.distributed import ALONE, Ranks, is_part, is_sharded

SCHEMA = 1


@dataclass
class TrainState:
    """Where a run is: all that changes and is no tensor.

    epoch, batch: the next batch to train on.
    step: batches trained on so far.
    best_value, best_step: best validation so far and its step; None before the first look.
    looks_without_gain: looks at validation since then.
    metrics_bytes: length of metrics.jsonl when this state was saved.
    seconds: training time so far.
    finished: early stopping or the last epoch has come.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    looks_without_gain: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0
    finished: bool = False
    recent: dict[str, float] = field(default_factory=dict)


def write_folder(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], document: Any) -> None:
    """Writes a folder of NAME.safetensors and state.json aside, then renames it.

    Args:
        path: the folder; an old one of this name is replaced.
        tensors: file name without ending -> its tensors.
        document: what state.json holds.
    """
    aside = path.parent / f".{path.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, content in tensors.items():
        whole = {key: value.detach().cpu().contiguous() for key, value in content.items()}
        save_file(whole, aside / f"{name}.safetensors")
    with open(aside / "state.json", "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    # moved away before it is deleted: a kill in between must not leave half a folder of this name
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whole; of a sharded model on rank 0, and every rank takes part."""
    if not is_sharded(model):
        return model.state_dict()
    from mmrec.training.sharding import gather_model  # what sharding imports, loading does not need

    return gather_model(model)


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by the names of its parameters: `NAME/exp_avg` and so on.

    Whole, as `model_tensors` gives the model. Of bitsandbytes: a count that is no tensor becomes an
    int64 without dimensions, and tables of 256 entries that all parameters share (`qmap1`) are
    copied, since a file holds none twice.
    """
    if is_sharded(model):
        from mmrec.training.sharding import gather_optimiser

        return gather_optimiser(model, optimiser)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": (
            value.clone() if key.startswith("qmap") else torch.as_tensor(value)
        )
        for parameter, values in optimiser.state.items()
        for key, value in values.items()
    }


def restore_optimiser(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimiser_tensors` gave."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        if value.dtype == torch.int64 and value.dim() == 0:
            optimiser.state[parameter][kind] = int(value)
            continue
        # the count of steps too: a fused optimiser keeps it beside the parameter
        value = value.to(parameter.device)
        if is_part(parameter):
            from mmrec.training.sharding import spread_like

            value = spread_like(parameter, value)
        optimiser.state[parameter][kind] = value


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    state: TrainState,
    ranks: Ranks = ALONE,
) -> None:
    """Writes step-N, then deletes checkpoints that are no longer the newest or the best.

    Every rank calls it, and the first one writes.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": model_tensors(model),
        "optimiser": optimiser_tensors(model, optimiser),
    }
    if not ranks.is_main:
        return
    if bank is not None:
        tensors["bank"] = {"content": bank}
    spent = budget.tensors(model)
    if spent:
        tensors["budget"] = spent
    path = folder / f"step-{state.step:08d}"
    write_folder(path, tensors, {"schema": SCHEMA, **asdict(state)})
    keep = {path.name, f"best-{state.best_step:08d}" if state.best_step is not None else ""}
    for other in folder.iterdir():
        if other.name not in keep and other.name.startswith(("step-", "best-", ".")):
            shutil.rmtree(other)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from, or None."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
) -> TrainState:
    """Restores model, optimiser and bank in place and returns where the run was.

    Raises:
        CheckpointMismatch: the checkpoint is of another schema or another model.
    """
    document = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if document.pop("schema", None) != SCHEMA:
        raise CheckpointMismatch(f"{path}: schema is not {SCHEMA}; start the run anew")
    load_model(path, model)
    restore_optimiser(model, optimiser, read_tensors(path / "optimiser.safetensors"))
    if bank is not None:
        bank.copy_(read_tensors(path / "bank.safetensors")["content"])
    if (path / "budget.safetensors").is_file():
        budget.restore(model, read_tensors(path / "budget.safetensors"))
    return TrainState(**document)


def load_model(path: Path, model: nn.Module) -> None:
    """Loads model.safetensors of a checkpoint folder; names and shapes must match.

    Raises:
        CheckpointMismatch: they do not, or the file is damaged.
    """
    tensors = read_tensors(path / "model.safetensors")
    try:
        if is_sharded(model):
            from mmrec.training.sharding import spread_model

            spread_model(model, tensors)
        else:
            model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointMismatch(
            f"{path}: is of another model than config.yaml describes: {reason}"
        ) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of a run.

    Raises:
        CheckpointMismatch: it is absent, cut short or something else.
    """
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointMismatch(
            f"{path}: cannot be read: {' '.join(str(error).split())}; copy the run again, or train "
            "it anew"
        ) from None
