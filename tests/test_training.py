"""The step and the loop: what gets gradients, what a run repeats, when it stops and refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_prep.errors import BrokenMedium
from data_prep.prepare import prepare
from mmrec.build import Assembly, assemble
from mmrec.config import Config, change, dump_config, load_config, parse_config
from mmrec.data import items
from mmrec.data.batch import Batch
from mmrec.errors import CheckpointMismatch, ConfigError, MediaError, MmrecError, NonFiniteLoss
from mmrec.training import train as training
from mmrec.training.fresh import draw_kept_modalities
from mmrec.training.objective import compute_losses
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import TrainedModel, train_step
from mmrec.training.train import Progress, stopping_value, train
from mmrec.training.validate import Validation

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent
MODES = pytest.mark.parametrize("blocks", [0, 1, "all"], ids=["cached", "cut", "all"])


pytestmark = pytest.mark.usefixtures("restored_torch")


def configure(item: str = "both", blocks: int | str = 0, **settings: Any) -> Config:
    """Settings of the tiny run with some of `training` changed; every step is logged."""
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    document = tiny_config(item, blocks).model_dump(mode="json")
    document["training"] |= {"log_every": 1, **settings}
    return parse_config(document)


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


# one step


def first_step(assembly: Assembly, bank: Tensor | None, *, modality_dropout: float = 0.0) -> Batch:
    """Trains on the first batch of epoch 0 and returns it."""
    batch = next(iter(assembly.stream))
    trained = TrainedModel(
        assembly.model,
        assembly.config.training,
        modality_dropout=modality_dropout,
        repeats_forbidden=True,
    )
    optimiser = make_optimiser(assembly.model, assembly.config)
    train_step(trained, batch, optimiser, bank, assembly.config.training)
    return batch


def make_bank(assembly: Assembly) -> Tensor:
    content = assembly.all_content()
    assert content is not None
    return content[torch.from_numpy(assembly.item_index_of)]


@MODES
def test_gradient_reaches_all_that_trains_and_nothing_else(
    tiny_data: Path, blocks: int | str
) -> None:
    assembly = assemble(configure(blocks=blocks, fresh_items=None), tiny_data)
    model = assembly.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert not before["id_part.table.weight"].any()  # learned vectors start at zero and yet learn
    first_step(assembly, make_bank(assembly))
    frozen = 0
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        if not parameter.requires_grad:
            frozen += 1
            assert parameter.grad is None and not moved, name
            assert name.startswith("encoders.")
            continue
        assert parameter.grad is not None and parameter.grad.any() and moved, name
    assert (frozen > 0) == (blocks != "all")
    # rows of the table: the softmax runs over all items, so that every row has its gradient
    table = model.get_parameter("id_part.table.weight").grad
    assert table is not None and table.any(dim=1).all()


def without_noise(config: Config) -> Config:
    """The same settings with every dropout at 0."""
    document = config.model_dump(mode="json")
    document["model"]["history"]["dropout"] = 0.0
    document["model"]["fusion"] |= {"dropout": 0.0, "feature_dropout": 0.0}
    return parse_config(document)


def slow_loss(model: Any, batch: Batch, items: Tensor, bias: Tensor, known: Tensor) -> float:
    """Mean over positions of the cross-entropy of the next item, by a loop over events.

    Args:
        model: gives users and temperature.
        batch: its histories.
        items: (R, D) candidates.
        bias: (R,) additions to their logits.
        known: (R, D) what histories are made of.
    """
    losses = []
    states = model.users(known[batch.inputs], batch.offsets)
    for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        for place in range(start, stop):
            target = int(batch.targets[place])
            logits = items @ states[place] / model.temperature + bias
            met = [row for row in batch.inputs[start : place + 1].tolist() if row != target]
            logits[met] = -math.inf
            losses.append(float(logits.logsumexp(0) - logits[target]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("item", ["both", "content"])
def test_losses_equal_a_slow_loop(tiny_data: Path, item: str) -> None:
    config = without_noise(configure(item, fresh_items=4, precision="fp32"))
    assembly = assemble(config, tiny_data)
    model: Any = assembly.model
    bank = make_bank(assembly)
    if model.id_part is not None:
        torch.nn.init.normal_(model.id_part.table.weight, std=0.3)
    model.fusion.out.momentum = 1.0  # contents stay what the bank holds
    batch = next(iter(assembly.stream))
    model.train()
    losses = compute_losses(
        model, batch, bank, config.training, modality_dropout=0.0, repeats_forbidden=True
    )
    assert losses.cold_loss is not None and losses.num_targets == len(batch.targets)
    model.eval()
    with torch.no_grad():
        known, bias = model.embeddings(bank), model.bias(model.counts)
        wanted = slow_loss(model, batch, known, bias, known)
        assert float(losses.loss.detach()) == pytest.approx(wanted, rel=1e-5)
        alone, beta = known.clone(), bias.clone()
        alone[batch.fresh], beta[batch.fresh] = bank[batch.fresh], 0.0
        wanted = slow_loss(model, batch, alone, beta, known)
        assert float(losses.cold_loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_noise_touches_the_second_loss_alone(tiny_data: Path) -> None:
    config = configure(fresh_items=4)
    document = config.model_dump(mode="json")
    document["model"]["history"]["dropout"] = 0.0
    document["model"]["fusion"]["feature_dropout"] = 0.5
    config = parse_config(document)
    assembly = assemble(config, tiny_data)
    model, batch = assembly.model.train(), next(iter(assembly.stream))
    assert model.fusion is not None
    start = {name: value.clone() for name, value in model.fusion.state_dict().items()}
    seen = []
    for seed in (1, 2):
        model.fusion.load_state_dict(start)
        torch.manual_seed(seed)
        losses = compute_losses(
            model,
            batch,
            make_bank(assembly),
            config.training,
            modality_dropout=0.5,
            repeats_forbidden=True,
        )
        assembly.model.train()
        assert losses.cold_loss is not None
        seen.append([float(losses.loss.detach()), float(losses.cold_loss.detach())])
    assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]


def test_second_loss_teaches_content_and_users_and_no_id_part(tiny_data: Path) -> None:
    config = configure(fresh_items=4)
    assembly = assemble(config, tiny_data)
    model, batch = assembly.model.train(), next(iter(assembly.stream))
    assert model.id_part is not None
    torch.nn.init.normal_(model.id_part.table.weight, std=0.3)
    bank = make_bank(assembly)
    model.train()
    cold_loss = compute_losses(
        model, batch, bank, config.training, modality_dropout=0.2, repeats_forbidden=True
    ).cold_loss
    assert cold_loss is not None
    met = torch.unique(batch.inputs)
    cold_loss.backward()  # type: ignore[no-untyped-call]
    gradient = model.id_part.table.weight.grad
    assert gradient is not None
    # an id part is reached through histories only, never as a candidate
    others = torch.ones(len(bank), dtype=torch.bool)
    others[met] = False
    assert others.any() and not gradient[others].any() and gradient[met].any()
    assert any(p.grad is not None and p.grad.any() for p in model.fusion.parameters())  # type: ignore[union-attr]
    assert model.history.out.weight.grad is not None and model.history.out.weight.grad.any()
    assert model.popularity is not None and model.popularity.coefficients.grad is None


def test_share_of_the_first_loss_that_reaches_contents(tiny_data: Path) -> None:
    gradients = {}
    for share in (0.0, 0.25, 1.0):
        config = without_noise(configure(fresh_items=4, content_gradient=share, precision="fp32"))
        assembly = assemble(config, tiny_data)
        bank = make_bank(assembly)
        model: Any = assembly.model.train()
        losses = compute_losses(
            model,
            next(iter(assembly.stream)),
            bank,
            config.training,
            modality_dropout=0.0,
            repeats_forbidden=True,
        )
        losses.loss.backward()  # type: ignore[no-untyped-call]
        gradients[share] = model.fusion.out.projection.weight.grad
    assert gradients[1.0].any() and not gradients[0.0].any()
    torch.testing.assert_close(gradients[0.25], gradients[1.0] / 4)


def test_second_loss_can_be_switched_off(tiny_data: Path) -> None:
    config = configure(fresh_items=4, cold_weight=0.0)
    assembly = assemble(config, tiny_data)
    bank = make_bank(assembly)
    assembly.model.train()
    losses = compute_losses(
        assembly.model,
        next(iter(assembly.stream)),
        bank,
        config.training,
        modality_dropout=0.2,
        repeats_forbidden=True,
    )
    assert losses.cold_loss is None


def test_bank_takes_the_fresh_items_content_as_it_is_used(tiny_data: Path) -> None:
    config = change(
        configure(blocks="all", fresh_items=4), {"encoders.text.options.dropout": 0.0}, "test"
    )
    assembly = assemble(config, tiny_data)
    wanted = make_bank(assembly)
    bank = wanted.roll(1, 0)
    before = bank.clone()
    batch = first_step(assembly, bank, modality_dropout=0.9)
    fresh = torch.zeros(bank.shape[0], dtype=torch.bool)
    fresh[batch.fresh] = True
    assert fresh.sum() == 4
    assert torch.equal(bank[~fresh], before[~fresh])
    # of before the update, without dropout of the fusion, with every modality
    torch.testing.assert_close(bank[batch.fresh], wanted[batch.fresh])
    assert not torch.isclose(bank[fresh], before[fresh]).all(1).any()


def test_step_that_is_not_finite_names_epoch_and_batch(tiny_data: Path) -> None:
    assembly = assemble(configure("id"), tiny_data)
    with torch.no_grad():
        assembly.model.history.out.bias[0] = math.nan
    with pytest.raises(NonFiniteLoss, match="epoch 0, batch 0 is nan.*learning_rate") as caught:
        first_step(assembly, None)
    assert isinstance(caught.value, MmrecError) and "\n" not in str(caught.value)


def test_dropped_modalities_leave_each_item_one_of_its_own(tiny_data: Path) -> None:
    assembly = assemble(configure(fresh_items=None), tiny_data)
    batch = next(iter(assembly.stream))
    names = sorted(batch.media)
    present = torch.stack([batch.media[name].mask.any(1) for name in names], 1)  # type: ignore[union-attr]
    assert not present.all()
    kept = np.zeros(present.shape)
    for seed in range(300):
        random = np.random.default_rng(seed)
        keep = draw_kept_modalities(batch, chance=0.4, random=random)
        assert keep is not None
        chosen = torch.stack([keep[name] for name in names], 1)
        assert not (chosen & ~present).any()
        assert torch.equal(chosen.any(1), present.any(1))
        kept += chosen.numpy()
    whole = present.all(1).numpy()
    # 0.6, and a third of the cases in which all three were lost
    assert np.mean(kept[whole] / 300) == pytest.approx(0.6 + 0.4**3 / 3, abs=0.03)
    assert draw_kept_modalities(batch, chance=0.0, random=np.random.default_rng(0)) is None


# the loop


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def train_until(config: Config, data: Path, run: Path, step: int, *, resume: bool = True) -> None:
    def stop(at: Progress) -> None:
        if at.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(config, data, run, resume=resume, progress=stop)


@MODES
def test_broken_and_resumed_equals_unbroken(
    tiny_data: Path, tmp_path: Path, blocks: int | str
) -> None:
    # few of the items are fresh in a step: the others' contents come from the bank
    changes: dict[str, Any] = {
        "max_steps": 10,
        "checkpoint_every": 5,
        "max_epochs": 9,
        "fresh_items": 4,
    }
    config = configure(blocks=blocks, **changes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    state = train(config, tiny_data, whole)
    assert (state.step, state.finished) == (10, True)
    assert len(losses_of(whole)) == 10
    train_until(config, tiny_data, broken, 3, resume=False)  # before the first checkpoint
    train_until(config, tiny_data, broken, 7)  # after that of step 5, in the midst of an epoch
    assert (broken / "checkpoints" / "step-00000005").is_dir()
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)
    train(config, tiny_data, broken, resume=True)  # a finished run stays as it is
    assert_same_run(whole, broken)


@pytest.mark.parametrize("block", ["gru", "cnn"])
def test_user_models_without_attention_resume_too(
    tiny_data: Path, tmp_path: Path, block: str
) -> None:
    document = configure("id", max_steps=6, checkpoint_every=3).model_dump(mode="json")
    document["model"]["history"] |= {"block": block, "num_blocks": 2}
    config = parse_config(document)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, tiny_data, whole)
    train_until(config, tiny_data, broken, 5, resume=False)
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)


@pytest.mark.parametrize("optimiser", ["sgd", "adafactor", "adamw8bit"])
def test_other_optimisers_resume_too(tiny_data: Path, tmp_path: Path, optimiser: str) -> None:
    changes = {"max_steps": 6, "checkpoint_every": 3, "optimiser": optimiser}
    document = configure(blocks=0, **changes).model_dump(mode="json")
    document["model"]["width"] = 32  # a few matrices are large enough for eight bits
    config = parse_config(document)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, tiny_data, whole)
    train_until(config, tiny_data, broken, 5, resume=False)
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)


def test_one_seed_gives_one_model(tiny_data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(configure(blocks="all", max_steps=3, seed=seed), tiny_data, tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "same")
    one, other = (tensors_of(tmp_path / name / "checkpoints/final") for name in ("one", "other"))
    weights = [name for name in one if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_metrics_are_numbers_with_their_step(tiny_run: Path) -> None:
    records = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    looks = [record for record in records if "validation" in record]
    assert [record["epoch"] for record in looks] == [1, 2]
    assert all({"hr@10", "ndcg@10", "mrr"} <= set(each["validation"]["warm"]) for each in looks)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)


def looks_at(values: list[float]) -> Any:
    """Stands for `validate` and finds the given NDCG@10, one after the other."""
    given = iter(values)

    def look(assembly: Assembly, *, precision: str) -> Validation:
        metrics: dict[str, dict[str, float] | None] = {"warm": {"ndcg@10": next(given, 0.0)}}
        metrics["warm"]["hr@10"] = 0.0  # type: ignore[index]
        return Validation(metrics, None, torch.zeros(0), torch.zeros(0))

    return look


def test_patience_stops_and_the_best_weights_are_kept(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validate", looks_at([0.1, 0.3, 0.3, 0.2, 0.9]))
    state = train(configure("id", max_epochs=9, patience=2), tiny_data, tmp_path)
    assert (state.epoch, state.best_value, state.looks_without_gain) == (4, 0.3, 2)
    per_epoch = state.step // 4
    assert state.best_step == 2 * per_epoch
    checkpoints = tmp_path / "checkpoints"
    final = load_file(checkpoints / "final" / "model.safetensors")
    best = load_file(checkpoints / f"best-{state.best_step:08d}" / "model.safetensors")
    last = load_file(checkpoints / f"step-{state.step:08d}" / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in final)
    assert not torch.equal(final["id_part.table.weight"], last["id_part.table.weight"])
    document = json.loads((checkpoints / "final" / "state.json").read_text())
    assert document["step"] == state.best_step and document["steps_trained"] == state.step


def test_looks_are_as_rare_as_asked(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validate", looks_at([0.1, 0.2, 0.3]))
    train(configure("id", max_epochs=5, evaluate_every=2), tiny_data, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in records if "validation" in each] == [2, 4, 5]


def test_slices_that_decide() -> None:
    metrics: dict[str, dict[str, float] | None] = {
        "warm": {"ndcg@10": 0.2},
        "cold": {"ndcg@10": 0.1},
        "new_users": None,
    }
    looked = Validation(metrics, None, torch.zeros(0), torch.zeros(0))
    assert stopping_value(looked, "warm") == 0.2
    assert stopping_value(looked, "warm+cold") == pytest.approx(0.15)
    for unknown in ("new_users", "warm+lukewarm"):
        with pytest.raises(CheckpointMismatch, match="stop_on is.*it has warm, cold$") as caught:
            stopping_value(looked, unknown)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stop_on", "says"),
    [
        ("lukewarm", "slice 'lukewarm', which does not exist; validation has all, warm"),
        ("warm+new_users", "slice 'new_users', which this split has not; validation has all"),
        ("warm+", "slice '', which does not exist"),
    ],
    ids=["unknown", "absent", "empty"],
)
def test_slice_that_cannot_decide_is_refused_before_the_first_step(
    stop_on: str, says: str, tiny_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        train(configure("id", stop_on=stop_on), tiny_data, run)
    assert "\n" not in str(caught.value) and "training.stop_on" in str(caught.value)
    assert not run.exists()


def test_cold_cannot_decide_where_the_split_has_no_cold_items(
    tiny_source: Path, tmp_path: Path
) -> None:
    overrides = ["split.cold_validation=0", "split.cold_test=0"]
    catalogue, data = tiny_source.parent / "catalogue.yaml", tmp_path / "data"
    prepare(catalogue, tiny_source, data, overrides=overrides, num_workers=1)
    for stop_on in ("cold", "warm+cold_among_cold"):
        with pytest.raises(ConfigError, match="split has not; validation has all, warm:"):
            train(configure("id", stop_on=stop_on), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_broken_media_than_allowed_are_refused(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a prepared folder that no longer decode, as after a change of the decoder."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data, ignore=shutil.ignore_patterns("cache"))

    def refuse(content: bytes) -> None:
        raise BrokenMedium("broken image: of a kind no longer known")

    monkeypatch.setitem(items._DECODERS, "image", refuse)
    says = r"13 of \d+ media cannot be read, more than data.max_broken_media 0.05 allows.*item i0,"
    with pytest.raises(MediaError, match=says) as caught:
        train(configure(), data, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_folder_of_another_run_is_refused(
    tiny_data: Path, tiny_run_id: Path, tmp_path: Path
) -> None:
    log = (tiny_run_id / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointMismatch, match="holds a run already; add --resume"):
        train(configure("id"), tiny_data, tiny_run_id)
    with pytest.raises(CheckpointMismatch, match=r"config\.yaml: differs from the settings"):
        train(configure("id", seed=5), tiny_data, tiny_run_id, resume=True)
    run = tmp_path / "run"
    train(configure("id", max_steps=1), tiny_data, run)
    bound = json.loads((run / "data.json").read_text())
    for key in ("data_hash", "split_hash"):
        (run / "data.json").write_text(json.dumps({**bound, key: "0" * 64}))
        with pytest.raises(CheckpointMismatch, match=f"{key} is .*begun on 000000000000") as caught:
            train(configure("id", max_steps=1), tiny_data, run, resume=True)
        assert "\n" not in str(caught.value)
    assert (tiny_run_id / "metrics.jsonl").read_bytes() == log


def test_run_begun_before_a_setting_existed_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    config = configure("id", max_steps=4, checkpoint_every=2)
    train_until(config, tiny_data, tmp_path, 3, resume=False)
    path = tmp_path / "config.yaml"
    older = [line for line in path.read_text().splitlines() if "user_share" not in line]
    path.write_text("\n".join(older) + "\n")
    assert train(config, tiny_data, tmp_path, resume=True).step == 4
    assert path.read_text() == dump_config(config)


def test_golden_losses(tiny_data: Path, tmp_path: Path) -> None:
    train(load_config(ROOT / "configs" / "tiny.yaml"), tiny_data, tmp_path / "run")
    golden = np.loadtxt(ROOT / "tests" / "golden" / "tiny_loss.txt")
    assert golden.shape == (10,)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), golden, rtol=1e-4)


# a real process, killed


def start(config: Path, data: Path, run: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmrec.cli", "train", str(config)]
    command += ["--data", str(data), "--run", str(run), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int, delay_s: float) -> None:
    """Sends SIGKILL a moment after a step was logged; the run must not have ended."""
    log = run / "metrics.jsonl"
    while not log.exists() or log.read_text().count('"loss"') < step:
        assert process.poll() is None, f"ended before step {step}"
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MODES
def test_process_killed_three_times_equals_the_unbroken(
    tiny_data: Path, tmp_path: Path, blocks: int | str
) -> None:
    document = configure(
        blocks=blocks, max_epochs=12, batch_size=4, fresh_items=4, checkpoint_every=3, patience=99
    ).model_dump(mode="json")
    document["data"]["num_workers"] = 2
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(parse_config(document)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(path, tiny_data, whole).wait() == 0
    steps = len(losses_of(whole))
    random = np.random.default_rng(steps)
    options: list[str] = []
    for third in range(3):
        step = steps * third // 4 + int(random.integers(2, steps // 5))
        process = start(path, tiny_data, broken, *options)
        kill_after(process, broken, step, float(random.uniform(0, 0.02)))
        assert not (broken / "checkpoints" / "final").exists()
        options = ["--resume"]
    assert start(path, tiny_data, broken, *options).wait() == 0
    assert_same_run(whole, broken)


def test_a_sampled_loss_with_every_item_is_the_whole_one(tiny_data: Path, tmp_path: Path) -> None:
    train(configure(max_steps=4), tiny_data, tmp_path / "whole")
    train(configure(max_steps=4, candidates=64), tiny_data, tmp_path / "drawn")  # 13 items
    assert losses_of(tmp_path / "drawn") == losses_of(tmp_path / "whole")


def test_media_of_an_item_are_drawn_together(tiny_data: Path, tmp_path: Path) -> None:
    """With the weight it falls, at a temperature that is learnt; without, there is none."""
    settings = {"max_epochs": 12, "fresh_items": None, "patience": 99, "learning_rate": 3e-3}
    config = configure(blocks=0, alignment_weight=1.0, **settings)
    train(config, tiny_data, tmp_path / "run")
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    aligned = [record["alignment"] for record in records if "alignment" in record]
    assert len(aligned) == 12 * 4 and np.mean(aligned[-4:]) < 0.7 * np.mean(aligned[:4])
    final = load_file(tmp_path / "run" / "checkpoints" / "final" / "model.safetensors")
    assert float(final["log_alignment_temperature"]) != pytest.approx(math.log(0.07))
    train(configure(max_steps=2), tiny_data, tmp_path / "plain")
    assert "alignment" not in (tmp_path / "plain" / "metrics.jsonl").read_text()


def test_alignment_leaves_the_running_mean_of_contents_alone(tiny_data: Path) -> None:
    means = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        assembly: Any = assemble(configure(fresh_items=None, alignment_weight=weight), tiny_data)
        for parameter in assembly.model.fusion.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        first_step(assembly, make_bank(assembly))
        means.append(assembly.model.fusion.out.mean.clone())
        assert assembly.model.fusion.out.momentum == 0.9
    torch.testing.assert_close(means[0], means[1])


def test_micro_batches_give_the_same_gradient_in_less_memory(tiny_data: Path) -> None:
    quiet = {"dropout": 0.0}
    gradients, kept = [], []
    for parts in (1, 4, 99):
        document = configure(fresh_items=5, batch_size=12, micro_batches=parts)
        config = parse_config(
            document.model_dump(mode="json")
            | {"model": document.model.model_dump(mode="json") | {
                "history": document.model.history.model_dump(mode="json") | quiet,
                "fusion": document.model.fusion.model_dump(mode="json")
                | quiet | {"feature_dropout": 0.0},
            }}
        )  # fmt: skip
        torch.manual_seed(0)
        assembly = assemble(config, tiny_data)
        bank, batch = make_bank(assembly), next(iter(assembly.stream))
        model = assembly.model.train()
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = compute_losses(
                model, batch, bank, config.training, modality_dropout=0.2, repeats_forbidden=True
            )
        assert losses.cold_loss is not None
        kept.append(sum(sizes))
        (losses.loss + losses.cold_loss).backward()  # type: ignore[no-untyped-call]
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        gradients.append(found | {"loss": losses.loss.detach()})
    assert kept[1] < 0.8 * kept[0]
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, each in gradients[0].items():
            torch.testing.assert_close(other[name], each, atol=1e-5, rtol=1e-4, msg=name)
