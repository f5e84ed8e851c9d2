"""Models of timm, taken apart into stem, blocks and head.

    model -> take_apart -> {stem, blocks, head, widths, ...}, the parts of an ImageEncoder

Known families are split at their blocks; any other is taken whole, with nothing above its cut.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from encoders.encoder import find_unused_parameters
from encoders.image import ImageTransform


def take_apart(model: Any) -> dict[str, Any]:
    """Return the parts of a timm model.

    Args:
        model: made with num_classes=0; its modules are moved, do not use it afterwards.

    Raises:
        ValueError: it does not give tokens.
    """
    return FAMILIES.get(type(model).__name__, _whole)(model)


def timm_transform(model: Any) -> ImageTransform:
    """Return timm's evaluation transform of a model."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config({}, model=model)
    size = int(config["input_size"][-1])
    squash = config["crop_mode"] == "squash" and config["crop_pct"] == 1.0
    return ImageTransform(
        size=size,
        mean=config["mean"],
        std=config["std"],
        resize="squash" if squash else "crop",
        resize_side=math.floor(size / config["crop_pct"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def collect_parts(
    stem: nn.Module, blocks: Any, head: nn.Module, *, state_width: int, width: int, **more: Any
) -> dict[str, Any]:
    """Name the parts as ImageEncoder takes them."""
    parts = {"stem": stem, "blocks": list(blocks), "head": head}
    return {**parts, "state_width": state_width, "width": width, **more}


class MapHead(nn.Module):
    """Applies layers for maps (M, C, h, w) to tokens (M, T, C), each by itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Map (M, T, C) to (M, T, C')."""
        maps: Tensor = self.layers(values.transpose(1, 2).unsqueeze(-1))  # (M, C, T, 1)
        return maps.squeeze(-1).transpose(1, 2)


class TransformerStem(nn.Module):
    """What a vision transformer does before its blocks; its blocks and head are taken out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (M, 3, S, S) to a sequence (M, N, C)."""
        states = self.model._pos_embed(self.model.patch_embed(images))
        normed: Tensor = self.model.norm_pre(self.model.patch_drop(states))
        return normed


class WholeStem(nn.Module):
    """A timm model whose blocks are not told apart."""

    def __init__(self, model: Any, channels_last: bool) -> None:
        super().__init__()
        self.model, self.channels_last = model, channels_last

    def forward(self, images: Tensor) -> Tensor:
        """Map images (M, 3, S, S) to a map (M, C, h, w) or a sequence (M, N, C)."""
        states: Tensor = self.model.forward_features(images)
        return states.permute(0, 3, 1, 2) if self.channels_last else states


def _efficientnet(model: Any) -> dict[str, Any]:
    head = MapHead(model.conv_head, model.bn2)
    before, after = model.conv_head.in_channels, model.conv_head.out_channels
    stem = nn.Sequential(model.conv_stem, model.bn1)
    return collect_parts(stem, model.blocks, head, state_width=before, width=after)


def _mobilenet(model: Any) -> dict[str, Any]:
    head = MapHead(model.conv_head, model.norm_head, model.act2)
    before, after = model.conv_head.in_channels, model.conv_head.out_channels
    stem = nn.Sequential(model.conv_stem, model.bn1)
    return collect_parts(stem, model.blocks, head, state_width=before, width=after)


def _resnet(model: Any) -> dict[str, Any]:
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    blocks = (model.layer1, model.layer2, model.layer3, model.layer4)
    width = model.num_features
    return collect_parts(stem, blocks, nn.Identity(), state_width=width, width=width)


def _convnext(model: Any) -> dict[str, Any]:
    head = MapHead(model.norm_pre, model.head.norm)
    width = model.num_features
    return collect_parts(model.stem, model.stages, head, state_width=width, width=width)


def _vision_transformer(model: Any) -> dict[str, Any]:
    if model.attn_pool is not None:
        name = model.pretrained_cfg["architecture"]
        raise ValueError(f"timm model '{name}' pools by attention, which tokens cannot stand for")
    blocks, head = list(model.blocks), nn.Sequential(model.norm, model.fc_norm)
    model.blocks = model.norm = model.fc_norm = nn.Identity()
    width, prefix = model.num_features, model.num_prefix_tokens
    classed = bool(model.has_class_token) and model.global_pool == "token"
    return collect_parts(
        TransformerStem(model), blocks, head, state_width=width, width=width,
        num_prefix_tokens=prefix, class_token=classed, has_maps=False,
    )  # fmt: skip


def _whole(model: Any) -> dict[str, Any]:
    """Take a model of another family whole: nothing lies above its cut at 0.

    A copy without memory, on the meta device, shows what comes out and which parameters it needs.
    """
    import timm

    name = model.pretrained_cfg["architecture"]
    size = timm_transform(model).size
    with torch.device("meta"):
        shadow: Any = timm.create_model(name, num_classes=0).eval()
        images = torch.empty(2, 3, size, size)
        states = shadow.forward_features(images)
    if not isinstance(states, Tensor) or states.ndim not in (3, 4):
        raise ValueError(f"timm model '{name}' does not give a grid of features")
    unused = find_unused_parameters(shadow, lambda: shadow.forward_features(images))
    if unused:
        raise ValueError(
            f"timm model '{name}' is not supported: its features leave {unused[0]} out"
        )
    last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if states.ndim == 3 and math.isqrt(states.shape[1] - prefix) ** 2 != states.shape[1] - prefix:
        raise ValueError(f"timm model '{name}' does not give a square grid of features")
    width = int(states.shape[1 if states.ndim == 4 and not last else -1])
    return collect_parts(
        WholeStem(model, last and states.ndim == 4), [], nn.Identity(),
        state_width=width, width=width, num_prefix_tokens=prefix,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "EfficientNet": _efficientnet,
    "MobileNetV3": _mobilenet,
    "ResNet": _resnet,
    "ConvNeXt": _convnext,
    "VisionTransformer": _vision_transformer,
}
