"""Sharded ranks (FSDP2) hold a part each, and compute what replicated ones and one alone do."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_families import CASES, METHODS
from several_ranks import (
    configure,
    final_of,
    finish,
    in_two_ranks,
    losses_of,
    start,
    train_here,
    train_in_two_ranks,
)
from torch import nn
from torch.distributed.tensor import DTensor
from typer.testing import CliRunner

from encoders.adapters import adapt
from encoders.cut import StackedEncoder
from encoders.encoder import Inputs
from mmrec.build import assemble
from mmrec.cli import app
from mmrec.config import Config, change, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.stand_ins import StandIns, has_any
from mmrec.errors import CheckpointMismatch, ConfigError
from mmrec.loaded import load_run
from mmrec.training.checkpoint import (
    TrainState,
    load_checkpoint,
    model_tensors,
    optimiser_tensors,
    save_checkpoint,
)
from mmrec.training.distributed import Ranks
from mmrec.training.files import check_run, open_run
from mmrec.training.optimiser import make_optimiser
from mmrec.training.sharding import clip_sharded_gradients, look, shard
from mmrec.training.step import train_step
from mmrec.training.train import wrap
from mmrec.training.unfreeze import set_trained
from mmrec.training.validate import validate

pytest_plugins = ["tiny_run", "several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch", "nobody_left")

SGD = {  # AdamW makes a step of full size of a gradient that is nothing but rounding
    "training.optimiser": "sgd",
    "training.learning_rate": 0.02,
    "training.alignment_weight": 0.5,
    "training.max_epochs": 3,
}


def sharded(config: Config) -> Config:
    return change(config, {"training.sharding": "full"}, "test")


def assert_same_run(one: Path, other: Path) -> None:
    """Losses of 15 steps, and what is kept."""
    expected, found = losses_of(one), losses_of(other)
    assert len(found) == len(expected) == 15
    np.testing.assert_allclose(found, expected, atol=1e-5)
    mine, theirs = final_of(one), final_of(other)
    assert mine.keys() == theirs.keys()
    for name, each in mine.items():
        torch.testing.assert_close(theirs[name], each, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("blocks", [0, pytest.param(1, marks=pytest.mark.slow), "all"])
@pytest.mark.timeout(300)
def test_two_sharded_ranks_compute_what_two_whole_ones_and_one_do(
    blocks: int | str, tiny_data: Path, tmp_path: Path
) -> None:
    # contents stand still at first; with two fresh items there are steps in which a rank has no
    # medium for one of its encoders
    config = configure(
        blocks, **SGD, **{"training.freeze_content_epochs": 1, "training.fresh_items": 2}
    )
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    train_here(config, tiny_data, one)
    train_in_two_ranks({two: (config, tiny_data, None), parts: (sharded(config), tiny_data, None)})
    assert_same_run(one, parts)
    assert_same_run(two, parts)


@pytest.mark.timeout(300)
def test_all_that_may_be_set_beside_it_computes_the_same(tiny_data: Path, tmp_path: Path) -> None:
    config = configure(
        1,
        **SGD,
        **{
            "encoders.text.method": "lora",
            "encoders.text.rank": 2,
            "encoders.image.trainable_blocks": "all",
            "encoders.image.unfreeze_every": 1,
            "encoders.audio.frozen_epochs": 1,
            "training.activation_checkpointing": True,
            "training.micro_batches": 3,
        },
    )
    one, parts = tmp_path / "one", tmp_path / "parts"
    train_here(config, tiny_data, one)
    train_in_two_ranks({parts: (sharded(config), tiny_data, None)})
    assert_same_run(one, parts)
    assert (parts / "checkpoints" / "final" / "added.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_at_two_and_at_one_in_parts_and_whole(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = sharded(configure(**SGD | {"training.max_epochs": 4, "training.checkpoint_every": 2}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(config, tiny_data, whole, 2), whole)
    processes = start(config, tiny_data, broken, 2)
    log = broken / "metrics.jsonl"
    while not log.exists() or log.read_text().count('"loss"') < 8:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (broken / "checkpoints" / "final").exists()
    alone, replicated = tmp_path / "alone", tmp_path / "replicated"
    for copy in (alone, replicated):
        shutil.copytree(broken, copy)

    finish(start(config, tiny_data, broken, 2, "--resume"), broken)
    expected, found = final_of(whole), final_of(broken)
    assert not [name for name, each in expected.items() if not torch.equal(found[name], each)]
    assert losses_of(broken) == losses_of(whole)

    finish(start(config, tiny_data, alone, 1, "--resume"), alone)
    other = change(config, {"training.sharding": "none"}, "test")
    finish(start(other, tiny_data, replicated, 2, "--resume"), replicated)
    for run in (alone, replicated):
        assert len(losses_of(run)) == len(losses_of(whole))
        np.testing.assert_allclose(losses_of(run), losses_of(whole), atol=1e-4)

    for command in (
        ["evaluate", str(broken)],
        ["export", str(broken), "--out", str(tmp_path / "e")],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    loaded = load_run(broken)
    assert loaded.content is not None and not torch.isnan(loaded.content).any()


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor from its parts; every rank takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def elements(tensors: Any) -> int:
    """Numbers that this rank holds."""
    return sum(t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in tensors)


def look_into_a_rank(ranks: Ranks, config: Config, data: Path, folder: Path) -> None:
    """Two steps of one rank, what it holds meanwhile, and a checkpoint."""
    assembly = assemble(config, data, rank=ranks.rank, world=ranks.world)
    model = assembly.model
    content = assembly.all_content()
    assert content is not None
    bank = content[torch.from_numpy(assembly.item_index_of)]
    total = elements(model.parameters())
    trained = wrap(assembly, ranks)
    optimiser = make_optimiser(model, config)
    assert 0.45 * total < elements(model.parameters()) < 0.55 * total
    left = {name for name, each in model.named_parameters() if not isinstance(each, DTensor)}
    assert left == {"log_temperature", "log_alignment_temperature"}

    set_trained(model, config, 0)
    loader = batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)
    for _, batch in zip(range(2), loader, strict=False):
        train_step(trained, batch, optimiser, bank, config.training, ranks)
    moments = [v for s in optimiser.state.values() for k, v in s.items() if k != "step"]
    several = 2 * sum(each.numel() for each in optimiser.state)
    assert 0.45 * several < elements(moments) < 0.55 * several
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert all(isinstance(each, DTensor) for each in gradients if each.ndim)

    before = look(trained, lambda: validate(assembly, precision="fp32"))
    # freezing acts on the parameters that the optimiser has
    assert {id(p) for g in optimiser.param_groups for p in g["params"]} <= {
        id(each) for each in model.parameters()
    }

    twins = [nn.Parameter(torch.empty(each.shape)) for each in gradients]
    for twin, gradient in zip(twins, gradients, strict=True):
        twin.grad = whole_of(gradient).clone()
    expected = nn.utils.clip_grad_norm_(twins, 0.01)
    found = clip_sharded_gradients(trained, 0.01)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for gradient, twin in zip(gradients, twins, strict=True):
        torch.testing.assert_close(whole_of(gradient), twin.grad, rtol=1e-5, atol=1e-9)

    state = TrainState(step=2)
    save_checkpoint(folder, model=model, optimiser=optimiser, bank=bank, state=state, ranks=ranks)
    kept = model_tensors(model), optimiser_tensors(model, optimiser)
    torch.distributed.barrier()
    anew = assemble(config, data, rank=ranks.rank, world=ranks.world)
    other = wrap(anew, ranks)
    again = make_optimiser(anew.model, config)
    load_checkpoint(folder / "step-00000002", model=anew.model, optimiser=again, bank=bank)
    loaded = model_tensors(anew.model), optimiser_tensors(anew.model, again)
    for old, new in zip(kept, loaded, strict=True):
        assert old.keys() == new.keys() and bool(old) == ranks.is_main
        assert all(torch.equal(new[name], each) for name, each in old.items())
    # the encoder whose turn has not come has no state, as in the unbroken run
    assert not any(name.startswith("encoders.audio") for name in kept[1])
    moments = [v for s in again.state.values() for k, v in s.items() if k != "step"]
    assert elements(moments) < 0.55 * several
    if ranks.is_main:  # one rank alone goes on from it too
        model = assemble(config, data).model
        whole = make_optimiser(model, config)
        load_checkpoint(folder / "step-00000002", model=model, optimiser=whole, bank=bank)
        for old, new in zip(
            kept, (model_tensors(model), optimiser_tensors(model, whole)), strict=True
        ):
            assert old.keys() == new.keys()
            assert all(torch.equal(new[name], each) for name, each in old.items())
    after = look(other, lambda: validate(anew, precision="fp32"))
    assert torch.equal(after.items, before.items) and torch.equal(after.users, before.users)


@pytest.mark.timeout(120)
def test_a_rank_holds_half_of_parameters_gradients_and_moments(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = configure(
        "all", **{"training.alignment_weight": 0.5, "encoders.audio.frozen_epochs": 1}
    )
    in_two_ranks(look_into_a_rank, sharded(config), tiny_data, tmp_path)


class OneEncoder(nn.Module):
    """A model of nothing else: its forward pass is that of a step, from media or from the cut."""

    fusion = None

    def __init__(self, encoder: StackedEncoder) -> None:
        super().__init__()
        self.encoders, self.history = nn.ModuleDict({"one": encoder}), nn.Module()
        self.history.blocks = nn.ModuleList()

    def forward(self, inputs: Inputs) -> torch.Tensor:
        encoder: Any = self.encoders["one"]
        cut = encoder.trained_blocks is not None
        values = (encoder.above(encoder.cached) if cut else encoder(inputs)).values
        weight = torch.linspace(-1, 1, values.numel()).view_as(values)
        loss: torch.Tensor = (values / values.detach().abs().max() * weight).sum()
        return loss

    def look(self, function: Callable[[], Any]) -> Any:
        return function()


def one_encoder(family: str, method: Any, cut: int | None) -> tuple[OneEncoder, Inputs]:
    encoder, inputs = CASES[family]()
    if cut is not None:
        encoder.cut_at(cut)
        with torch.no_grad():
            states = encoder.below(inputs)
        encoder.cached = states  # type: ignore[assignment]
    torch.manual_seed(1)
    adapt(encoder, method, rank=2)
    encoder.checkpointing = family in ("bert", "resnet")
    return OneEncoder(encoder).train(), inputs


def compare_encoders(ranks: Ranks, cases: list[tuple[str, str, int | None]]) -> None:
    """Each encoder's gradient in parts, averaged over ranks that see the same, is the whole one."""
    for case in cases:
        whole, inputs = one_encoder(*case)
        parts, _ = one_encoder(*case)
        below = {name for name, _ in whole.encoders["one"].parameters_below() if case[2]}
        shard(parts, parts, ranks, parts=1)  # type: ignore[arg-type]
        encoder: Any = parts.encoders["one"]
        blocks = {id(each) for block in encoder.stack for each in block.parameters()}
        for name, each in parts.named_parameters():
            is_stem = name.removeprefix("encoders.one.") in below and id(each) not in blocks
            assert isinstance(each, DTensor) != (is_stem or each.ndim == 0), (case, name)
        losses = []
        for _ in range(2):
            for model in (whole, parts):
                torch.manual_seed(2)
                losses.append(model(inputs))
                losses[-1].backward()
        torch.testing.assert_close(losses[::2], losses[1::2], msg=str(case))
        for (name, mine), theirs in zip(whole.named_parameters(), parts.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), (case, name)
            if mine.grad is not None and theirs.grad is not None:
                assert isinstance(theirs, DTensor), (case, name)
                torch.testing.assert_close(
                    whole_of(theirs.grad), mine.grad, rtol=1e-4, atol=1e-5, msg=f"{case} {name}"
                )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_family_and_method_has_the_same_gradient_in_parts() -> None:
    cases: list[tuple[str, str, int | None]] = []
    for family, methods in METHODS.items():
        kept = ("full", *(each for each in methods if each != "adalora"))
        cases += [(family, method, cut) for method in kept for cut in (1, None)]
    in_two_ranks(compare_encoders, cases)


def test_a_rank_alone_has_nothing_to_shard(tiny_data: Path) -> None:
    assembly = assemble(sharded(configure(0)), tiny_data)
    trained = wrap(assembly, Ranks())
    assert not any(isinstance(each, DTensor) for each in trained.parameters())
    assert not isinstance(assembly.stream.items, StandIns)


@pytest.mark.parametrize("blocks", [1, "all"])
def test_each_share_has_every_medium_and_the_items_come_first(
    blocks: int | str, tiny_data: Path
) -> None:
    config = sharded(configure(blocks, **{"training.fresh_items": 2}))
    shares = [assemble(config, tiny_data, rank=rank, world=2) for rank in range(2)]
    num_behind = 0
    for assembly in shares:
        source = assembly.source
        assert source is not None
        for batch in assembly.stream:
            rows = batch.fresh[batch.own[0] : batch.own[1]].numpy()
            plain = source.collate(assembly.item_index_of[rows])
            assert all(has_any(each) for each in batch.media.values())
            for name, medium in plain.items():
                mine = batch.media[name]
                if isinstance(medium, dict):
                    assert isinstance(mine, dict)
                    assert torch.equal(mine["present"][: len(rows)], medium["present"])
                    num_behind += len(mine["present"]) > len(rows)
                else:
                    assert not isinstance(mine, dict)
                    assert torch.equal(mine.mask[: len(rows)], medium.mask)
                    num_behind += len(mine.mask) > len(rows)
    assert num_behind  # else this shows nothing


def test_a_run_may_be_resumed_with_another_sharding_and_nothing_else(tmp_path: Path) -> None:
    config = configure()
    open_run(tmp_path, config)
    check_run(tmp_path, sharded(config), resume=True)
    with pytest.raises(CheckpointMismatch, match="differs from the settings given"):
        check_run(tmp_path, change(config, {"training.batch_size": 8}, "test"), resume=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"training": {"optimiser": "adafactor"}}, "training.optimiser is 'adafactor'"),
        ({"training": {"optimiser": "adamw8bit"}}, "training.optimiser is 'adamw8bit'"),
        (
            {"encoders": {"text": {"method": "adalora", "trainable_blocks": 1}}},
            "encoders.text.method is 'adalora'",
        ),
    ],
    ids=["adafactor", "adamw8bit", "adalora"],
)
def test_what_cannot_be_sharded_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    document = {"encoders": {"text": {}}, **settings}
    parse_config(document)
    document["training"] = {**document.get("training", {}), "sharding": "full"}
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    said = str(caught.value)
    assert named in said and "training.sharding is 'full'" in said and "\n" not in said
