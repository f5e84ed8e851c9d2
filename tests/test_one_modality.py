"""Heads of one modality: users meet the fresh items by one modality's content alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.tokens import Tokens
from mmrec.build import Assembly, assemble
from mmrec.config import Config, change, parse_config
from mmrec.errors import ConfigError
from mmrec.training.objective import Losses, compute_losses
from mmrec.training.one_modality import OneModality, head_tables

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NAMES = ("audio", "image", "text")


def configure(blocks: int | str = 0, **settings: Any) -> Config:
    """The tiny run without any dropout, with the heads on."""
    from tiny_run import tiny_config

    quiet = {
        "model.history.dropout": 0.0,
        "model.fusion.dropout": 0.0,
        "model.fusion.feature_dropout": 0.0,
        "training.modality_weight": 1.0,
        "training.fresh_items": None,
    }
    return change(tiny_config(trainable_blocks=blocks), quiet | settings, "test")


def bank_of(assembly: Assembly) -> Tensor:
    content = assembly.all_content()
    assert content is not None
    return content[torch.from_numpy(assembly.item_index_of)]


def losses_of(assembly: Assembly, bank: Tensor) -> Losses:
    model: Any = assembly.model.train()
    return compute_losses(
        model,
        next(iter(assembly.stream)),
        bank,
        assembly.config.training,
        modality_dropout=0.0,
        repeats_forbidden=True,
    )


@pytest.mark.parametrize("fresh_items", [None, 5])
def test_equals_a_slow_loop_over_modalities_and_positions(
    tiny_data: Path, fresh_items: int | None
) -> None:
    assembly = assemble(configure(**{"training.fresh_items": fresh_items}), tiny_data)
    model: Any = assembly.model
    torch.nn.init.normal_(model.id_part.table.weight, std=0.3)
    model.fusion.out.momentum = 1.0  # contents stay what the bank holds
    bank = bank_of(assembly)
    batch = next(iter(assembly.stream))
    found = losses_of(assembly, bank).modality_loss
    model.eval()
    means = []
    with torch.no_grad():
        known, bias = model.embeddings(bank), model.bias(model.counts)
        states = model.users(known[batch.inputs], batch.offsets)
        tokens = model.tokens(batch.media)
        for name in NAMES:
            alone = model.fusion({name: tokens[name]})
            table, beta = known.clone(), bias.clone()
            for place, row in enumerate(batch.fresh.tolist()):
                if tokens[name].mask[place].any():
                    table[row], beta[row] = alone[place], 0.0
            terms = []
            for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
                for place in range(int(start), int(stop)):
                    logits = table @ states[place] / model.temperature + beta
                    met = torch.zeros(len(logits), dtype=torch.bool)
                    met[batch.inputs[start : place + 1]] = True
                    met[batch.targets[place]] = False
                    logits = logits.masked_fill(met, -torch.inf)
                    terms.append(F.cross_entropy(logits, batch.targets[place]))
            means.append(torch.stack(terms).mean())
    assert found is not None
    torch.testing.assert_close(found.detach(), torch.stack(means).mean(), rtol=1e-5, atol=0)


def test_gradient_reaches_every_modality_and_no_id_part(tiny_data: Path) -> None:
    # without the first loss's share, contents learn from the heads alone
    settings = {"training.fresh_items": 5, "training.content_gradient": 0.0}
    assembly = assemble(configure("all", **settings), tiny_data)
    model: Any = assembly.model
    torch.nn.init.normal_(model.id_part.table.weight, std=0.3)
    loss = losses_of(assembly, bank_of(assembly)).modality_loss
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    for name in NAMES:
        assert model.fusion.projections[name].projection.weight.grad.any(), name
        assert any(p.grad is not None and p.grad.any() for p in model.encoder(name).parameters())
    met = torch.unique(next(iter(assembly.stream)).inputs)
    gradient = model.id_part.table.weight.grad
    others = torch.ones(len(gradient), dtype=torch.bool)
    others[met] = False  # an id part is reached through histories only, never as a candidate
    assert others.any() and not gradient[others].any() and gradient[met].any()
    assert model.popularity.coefficients.grad is None


def test_items_without_the_modality_stand_as_they_are_and_learn_nothing() -> None:
    contents = {name: torch.randn(3, 4, requires_grad=True) for name in NAMES}
    present = {
        "audio": torch.tensor([True, False, True]),
        "image": torch.tensor([True, True, True]),
        "text": torch.tensor([False, False, False]),
    }
    items, bias = torch.randn(6, 4, requires_grad=True), torch.randn(6, requires_grad=True)
    fresh, weight = torch.tensor([1, 2, 5]), torch.tensor([1.0, 2.0, 3.0])
    tables = head_tables(OneModality(contents, present), fresh, weight, items, bias)
    assert list(tables) == ["audio", "image"]  # a modality that no item has is no head
    table, beta = tables["audio"]
    assert torch.equal(table[[1, 5]], contents["audio"][[0, 2]]) and not beta[[1, 5]].any()
    assert torch.equal(table[[0, 2, 3, 4]], items[[0, 2, 3, 4]])
    assert torch.equal(beta[[0, 2, 3, 4]], bias[[0, 2, 3, 4]])
    table.sum().backward()  # type: ignore[no-untyped-call]
    gradient = contents["audio"].grad
    assert gradient is not None and items.grad is None and bias.grad is None
    assert torch.equal(gradient, torch.tensor([1.0, 0.0, 3.0])[:, None].expand(3, 4))


def test_without_its_weight_nothing_is_computed(tiny_data: Path) -> None:
    calls = {}
    for weight in (0.0, 1.0):
        assembly = assemble(configure(**{"training.modality_weight": weight}), tiny_data)
        model: Any = assembly.model
        bank = bank_of(assembly)
        seen: list[int] = []
        model.fusion.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        losses = losses_of(assembly, bank)
        assert (losses.modality_loss is None) == (weight == 0)
        calls[weight] = len(seen)
    assert calls == {0.0: 2, 1.0: 2 + len(NAMES)}  # clean and noisy, then each modality


def test_micro_batches_give_the_same_loss(tiny_data: Path) -> None:
    found = []
    for parts in (1, 3):
        assembly = assemble(configure(**{"training.micro_batches": parts}), tiny_data)
        losses = losses_of(assembly, bank_of(assembly))
        assert losses.modality_loss is not None and losses.cold_loss is not None
        found.append(torch.stack([losses.loss, losses.cold_loss, losses.modality_loss]).detach())
    torch.testing.assert_close(found[0], found[1])


def test_one_modality_has_no_heads() -> None:
    document = configure().model_dump(mode="json")
    document["encoders"] = {"text": document["encoders"]["text"]}
    says = r"training.modality_weight is 1 but encoders names text: .*modality_weight=0"
    with pytest.raises(ConfigError, match=says) as caught:
        parse_config(document)
    assert "\n" not in str(caught.value)


def test_a_modality_that_no_item_of_the_step_has_learns_nothing(tiny_data: Path) -> None:
    settings = {"training.fresh_items": 5, "training.content_gradient": 0.0}
    assembly = assemble(configure(**settings), tiny_data)
    bank, model = bank_of(assembly), assembly.model.train()
    batch = next(iter(assembly.stream))
    sound = batch.media["audio"]
    assert isinstance(sound, Tokens)
    batch.media["audio"] = Tokens(sound.values, torch.zeros_like(sound.mask))
    loss = compute_losses(
        model,
        batch,
        bank,
        assembly.config.training,
        modality_dropout=0.0,
        repeats_forbidden=True,
    ).modality_loss
    assert loss is not None and bool(torch.isfinite(loss))
    loss.backward()  # type: ignore[no-untyped-call]
    projections: Any = model.fusion.projections  # type: ignore[union-attr]
    assert not projections["audio"].projection.weight.grad.any()
    assert projections["text"].projection.weight.grad.any()
