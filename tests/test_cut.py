"""A cut encoder is the whole one, forward and backward, at every cut of every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoder_families import (
    MAKERS,
    TEXTS,
    WORDS,
    build,
    make_bert,
    make_distilbert,
    make_roberta,
    make_small_text,
    pictures,
)
from transformers import ASTConfig, ASTModel

from encoders.audio import AudioEncoder, AudioTransform
from encoders.cut import StackedEncoder
from encoders.encoder import Inputs
from encoders.musicnn import NUM_MELS, PATCH_FRAMES, MusicEncoder
from encoders.pictures import PicturesEncoder, PicturesTransform
from encoders.spectrogram import SpectrogramEncoder, WindowEncoder
from encoders.text import TextTransform, train_vocabulary
from encoders.tokens import Tokens
from encoders.video import VideoEncoder, VideoTransform

Case = Callable[[], tuple[StackedEncoder, Inputs]]


def text_case(make: Callable[[], StackedEncoder]) -> Case:
    def case() -> tuple[StackedEncoder, Inputs]:
        transform = TextTransform(train_vocabulary(TEXTS, 200), max_length=48)
        encoder: Any = make()
        encoder.max_length = 48
        samples = [transform(TEXTS[0]), None, transform(" ".join(WORDS[:3]))]
        return encoder.eval(), transform.collate(samples)

    return case


def image_case(name: str) -> Case:
    def case() -> tuple[StackedEncoder, Inputs]:
        encoder = build(MAKERS[name])
        first, second = pictures(encoder, 2)
        return encoder, encoder.transform.collate([first, None, second])

    return case


def audio_case() -> tuple[StackedEncoder, Inputs]:
    torch.manual_seed(0)
    transform = AudioTransform(max_seconds=1.0)
    encoder = AudioEncoder(max_frames=transform.max_frames)
    mel = torch.randn(3, 90, 64)
    mask = torch.arange(90) < torch.tensor([[90], [0], [37]])
    return encoder.eval(), {"mel": mel, "mask": mask, "present": mask.any(1)}


def music_case() -> tuple[StackedEncoder, Inputs]:
    torch.manual_seed(0)
    encoder = MusicEncoder(max_patches=3, num_tokens=2)
    mel = torch.rand(3, 3, PATCH_FRAMES, NUM_MELS) * 4
    mask = torch.tensor([[True] * 3, [False] * 3, [True, False, False]])
    return encoder.eval(), {"mel": mel, "mask": mask, "present": mask.any(1)}


def video_case(name: str) -> Case:
    def case() -> tuple[StackedEncoder, Inputs]:
        image = build(MAKERS[name])
        encoder = VideoEncoder(image, most=3, num_tokens=4)
        transform = VideoTransform(image.transform, num_frames=3)
        first, second, third = (each for each in pictures(image, 3) if each is not None)
        frames = [torch.stack([first, second, third]), None, second.unsqueeze(0)]
        return encoder.eval(), transform.collate(frames)

    return case


def pictures_case(name: str) -> Case:
    def case() -> tuple[StackedEncoder, Inputs]:
        image = build(MAKERS[name])
        encoder = PicturesEncoder(image, most=2, num_tokens=8)
        first, second = (each for each in pictures(image, 2) if each is not None)
        transform = PicturesTransform(image.transform, most=2)
        items = [torch.stack([first, second]), None, second.unsqueeze(0)]
        return encoder.eval(), transform.collate(items)

    return case


def spectrogram_case() -> tuple[StackedEncoder, Inputs]:
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_length=64, num_mel_bins=32,
    )  # fmt: skip
    window = WindowEncoder(ASTModel(config).eval(), num_tokens=3)
    encoder = SpectrogramEncoder(window, most=2, num_tokens=4)
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    inputs = {"images": torch.randn(3, 2, 64, 32), "mask": mask, "present": mask.any(1)}
    return encoder.eval(), inputs


CASES: dict[str, Case] = {
    "bert": text_case(make_bert),
    "roberta": text_case(make_roberta),
    "distilbert": text_case(make_distilbert),
    "small-text": text_case(make_small_text),
    **{name: image_case(name) for name in MAKERS if "whole" not in name},
    "audio": audio_case,
    "musicnn": music_case,
    "spectrogram": spectrogram_case,
    "pictures-resnet": pictures_case("torchvision-resnet"),
    "pictures-vit": pictures_case("timm-vit"),
    "video-resnet": video_case("torchvision-resnet"),
    "video-vit": video_case("open_clip-vit"),
    "video-small": video_case("small"),
}
families = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def gradients(encoder: StackedEncoder, tokens: Tokens) -> dict[str, torch.Tensor]:
    encoder.zero_grad(set_to_none=True)
    # weights that differ from token to token: a norm's outputs sum to nothing
    weight = torch.linspace(-1, 1, tokens.values.numel()).view_as(tokens.values)
    (tokens.values * weight).sum().backward()
    return {
        name: each.grad.clone()
        for name, each in encoder.named_parameters()
        if each.grad is not None
    }


@families
def test_split_equals_whole_forward_and_backward_at_every_cut(case: Case) -> None:
    encoder, inputs = case()
    whole = encoder(inputs)
    expected = gradients(encoder, whole)
    num_blocks = len(encoder.stack)
    assert num_blocks >= 1
    for blocks in range(1, num_blocks + 1):
        encoder.cut_at(blocks)
        states = encoder.below(inputs)
        assert states.values.shape == (3, encoder.state_tokens, encoder.state_width)
        assert not states.values.requires_grad
        assert not states.mask[1].any() and not states.values[1].any()
        tokens = encoder.above(states)
        assert torch.equal(tokens.mask, whole.mask)
        scale = float(whole.values.detach().abs().max())
        torch.testing.assert_close(tokens.values, whole.values, atol=1e-5 * scale, rtol=1e-4)

        found = gradients(encoder, tokens)
        trained = {name for name, each in encoder.named_parameters() if each.requires_grad}
        assert found.keys() == trained
        below = {name for name, _ in encoder.parameters_below()}
        assert not trained & below
        assert trained | below == set(encoder.state_dict()) - above_buffers(encoder)
        for name, gradient in found.items():
            size = float(expected[name].abs().max())
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-4 * size + 1e-7, rtol=1e-3, msg=name
            )


def above_buffers(encoder: StackedEncoder) -> set[str]:
    """Statistics of norms above the cut: not trained, not below."""
    parameters = {name for name, _ in encoder.named_parameters()}
    below = {name for name, _ in encoder.parameters_below()}
    return set(encoder.state_dict()) - parameters - below


def saved_bytes(run: Callable[[], Tokens]) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes)


@families
def test_checkpointing_gives_equal_gradients_and_keeps_less(case: Case) -> None:
    encoder, inputs = case()
    expected = gradients(encoder, encoder(inputs))
    whole = saved_bytes(lambda: encoder(inputs))
    encoder.checkpointing = True
    assert saved_bytes(lambda: encoder(inputs)) < 0.8 * whole
    found = gradients(encoder, encoder(inputs))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        size = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], atol=1e-5 * size + 1e-9, rtol=1e-4)


@families
def test_at_0_all_is_frozen_and_states_are_pooled(case: Case) -> None:
    encoder, inputs = case()
    whole = encoder(inputs)
    encoder.cut_at(0)
    states = encoder.below(inputs)
    assert states.values.shape == (3, encoder.num_tokens, encoder.last_width)
    # without gradients torch's attention takes another path, of other last bits
    torch.testing.assert_close(encoder.above(states).values, whole.values)
    assert not any(each.requires_grad for each in encoder.parameters())
