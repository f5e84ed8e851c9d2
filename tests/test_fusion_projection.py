"""The two ends of item fusion: the projection of a modality's tokens, and the output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fusion_inputs import D, make_fusion, make_tokens
from sklearn.decomposition import PCA
from torch import Tensor, nn

from encoders.tokens import Tokens, masked
from fusion.item import Modality, Output, TokenProjection


def test_feature_dropout_silences_a_channel_in_all_tokens_of_an_item() -> None:
    projection = TokenProjection(Modality(6, 5), width=6, feature_dropout=0.5)
    nn.init.eye_(projection.projection.weight)
    for silent in (projection.projection.bias, projection.modality, projection.position):
        nn.init.zeros_(silent)
    tokens = make_tokens()["text"]
    heard = projection(tokens) != 0
    spoken = projection.norm(tokens.values) != 0
    share = heard[tokens.mask].float().mean()
    assert 0.2 < share < 0.8
    for item in range(7):
        rows = heard[item][tokens.mask[item]]
        assert (rows == rows[0]).all() and rows.shape[1] == 6  # one draw an item and channel
    assert (projection.eval()(tokens) != 0).equal(spoken)


def fitted(k: int, *, scale: float = 1.0) -> tuple[TokenProjection, Tokens]:
    """A projection of k components, and 60 items' tokens that differ in three directions most."""
    random = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(10, 10, generator=random)).Q
    spread = torch.tensor([4.0, 3.0, 2.0] + [0.05] * 7)
    values = torch.randn(60, 1, 10, generator=random) * spread @ directions.T
    values = values + 0.01 * torch.randn(60, 4, 10, generator=random)
    tokens = masked(values, torch.rand(60, 4, generator=random) < 0.7)
    torch.manual_seed(0)
    projection = TokenProjection(
        Modality(10, 4, components=k, scale=scale), width=D, feature_dropout=0.0
    )
    projection.fit(projection.pooled(tokens))
    return projection, tokens


def test_components_are_those_of_principal_component_analysis() -> None:
    projection, tokens = fitted(3)
    pooled = torch.stack(
        [
            F.layer_norm(values[mask], (10,)).mean(0)
            for values, mask in zip(tokens.values, tokens.mask, strict=True)
            if mask.any()
        ]
    )
    assert 40 < pooled.shape[0] < 60  # items without a token teach nothing
    reference = PCA(3).fit(pooled.double().numpy())
    found = (pooled - projection.centre) @ projection.basis
    wanted = torch.from_numpy(reference.transform(pooled.double().numpy())).float()
    ratio = found / wanted
    torch.testing.assert_close(ratio.abs(), torch.full_like(ratio, float(ratio[0, 0].abs())))
    assert (ratio.std(0) < 1e-3).all()  # up to one sign a direction, and one scale for all
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0))


def test_components_take_no_part_in_training_and_travel_with_the_weights() -> None:
    projection, tokens = fitted(3)
    names = {name for name, _ in projection.named_parameters()}
    assert names == {"projection.weight", "projection.bias", "modality", "position"}
    torch.manual_seed(1)
    other = TokenProjection(Modality(10, 4, components=3), width=D, feature_dropout=0.0)
    assert not torch.equal(other(tokens), projection(tokens))
    other.load_state_dict(projection.state_dict())
    assert torch.equal(other(tokens), projection(tokens))


def test_all_components_say_what_the_channels_say() -> None:
    projection, tokens = fitted(99)
    assert projection.num_components == 10  # no more than there are channels
    channels = F.layer_norm(tokens.values, (10,))
    # nine directions: a layer norm leaves the mean channel nothing
    rebuilt = (channels - projection.centre) @ projection.basis
    back, *_ = torch.linalg.lstsq(rebuilt.flatten(0, 1), channels.flatten(0, 1))
    torch.testing.assert_close((rebuilt @ back).var(0), channels.var(0), rtol=0.05, atol=1e-3)


def test_scale_weighs_a_modality_among_the_others() -> None:
    (plain, tokens), (faint, _) = fitted(3), fitted(3, scale=0.25)
    torch.testing.assert_close(faint(tokens), 0.25 * plain(tokens))
    loud, faintly = make_fusion("mean"), make_fusion("mean")
    faintly.projections["image"].scale = 1e-6
    given = make_tokens()
    without = {
        **given,
        "image": Tokens(torch.zeros_like(given["image"].values), given["image"].mask),
    }
    loud.eval(), faintly.eval()
    assert not torch.allclose(loud(given), loud(without), atol=1e-3)
    torch.testing.assert_close(faintly(given), faintly(without), atol=1e-5, rtol=0)


def test_output_follows_the_mean_and_never_uses_its_neighbours() -> None:
    torch.manual_seed(0)
    out = Output(5, D)
    out.mean.copy_(torch.randn(D))
    hidden, before = torch.randn(9, 5), out.mean.clone()
    wanted = F.normalize(out.projection(hidden) - before, dim=-1)
    torch.testing.assert_close(out.eval()(hidden), wanted)
    assert torch.equal(out.mean, before)  # in use it stays
    torch.testing.assert_close(out.train()(hidden), wanted)  # training changes gradients alone
    moved = 0.9 * before + 0.1 * out.projection(hidden).mean(0)
    torch.testing.assert_close(out.mean, moved)
    shared = torch.zeros(5, requires_grad=True)
    loss = (out(hidden + shared) * torch.randn(9, D)).sum()
    (gradient,) = torch.autograd.grad(loss, shared)
    assert gradient.abs().max() < 1e-5  # what all items share gets no gradient


def test_spread_contents_point_everywhere() -> None:
    torch.manual_seed(0)
    out = Output(32, D).eval()
    hidden = 5.0 + torch.randn(400, 32) * torch.linspace(0.1, 1, 32)
    pairs = torch.ones(400, 400).triu(1).bool()

    def cosines() -> Tensor:
        content: Tensor = out(hidden)
        return (content @ content.T)[pairs]

    assert cosines().mean() > 0.8
    out.spread(hidden)
    assert cosines().mean().abs() < 0.01 and cosines().abs().mean() < 0.3
