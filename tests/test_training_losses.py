"""The two losses of a step: equal to a slow loop, and what each of them teaches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import configure, losses_of, make_bank
from torch import Tensor

from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import Batch
from mmrec.training.objective import compute_losses
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def without_noise(config: Config) -> Config:
    """The same settings with every dropout at 0."""
    document = config.model_dump(mode="json")
    document["model"]["history"]["dropout"] = 0.0
    document["model"]["fusion"] |= {"dropout": 0.0, "feature_dropout": 0.0}
    return parse_config(document)


def slow_loss(
    model: Any, batch: Batch, items: Tensor, bias: Tensor, known: Tensor, smoothing: float = 0.0
) -> float:
    """Mean over positions of the cross-entropy of the next item, by a loop over events.

    Args:
        model: gives users and temperature.
        batch: its histories.
        items: (R, D) candidates.
        bias: (R,) additions to their logits.
        known: (R, D) what histories are made of.
        smoothing: share of the target that all candidates not met divide among them.
    """
    losses = []
    states = model.users(known[batch.inputs], batch.offsets)
    for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        for place in range(start, stop):
            target = int(batch.targets[place])
            logits = items @ states[place] / model.temperature + bias
            met = [row for row in batch.inputs[start : place + 1].tolist() if row != target]
            logits[met] = -math.inf
            mean = logits[logits > -math.inf].mean()
            hit = (1 - smoothing) * logits[target] + smoothing * mean
            losses.append(float(logits.logsumexp(0) - hit))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("item", "smoothing"), [("both", 0.0), ("content", 0.0), ("both", 0.2)])
def test_losses_equal_a_slow_loop(tiny_data: Path, item: str, smoothing: float) -> None:
    settings: dict[str, Any] = {"precision": "fp32", "label_smoothing": smoothing}
    config = without_noise(configure(item, fresh_items=4, **settings))
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
        wanted = slow_loss(model, batch, known, bias, known, smoothing)
        assert float(losses.loss.detach()) == pytest.approx(wanted, rel=1e-5)
        alone, beta = known.clone(), bias.clone()
        alone[batch.fresh], beta[batch.fresh] = bank[batch.fresh], 0.0
        wanted = slow_loss(model, batch, alone, beta, known, smoothing)
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


def test_a_sampled_loss_with_every_item_is_the_whole_one(tiny_data: Path, tmp_path: Path) -> None:
    train(configure(max_steps=4), tiny_data, tmp_path / "whole")
    train(configure(max_steps=4, candidates=64), tiny_data, tmp_path / "drawn")  # 13 items
    assert losses_of(tmp_path / "drawn") == losses_of(tmp_path / "whole")
