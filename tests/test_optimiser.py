"""The rate's schedule, groups by rate and decay, and steps of each optimiser by its formula."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmrec.config import Config, change, parse_config
from mmrec.encoder_parts import make_encoder
from mmrec.errors import ConfigError
from mmrec.model import RecommenderModel
from mmrec.training.optimiser import make_optimiser, parameter_groups, rate_at

TEXTS = ["the quiet river", "a red storm at night", "the old garden"]


def make_config(**training: float) -> Config:
    return parse_config(
        {
            "encoders": {
                "text": {
                    "num_tokens": 4,
                    "trainable_blocks": "all",
                    "learning_rate": 3e-4,
                    "options": {"width": 16, "num_layers": 1, "num_heads": 2},
                },
                "audio": {
                    "num_tokens": 2,
                    "trainable_blocks": "all",
                    "options": {"width": 16},
                },
                "image": {"num_tokens": 4, "options": {"width": 32, "size": 32}},
            },
            "model": {"width": 16, "fusion": {"num_latents": 2, "num_heads": 2}},
            "training": {"learning_rate": 0.01, "weight_decay": 0.1, **training},
        }
    )


def build(config: Config) -> RecommenderModel:
    from mmrec.network import make_model

    torch.manual_seed(0)
    parts = {
        name: make_encoder(name, each, texts=lambda: TEXTS, vector_width=lambda _: 4)
        for name, each in config.encoders.items()
    }
    return make_model(config, parts, torch.tensor([3, 1, 4]))


def test_schedule() -> None:
    def factor(step: int) -> float:
        return rate_at(step, total_steps=110, warmup_steps=10, min_rate=0.05)

    assert factor(0) == pytest.approx(0.1)  # the first step moves
    assert factor(4) == pytest.approx(0.5)
    assert factor(9) == 1.0
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx((1 + 0.05) / 2)
    assert factor(110) == factor(500) == pytest.approx(0.05)
    assert all(factor(step) > factor(step + 1) for step in range(10, 110))


def test_schedule_without_warm_up_or_decay() -> None:
    assert rate_at(0, total_steps=5, warmup_steps=0, min_rate=0.0) == 1.0
    constant = [rate_at(s, total_steps=5, warmup_steps=2, min_rate=1.0) for s in range(2, 6)]
    assert constant == [1.0] * 4
    assert rate_at(3, total_steps=3, warmup_steps=9, min_rate=0.0) == pytest.approx(4 / 9)


def test_decay_is_on_weights_of_layers_alone() -> None:
    config = make_config()
    model = build(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed: set[str] = set()
    others: set[str] = set()
    for group in parameter_groups(model, config):
        wanted = decayed if group["weight_decay"] else others
        assert group["weight_decay"] in (0.0, 0.1)
        parameters = group["params"]
        assert isinstance(parameters, list)
        wanted.update(names[id(parameter)] for parameter in parameters)
    matrices = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and module.weight.requires_grad
    }
    assert decayed == matrices
    for name in (
        "id_part.table.weight",
        "fusion.latents",
        "fusion.null_token",
        "fusion.projections.text.position",
        "fusion.projections.text.modality",
        "fusion.token_norm.weight",
        "history.blocks.0.attention_gate.bias",
        "popularity.coefficients",
        "log_temperature",
    ):
        assert name in others, name
    trainable = {name for name, each in model.named_parameters() if each.requires_grad}
    assert decayed | others == trainable and not decayed & others
    assert not any("encoders.image" in name for name in trainable)  # frozen below the cut
    assert any("encoders.text" in name for name in decayed)


def test_decay_is_on_the_matrices_of_recurrent_layers() -> None:
    model_settings = {"item": "id", "width": 16, "history": {"block": "gru", "num_blocks": 2}}
    config = parse_config({"model": model_settings})
    model = build(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in parameter_groups(model, config)
        if group["weight_decay"]
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    layers = {
        f"history.blocks.{n}.recurrence.weight_{kind}_l0" for n in (0, 1) for kind in ("ih", "hh")
    }
    assert decayed == layers | {"history.out.weight"}


def test_each_encoder_has_its_rate() -> None:
    config = make_config()
    model = build(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, config):
        parameters = group["params"]
        assert isinstance(parameters, list)
        for parameter in parameters:
            name = names[id(parameter)]
            assert group["lr"] == (3e-4 if name.startswith("encoders.text") else 0.01), name


def test_one_step_equals_the_formula() -> None:
    config = make_config()
    model = build(config)
    optimiser = make_optimiser(model, config)
    layer = model.history.blocks[0].get_submodule("attention_gate")
    assert isinstance(layer, nn.Linear)
    random = torch.Generator().manual_seed(1)
    before, grads = {}, {}
    for name, parameter in (("weight", layer.weight), ("bias", layer.bias)):
        before[name] = parameter.detach().clone()
        grads[name] = torch.randn(parameter.shape, generator=random)
        parameter.grad = grads[name].clone()
    optimiser.step()
    # at step 1 the corrected moments are g and g squared
    for name, decay in (("weight", 0.1), ("bias", 0.0)):
        update = grads[name] / (grads[name].abs() + 1e-8)
        wanted = before[name] - 0.01 * (update + decay * before[name])
        torch.testing.assert_close(getattr(layer, name), wanted, rtol=1e-5, atol=1e-7)
    other = model.history.out.weight
    assert other.grad is None and id(other) not in {id(each) for each in optimiser.state}


def rates(config: Config) -> dict[str, tuple[float, float]]:
    """Rate and decay of each group by its name."""
    groups = parameter_groups(build(config), config)
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}


def test_rate_falls_with_depth_and_an_encoder_has_its_own_decay() -> None:
    settings = {"encoders.audio.layer_decay": 0.5, "encoders.audio.weight_decay": 0.2}
    found = rates(change(make_config(), settings, "test"))
    wanted = {"end": 0.01, "block 3": 0.005, "block 2": 0.0025, "block 0": 0.01 / 16}
    for name, rate in wanted.items():
        assert found[f"audio {name}, decayed"] == (pytest.approx(rate), 0.2)
        assert found[f"audio {name}, not decayed"] == (pytest.approx(rate), 0.0)
    assert found["text, decayed"] == (3e-4, 0.1)
    model = build(change(make_config(), settings, "test"))
    grouped = [
        id(each)
        for group in parameter_groups(model, change(make_config(), settings, "test"))
        for each in group["params"]
    ]
    trained = [id(each) for each in model.parameters() if each.requires_grad]
    assert sorted(grouped) == sorted(trained)


def test_an_encoder_with_weights_starts_at_1e_5() -> None:
    from mmrec.training.optimiser import _encoder_part

    config = make_config()
    encoder = config.encoders["audio"]
    assert _encoder_part("audio", encoder, config.training, 0.01).learning_rate == 0.01
    pretrained = encoder.model_copy(update={"weights": "minilm"})
    assert _encoder_part("audio", pretrained, config.training, 0.01).learning_rate == 1e-5


def step_of(name: str, steps: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The gradients given to a matrix, and it before and after."""
    config = change(make_config(), {"training.optimiser": name}, "test")
    model = build(config)
    optimiser = make_optimiser(model, config)
    weight = model.history.blocks[0].get_submodule("attention_gate").weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(weight.shape, generator=random) for _ in range(steps)]
    for grad in grads:
        weight.grad = grad.clone()
        optimiser.step()
    return grads, before, weight.detach()


def test_sgd_decays_apart_from_its_momentum() -> None:
    grads, weight, after = step_of("sgd", 3)
    velocity = torch.zeros_like(weight)
    for grad in grads:
        velocity = 0.9 * velocity + grad
        weight = weight - 0.01 * velocity - 0.01 * 0.1 * weight
    torch.testing.assert_close(after, weight, atol=1e-6, rtol=0)


def test_adafactor_keeps_a_row_and_a_column() -> None:
    config = change(make_config(), {"training.optimiser": "adafactor"}, "test")
    model = build(config)
    optimiser = make_optimiser(model, config)
    weight = model.history.blocks[0].get_submodule("attention_gate").weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimiser.step()
    assert optimiser.state[weight]["row_var"].numel() == weight.shape[0]
    assert optimiser.state[weight]["col_var"].numel() == weight.shape[1]
    assert bool((weight < before + 1e-9).all())


def test_eight_bits_follow_adamw() -> None:
    grads, weight, after = step_of("adamw8bit", 3)  # too small for bytes: the formula itself
    m = v = torch.zeros_like(weight)
    for count, grad in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad.square()
        step = (m / (1 - 0.9**count)) / ((v / (1 - 0.98**count)).sqrt() + 1e-8)
        weight = (1 - 0.01 * 0.1) * weight - 0.01 * step
    torch.testing.assert_close(after, weight, atol=1e-6, rtol=0)


def test_eight_bits_are_bytes_and_near_adamw() -> None:
    from mmrec.training.optimiser import LEAST_8_BIT, OPTIMISERS

    settings = make_config().training
    start = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    assert start.numel() > LEAST_8_BIT
    moved = {}
    for name in ("adamw", "adamw8bit"):
        weight = nn.Parameter(start.clone())
        group = {"params": [weight], "lr": 0.01, "weight_decay": 0.1}
        optimiser = OPTIMISERS[name]([group], settings)
        random = torch.Generator().manual_seed(1)
        for _ in range(20):
            weight.grad = torch.randn(weight.shape, generator=random)
            optimiser.step()
        moved[name] = weight.detach() - start
        state = optimiser.state[weight]
        large = [each for each in state.values() if isinstance(each, torch.Tensor)]
        large = [each for each in large if each.numel() == weight.numel()]
        assert {each.element_size() for each in large} == {4 if name == "adamw" else 1}
    difference = moved["adamw8bit"] - moved["adamw"]
    assert 0 < float(difference.norm()) < 0.1 * float(moved["adamw"].norm())


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = change(make_config(), {"training.optimiser": "adamw8bit"}, "test")
    with pytest.raises(ConfigError, match="needs bitsandbytes.*pip install 'mmrec.lowbit.'"):
        make_optimiser(build(config), config)
