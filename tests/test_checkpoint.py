"""Checkpoints: nothing half-written counts, nothing is lost, nothing is pickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrec.errors import CheckpointMismatch
from mmrec.training.checkpoint import (
    SCHEMA,
    TrainState,
    load_checkpoint,
    load_model,
    newest_checkpoint,
    save_checkpoint,
    write_folder,
)


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model.register_buffer("offset", torch.zeros(()))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def step(model: nn.Module, optimiser: torch.optim.AdamW, number: int) -> None:
    random = torch.Generator().manual_seed(number)
    loss = model(torch.randn(5, 4, generator=random)).square().sum()
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}/{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def save(folder: Path, number: int, *, best: int | None = None) -> Path:
    model, optimiser = make()
    state = TrainState(step=number, best_step=best)
    save_checkpoint(folder, model=model, optimiser=optimiser, bank=torch.ones(2, 2), state=state)
    return folder / f"step-{number:08d}"


def test_training_goes_on_exactly(tmp_path: Path) -> None:
    model, optimiser = make()
    bank = torch.randn(6, 3)
    for number in range(4):
        step(model, optimiser, number)
    model.get_buffer("offset").fill_(2.5)
    state = TrainState(epoch=3, batch=7, step=4, best_value=0.25, best_step=2, metrics_bytes=99)
    save_checkpoint(tmp_path, model=model, optimiser=optimiser, bank=bank, state=state)
    found = newest_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000004"

    other, other_optimiser = make(seed=1)
    other_bank = torch.zeros(6, 3)
    loaded = load_checkpoint(found, model=other, optimiser=other_optimiser, bank=other_bank)
    assert loaded == state
    assert torch.equal(other_bank, bank)
    for number in range(4, 7):
        step(model, optimiser, number)
        step(other, other_optimiser, number)
    for (name, mine), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimiser.state[mine].items():
            assert torch.equal(value, other_optimiser.state[theirs][key]), key


def test_folder_holds_json_and_safetensors_alone(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "bank.safetensors",
        "model.safetensors",
        "optimiser.safetensors",
        "state.json",
    ]
    assert json.loads((folder / "state.json").read_text())["schema"] == SCHEMA


def test_model_without_media_has_no_bank(tmp_path: Path) -> None:
    model, optimiser = make()
    state = TrainState(step=1)
    save_checkpoint(tmp_path, model=model, optimiser=optimiser, bank=None, state=state)
    assert not (tmp_path / "step-00000001" / "bank.safetensors").exists()


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for number in (2, 4, 6):
        write_folder(tmp_path / f"best-{number:08d}", {}, {})
    write_folder(tmp_path / "final", {}, {})
    (tmp_path / ".step-00000005.partial").mkdir()
    save(tmp_path, 4, best=4)
    save(tmp_path, 6, best=4)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["best-00000004", "final", "step-00000006"]


def test_half_written_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".step-00000010.partial").mkdir()
    (tmp_path / ".step-00000010.partial" / "state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(save(tmp_path, 8).parent) == tmp_path / "step-00000008"


def test_newest_is_by_number(tmp_path: Path) -> None:
    for number in (9, 100, 20):
        write_folder(tmp_path / f"step-{number:08d}", {}, {})
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000100"


class Dying:
    """A function that is the last one to be called after a number of calls."""

    def __init__(self, function: Callable[..., Any], calls: int) -> None:
        self.function, self.left = function, calls

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.function(*arguments, **options)


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("last", ["os.replace", "shutil.rmtree"])
def test_death_while_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, calls: int
) -> None:
    path = tmp_path / "step-00000001"
    write_folder(path, {"model": {"a": torch.zeros(3)}}, {"value": 0})
    module, _, name = last.partition(".")
    owner = {"os": os, "shutil": shutil}[module]
    monkeypatch.setattr(owner, name, Dying(getattr(owner, name), calls))
    with suppress(KeyboardInterrupt):
        write_folder(path, {"model": {"a": torch.ones(3)}}, {"value": 1})
    monkeypatch.undo()
    if path.exists():  # what has the folder's name is whole
        value = json.loads((path / "state.json").read_text())["value"]
        assert tensors_of(path)["model/a"].tolist() == [value] * 3
    write_folder(path, {"model": {"a": torch.ones(3)}}, {"value": 1})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_deleting_the_old_folder_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the midst of deleting leaves a folder without some of its files."""
    path = tmp_path / "step-00000001"
    write_folder(path, {"model": {"a": torch.zeros(3)}}, {})
    deleted = []

    def half(folder: Path, **_: Any) -> None:
        if (folder / "model.safetensors").exists():
            (folder / "model.safetensors").unlink()
            deleted.append(folder.name)
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with suppress(KeyboardInterrupt):
        write_folder(path, {"model": {"a": torch.ones(3)}}, {})
    assert deleted and path.name not in deleted
    assert newest_checkpoint(tmp_path) == path
    assert tensors_of(path)["model/a"].tolist() == [1.0] * 3


def test_another_schema_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**document, "schema": SCHEMA + 1}))
    model, optimiser = make()
    with pytest.raises(CheckpointMismatch, match="schema is not") as caught:
        load_checkpoint(folder, model=model, optimiser=optimiser, bank=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other", [nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(5, 3))], ids=["names", "size"]
)
def test_another_model_is_refused_in_one_line(tmp_path: Path, other: nn.Module) -> None:
    folder = save(tmp_path, 3)
    with pytest.raises(CheckpointMismatch, match="of another model") as caught:
        load_model(folder, other)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
