"""Runs of the tiny catalogue: settings and bank, one that is stopped midway, two compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrec.build import Assembly
from mmrec.config import Config, parse_config
from mmrec.training.train import Progress, train


def configure(item: str = "both", blocks: int | str = 0, **settings: Any) -> Config:
    """Settings of the tiny run with some of `training` changed; every step is logged."""
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    document = tiny_config(item, blocks).model_dump(mode="json")
    document["training"] |= {"log_every": 1, **settings}
    return parse_config(document)


def make_bank(assembly: Assembly) -> Tensor:
    content = assembly.all_content()
    assert content is not None
    return content[torch.from_numpy(assembly.item_index_of)]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """Every tensor of every checkpoint (optimiser and bank too) and every byte of the log."""
    mine, theirs = tensors_of(one / "checkpoints"), tensors_of(other / "checkpoints")
    assert list(mine) == list(theirs)
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for path in (one / "checkpoints").glob("*/state.json"):
        twin = other / path.relative_to(one)
        states = [json.loads(each.read_text()) for each in (path, twin)]
        for state in states:  # what may differ: how long it took, and in how much memory
            state.pop("seconds", None)
            state.pop("peak_memory_bytes", None)
        assert states[0] == states[1], path.parent.name


def losses_of(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def train_until(config: Config, data: Path, run: Path, step: int, *, resume: bool = True) -> None:
    def stop(at: Progress) -> None:
        if at.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(config, data, run, resume=resume, progress=stop)
