"""Methods that add parameters: what they leave alone, what they merge to, what they refuse."""

import copy

import pytest
import torch
from encoder_families import CASES, METHODS

from encoders.adapters import (
    MERGEABLE,
    adapt,
    added_tensors,
    budget_tensors,
    load_added,
    merge,
    orthogonality,
    rank_in_use,
    restore_budget,
    spend_budget,
    start_budget,
)
from encoders.cut import StackedEncoder
from encoders.encoder import Inputs

pairs = pytest.mark.parametrize(
    ("family", "method"), [(name, each) for name, methods in METHODS.items() for each in methods]
)


def train_a_little(encoder: StackedEncoder, inputs: Inputs, steps: int = 3) -> None:
    trained = [each for each in encoder.parameters() if each.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=0.02)
    encoder.train()
    for _ in range(steps):
        values = encoder(inputs).values
        weight = torch.linspace(-1, 1, values.numel()).view_as(values)
        optimiser.zero_grad()
        (values / values.detach().abs().max() * weight).sum().backward()
        optimiser.step()
    encoder.eval()


def bare(name: str) -> str:
    """The name that a weight of the encoder's own had before layers were put around it."""
    name = name.replace(".base_layer.", ".").removesuffix(".original")
    return name.replace(".parametrizations.", ".")


@pairs
@pytest.mark.parametrize("blocks", [1, "all"])
def test_what_is_added_trains_and_nothing_else(family: str, method: str, blocks: int | str) -> None:
    encoder, inputs = CASES[family]()
    if blocks != "all":
        encoder.cut_at(int(blocks))
    whole = encoder(inputs)
    own = {name: each.clone() for name, each in encoder.state_dict().items()}
    torch.manual_seed(1)
    adapt(encoder, method, rank=2)  # type: ignore[arg-type]
    start = encoder(inputs)
    assert torch.equal(start.mask, whole.mask)
    if method != "prompt":  # a prompt is something new from the start
        scale = float(whole.values.detach().abs().max())
        torch.testing.assert_close(start.values, whole.values, atol=1e-5 * scale, rtol=1e-4)

    trained = {name for name, each in encoder.named_parameters() if each.requires_grad}
    assert trained == encoder.added and trained
    before = {name: each.clone() for name, each in encoder.state_dict().items()}
    train_a_little(encoder, inputs)
    moved = {n for n, each in encoder.state_dict().items() if not torch.equal(each, before[n])}
    assert moved and moved <= trained
    left = {bare(name): each for name, each in encoder.state_dict().items()}
    assert all(torch.equal(left[name], each) for name, each in own.items())
    assert not torch.equal(encoder(inputs).values, start.values)


@pairs
def test_what_was_added_is_enough_to_restore_and_merges_to_the_same(
    family: str, method: str
) -> None:
    encoder, inputs = CASES[family]()
    names = set(encoder.state_dict())
    encoder.cut_at(1)
    adapt(encoder, method, rank=2)  # type: ignore[arg-type]
    train_a_little(encoder, inputs)
    with torch.no_grad():
        trained = encoder(inputs).values
        kept = added_tensors(encoder)
        share = sum(each.numel() for each in kept.values())
        assert share < 0.2 * sum(each.numel() for each in encoder.parameters())
        again, _ = CASES[family]()
        again.cut_at(1)
        adapt(again, method, rank=2)  # type: ignore[arg-type]
        load_added(again, kept)
        assert torch.equal(again(inputs).values, trained)
        with pytest.raises(ValueError, match="not those"):
            load_added(again, {**kept, "other": torch.zeros(1)})

        states = encoder.below(inputs)
        merge(encoder)
        assert torch.equal(encoder.below(inputs).values, states.values)
        scale = float(trained.abs().max())
        torch.testing.assert_close(encoder(inputs).values, trained, atol=1e-5 * scale, rtol=1e-4)
    assert (set(encoder.state_dict()) == names) == (method in MERGEABLE)


def test_adalora_spends_its_budget_and_resumes() -> None:
    encoder, inputs = CASES["bert"]()
    adapt(encoder, "adalora", rank=2)
    start_budget(encoder, 20)
    encoder.train()
    optimiser = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.02)

    def step(encoder: StackedEncoder, optimiser: torch.optim.Adam, number: int) -> None:
        torch.manual_seed(number)
        values = encoder(inputs).values
        loss = (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum()
        penalty = orthogonality(encoder)
        assert penalty is not None and float(penalty.detach()) >= 0
        optimiser.zero_grad()
        (loss + penalty).backward()
        optimiser.step()
        spend_budget(encoder, number)

    step(encoder, optimiser, 0)
    full = rank_in_use(encoder)
    layers = len([name for name, _ in encoder.named_parameters() if "lora_E" in name])
    assert full == 3 * layers
    for number in range(1, 6):
        step(encoder, optimiser, number)
    middle = rank_in_use(encoder)
    assert 2 * layers < middle < full

    twin, _ = CASES["bert"]()
    adapt(twin, "adalora", rank=2)
    start_budget(twin, 20)
    load_added(twin, added_tensors(encoder))
    restore_budget(twin, {name: each.clone() for name, each in budget_tensors(encoder).items()})
    twin.train()
    other = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=0.02)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for number in range(6, 20):
        step(encoder, optimiser, number)
        step(twin, other, number)
    assert rank_in_use(encoder) == 2 * layers
    one, two = added_tensors(encoder), added_tensors(twin)
    assert not [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.parametrize(
    ("family", "method", "blocks", "words"),
    [
        ("resnet", "prompt", 1, "needs a transformer"),
        ("resnet", "adalora", 1, "no Linear layer"),
        ("bert", "lora", 0, "no block of this encoder trains"),
    ],
)
def test_what_does_not_fit_is_refused(family: str, method: str, blocks: int, words: str) -> None:
    encoder, _ = CASES[family]()
    encoder.cut_at(blocks)
    with pytest.raises(ValueError, match=words):
        adapt(encoder, method, rank=2)  # type: ignore[arg-type]
