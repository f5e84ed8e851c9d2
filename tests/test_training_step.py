"""One step: what gets gradients, what the bank takes, drawn media, parts of a batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared_runs import configure, make_bank
from safetensors.torch import load_file
from torch import Tensor

from mmrec.build import Assembly, assemble
from mmrec.config import change, parse_config
from mmrec.data.batch import Batch
from mmrec.errors import MmrecError, NonFiniteLoss
from mmrec.training.fresh import draw_kept_modalities
from mmrec.training.objective import compute_losses
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import TrainedModel, train_step
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
MODES = pytest.mark.parametrize("blocks", [0, 1, "all"], ids=["cached", "cut", "all"])
pytestmark = pytest.mark.usefixtures("restored_torch")


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
