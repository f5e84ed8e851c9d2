import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from encoder_families import CLIP_VIT, MAKERS, Make, build, pictures
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from encoders.encoder import find_unused_parameters
from encoders.image import ImageTransform, SmallImageEncoder, pool_grid
from encoders.image_timm import timm_transform
from encoders.image_towers import (
    build_open_clip,
    build_timm,
    build_torchvision,
    load_image_encoder,
)

families = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@families
def test_every_family_keeps_the_rules(make: Make) -> None:
    """One test a family, since building it costs more than any of the checks."""
    encoder = build(make)
    first, second = pictures(encoder, 2)
    inputs = encoder.transform.collate([first, None, second])
    states = encoder.below(inputs)
    tokens = encoder(inputs)

    M, T, W = tokens.values.shape
    assert (M, T, W) == (3, encoder.num_tokens, encoder.width)
    assert states.values.shape == (3, encoder.num_tokens, encoder.state_width)
    assert T in (16, 17) and int(tokens.mask[0].sum()) > 1
    assert encoder.pooled(tokens).shape == (3, encoder.width)
    assert torch.equal(encoder.above(states).values, tokens.values)

    assert not tokens.mask[1].any() and not tokens.values[1].any()
    inputs["images"][1] = torch.nan
    assert torch.equal(encoder(inputs).values, tokens.values)
    alone = encoder(encoder.transform.collate([first]))
    # random weights without batch statistics may grow: inception's tokens reach 1e11
    scale = float(tokens.values.detach().abs().max())
    torch.testing.assert_close(alone.values, tokens.values[:1], atol=1e-5 * scale, rtol=1e-4)
    nothing = encoder(encoder.transform.collate([None]))
    assert not nothing.mask.any() and not encoder.pooled(nothing).isnan().any()

    before = encoder.fingerprint()
    encoder.train()
    assert find_unused_parameters(encoder, lambda: encoder(inputs).values.pow(2)) == []
    assert encoder.fingerprint() == before
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1.0
    assert encoder.fingerprint() != before


@pytest.mark.parametrize(
    "make",
    [MAKERS["timm-efficientnet"], MAKERS["torchvision-resnet"], MAKERS["open_clip-resnet"]],
    ids=["timm", "torchvision", "open_clip"],
)
def test_batch_norm_stays_on_running_statistics(make: Make) -> None:
    encoder = build(make)
    parent = nn.ModuleDict({"image": encoder})
    parent.train()
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert encoder.training and norms and not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    statistics = {k: v.clone() for k, v in encoder.named_buffers()}
    inputs = encoder.transform.collate(pictures(encoder, 3))
    train_values = encoder(inputs).values
    assert torch.equal(train_values, encoder.eval()(inputs).values)
    assert all(torch.equal(v, statistics[k]) for k, v in encoder.named_buffers())


def test_a_picture_of_224_pixels_gives_sixteen_different_tokens() -> None:
    encoder = build(lambda: build_timm("tf_efficientnet_lite0"))
    tokens = encoder(encoder.transform.collate(pictures(encoder, 1)))
    assert tokens.values.shape == (1, 16, 1280) and bool(tokens.mask.all())
    assert len(torch.unique(tokens.values[0].detach(), dim=0)) == 16


def test_efficientnet_equals_timm_where_nothing_is_pooled() -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    encoder = build_timm(
        "tf_efficientnet_lite0",
        weights=model.state_dict(),
        transform=ImageTransform(size=128),  # a grid of 4 x 4
    )
    # in float64: the two memory layouts add in another order, which fp32 shows after forty layers
    model, encoder = model.double(), encoder.double()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    inputs = {"images": images, "present": torch.ones(2, dtype=torch.bool)}
    with torch.no_grad():
        expected = model.forward_features(images)
        tokens = encoder(inputs)
        pooled = model.forward_head(expected, pre_logits=True)
    flat = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.values, flat, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(encoder.pooled(tokens), pooled, atol=1e-10, rtol=1e-8)


def test_torchvision_resnet_equals_its_own_pooling() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    encoder = build_torchvision("resnet18", weights=model.state_dict())
    images = torch.randn(2, 3, 128, 128)
    inputs = {"images": images, "present": torch.ones(2, dtype=torch.bool)}
    model.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.pooled(encoder(inputs)), model(images), atol=1e-5, rtol=1e-4
        )


def test_clip_vit_pooled_is_clips_own_vector() -> None:
    torch.manual_seed(0)
    text = {"context_length": 4, "vocab_size": 9, "width": 64, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(CLIP_VIT["embed_dim"], CLIP_VIT["vision_cfg"], text).eval()
    encoder = build_open_clip(CLIP_VIT, weights=clip.state_dict())
    images = torch.randn(2, 3, 64, 64)
    inputs = {"images": images, "present": torch.ones(2, dtype=torch.bool)}
    with torch.no_grad():
        pooled = encoder.pooled(encoder(inputs))
        torch.testing.assert_close(pooled, clip.encode_image(images), atol=1e-5, rtol=1e-4)


def test_timm_vit_pooled_is_its_class_token() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    encoder = build_timm("vit_tiny_patch16_224", weights=model.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pooled = encoder.pooled(encoder({"images": images, "present": torch.tensor([True])}))
        torch.testing.assert_close(pooled, model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 7), (4, 4), (9, 5), (2, 3)], ids=str)
def test_grid_pooling_equals_adaptive_average(shape: tuple[int, int]) -> None:
    grid = torch.randn(2, 3, *shape)
    tokens = pool_grid(grid, 4)
    size = (min(shape[0], 4), min(shape[1], 4))
    expected = nn.functional.adaptive_avg_pool2d(grid, size).flatten(2).transpose(1, 2)
    assert tokens.values.shape == (2, 16, 3)
    assert tokens.mask.sum(dim=1).tolist() == [size[0] * size[1]] * 2
    torch.testing.assert_close(tokens.values[tokens.mask].view_as(expected), expected)


@pytest.mark.parametrize("shape", [(300, 200), (90, 131), (224, 224)], ids=str)
def test_preprocessing_equals_each_backend(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    model = timm.create_model("mobilenetv3_small_050")
    config = timm.data.resolve_data_config({}, model=model)
    theirs = timm.data.create_transform(**config)(image)
    torch.testing.assert_close(timm_transform(model)(pixels), theirs, atol=1e-6, rtol=0)

    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    ours = build_torchvision("resnet18").transform(pixels)
    torch.testing.assert_close(ours, preset(image), atol=1e-6, rtol=0)

    theirs = open_clip.image_transform(64, is_train=False)(image)
    torch.testing.assert_close(
        build_open_clip(CLIP_VIT).transform(pixels), theirs, atol=1e-6, rtol=0
    )


def test_transform_of_bytes_minus_127_over_128() -> None:
    transform = ImageTransform(size=4, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(transform(pixels), expected, atol=1e-6, rtol=0)


def test_transform_survives_banners_pickles_and_names_bad_input() -> None:
    transform = ImageTransform(size=32, resize_side=40)
    assert transform(np.zeros((2, 30000, 3), np.uint8)).shape == (3, 32, 32)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy.fingerprint() == transform.fingerprint()
    assert ImageTransform(size=33, resize_side=40).fingerprint() != transform.fingerprint()
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        transform(np.zeros((5, 5), np.uint8))


def test_folder_round_trips(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "library": "timm", "architecture": "tf_efficientnet_lite0", "size": 96,
        "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_image_encoder(tmp_path)
    assert encoder.transform.size == 96 and encoder.transform.std == (0.25, 0.25, 0.25)
    direct = build_timm("tf_efficientnet_lite0", weights=model.state_dict())
    assert encoder.fingerprint() == direct.fingerprint()

    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "resnet10t"}))
    with pytest.raises(ValueError, match="weights do not fit 'resnet10t'"):
        load_image_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "library": "keras"}))
    with pytest.raises(ValueError, match="allowed are timm, torchvision, open_clip"):
        load_image_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_image_encoder(tmp_path)


def test_what_cannot_give_tokens_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        build_timm("resnet19")
    with pytest.raises(ValueError, match="vit_base_patch32_siglip_256.*attention"):
        build_timm("vit_base_patch32_siglip_256")
    with pytest.raises(ValueError, match="'vgg11' is not known"):
        build_torchvision("vgg11")
    with pytest.raises(ValueError, match="no model 'ViT-Z-9'"):
        build_open_clip("ViT-Z-9")
    with pytest.raises(ValueError, match="use library timm"):
        build_open_clip("ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match="pictures of 64, not 32"):
        build_open_clip(CLIP_VIT, transform=ImageTransform(size=32))
    for width in (0, 16, 31, 56):
        with pytest.raises(ValueError, match=f"width is {width}: allowed are 32, 64"):
            SmallImageEncoder(width=width)


def test_small_encoder_is_small_and_sees_position() -> None:
    encoder = SmallImageEncoder().eval()
    assert sum(p.numel() for p in encoder.parameters()) < 400_000
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32] = (250, 20, 20)
    with torch.no_grad():
        tokens = encoder(encoder.transform.collate([encoder.transform(pixels)])).values[0]
    assert float((tokens[0] - tokens[15]).norm()) > 0.1
