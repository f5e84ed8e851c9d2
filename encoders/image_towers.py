"""Backbones of timm, torchvision and open_clip, taken apart into stem, blocks and head.

    name [+ folder of weights] -> the library's model -> ImageEncoder(stem | blocks | head)

A folder holds model.safetensors and config.json: {library, architecture, size, mean, std, ...}.
What the library's classifier or pooling would need and tokens do not is left out, so that every
parameter gets a gradient.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.image import ImageEncoder, ImageTransform
from encoders.image_timm import collect_parts, take_apart, timm_transform

TORCHVISION_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def load_image_encoder(folder: Path | str, *, grid_side: int = 4) -> ImageEncoder:
    """Load the backbone of a folder of weights.

    Args:
        folder: with config.json and model.safetensors.
        grid_side: the grid is pooled to grid_side x grid_side tokens.

    Raises:
        ValueError: a file is missing, the library or architecture is not known, or the tensors
            are not those of the architecture.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: an image encoder's folder needs one")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    library = config.get("library", "timm")
    if "architecture" not in config:
        raise ValueError(f"{folder / 'config.json'} does not name its 'architecture'")
    if library not in BUILDERS:
        raise ValueError(
            f"library '{library}' in {folder / 'config.json'}: allowed are {', '.join(BUILDERS)}"
        )
    weights = load_file(folder / "model.safetensors")
    transform = ImageTransform.from_config(config) if "size" in config else None
    return BUILDERS[library](
        config["architecture"], weights=weights, transform=transform, grid_side=grid_side
    )


def build_timm(
    architecture: str,
    *,
    weights: Mapping[str, Tensor] | None = None,
    transform: ImageTransform | None = None,
    pretrained: bool = False,
    grid_side: int = 4,
) -> ImageEncoder:
    """Build an encoder over a timm model; EfficientNets are cut before their widening head.

    Args:
        architecture: timm's name.
        weights: state dict with timm's names; without it weights are random, or from the hub.
        transform: how pictures are prepared; timm's own evaluation transform if not given.
        pretrained: let timm fetch its weights where a hub is reachable.
        grid_side: the grid is pooled to grid_side x grid_side tokens.

    Raises:
        ValueError: timm has no such model, or it does not give tokens.
    """
    import timm

    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:5]) or "none like it"
        raise ValueError(f"timm has no model '{architecture}'; it has {near}")
    sized: dict[str, Any] = {}
    described = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    if transform is not None and described is not None and described.fixed_input_size:
        sized["img_size"] = transform.size
    model = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **sized)
    if weights is not None:
        _load(model, weights, architecture, skip=_classifiers(model.pretrained_cfg))
    return ImageEncoder(
        **take_apart(model),
        transform=transform or timm_transform(model),
        arguments={"library": "timm", "architecture": architecture},
        grid_side=grid_side,
    ).eval()


def build_torchvision(
    architecture: str,
    *,
    weights: Mapping[str, Tensor] | None = None,
    transform: ImageTransform | None = None,
    grid_side: int = 4,
) -> ImageEncoder:
    """Build an encoder over a ResNet of torchvision.

    Args:
        architecture: one of TORCHVISION_RESNETS.
        weights: state dict with torchvision's names.
        transform: how pictures are prepared; that of the IMAGENET1K_V1 weights if not given.
        grid_side: the grid is pooled to grid_side x grid_side tokens.

    Raises:
        ValueError: another architecture.
    """
    import torchvision

    if architecture not in TORCHVISION_RESNETS:
        allowed = ", ".join(TORCHVISION_RESNETS)
        raise ValueError(f"torchvision model '{architecture}' is not known here: {allowed}")
    model = torchvision.models.get_model(architecture, weights=None)
    width = model.fc.in_features
    model.fc = nn.Identity()
    if weights is not None:
        _load(model, weights, architecture, skip=("fc",))
    preset = ImageTransform(size=224, resize_side=256, interpolation="bilinear")
    return ImageEncoder(
        stem=nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool),
        blocks=[model.layer1, model.layer2, model.layer3, model.layer4],
        head=nn.Identity(),
        state_width=width,
        width=width,
        transform=transform or preset,
        arguments={"library": "torchvision", "architecture": architecture},
        grid_side=grid_side,
    ).eval()


def build_open_clip(
    architecture: str | Mapping[str, Any],
    *,
    weights: Mapping[str, Tensor] | None = None,
    transform: ImageTransform | None = None,
    grid_side: int = 4,
) -> ImageEncoder:
    """Build an encoder over the visual tower of a CLIP model.

    A vision transformer gives its class token and the grid, each through ln_post and the
    projection. A ResNet tower's attention pooling needs the whole grid, so each token goes through
    its value and output projections alone, as MaskCLIP (Zhou et al., 2022) does for dense labels;
    `pooled` of it is the mean, not CLIP's own vector.

    Args:
        architecture: open_clip's name, or a model configuration of its form.
        weights: state dict of the tower, or of the whole CLIP model (names start with visual.).
        transform: how pictures are prepared; OpenAI's if not given.
        grid_side: the grid is pooled to grid_side x grid_side tokens.

    Raises:
        ValueError: open_clip has no such model, or its tower is of another kind.
    """
    import open_clip

    name, config = "of this configuration", architecture
    if isinstance(architecture, str):
        name, config = architecture, open_clip.get_model_config(architecture)
    if not isinstance(config, Mapping):
        raise ValueError(f"open_clip has no model '{name}'; see open_clip.list_models()")
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        raise ValueError(
            f"open_clip's '{name}' has a timm tower: use library timm with architecture "
            f"{vision['timm_model_name']}"
        )
    # The text tower is not wanted: the smallest that the public class can build.
    text = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    quick = bool(config.get("quick_gelu", False))
    tower = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=quick).visual
    if weights is not None:
        whole = any(key.startswith("visual.") for key in weights)
        own = {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}
        _load(tower, own if whole else weights, name, skip=())
    parts = _clip_resnet(tower) if hasattr(tower, "attnpool") else _clip_vit(tower, name)
    size = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
    if transform is not None and transform.size != size:
        raise ValueError(f"open_clip's '{name}' takes pictures of {size}, not {transform.size}")
    preset = ImageTransform(
        size=size, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    return ImageEncoder(
        **parts,
        transform=transform or preset,
        arguments={"library": "open_clip", "architecture": json.loads(json.dumps(config))},
        grid_side=grid_side,
    ).eval()


BUILDERS: dict[str, Callable[..., ImageEncoder]] = {
    "timm": build_timm,
    "torchvision": build_torchvision,
    "open_clip": build_open_clip,
}


class ProjectionHead(nn.Module):
    """A norm and a product with a matrix, as at the end of CLIP's vision transformer."""

    def __init__(self, norm: nn.Module, projection: nn.Parameter) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, values: Tensor) -> Tensor:
        """Map (M, T, C) to (M, T, C')."""
        normed: Tensor = self.norm(values)
        return normed @ self.projection


class ClipStem(nn.Module):
    """What CLIP's vision transformer does before its blocks; its blocks and head are taken out."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower: Any = tower

    def forward(self, images: Tensor) -> Tensor:
        """Map images (M, 3, S, S) to a sequence (M, N, C)."""
        embedded: Tensor = self.tower._embeds(images)
        return embedded


def _clip_resnet(tower: Any) -> dict[str, Any]:
    first = (tower.conv1, tower.bn1, tower.act1, tower.conv2, tower.bn2, tower.act2)
    stem = nn.Sequential(*first, tower.conv3, tower.bn3, tower.act3, tower.avgpool)
    pool = tower.attnpool
    blocks = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
    before, after = pool.v_proj.in_features, pool.c_proj.out_features
    head = nn.Sequential(pool.v_proj, pool.c_proj)
    return collect_parts(stem, blocks, head, state_width=before, width=after)


def _clip_vit(tower: Any, name: str) -> dict[str, Any]:
    if getattr(tower, "attn_pool", None) is not None or not hasattr(tower, "ln_post"):
        raise ValueError(f"open_clip's '{name}' pools by attention, which tokens cannot stand for")
    blocks, head = list(tower.transformer.resblocks), ProjectionHead(tower.ln_post, tower.proj)
    before, after = tower.proj.shape
    tower.transformer = tower.ln_post = nn.Identity()
    tower.proj = None
    return collect_parts(
        ClipStem(tower), blocks, head, state_width=before, width=after,
        num_prefix_tokens=1, class_token=tower.pool_type == "tok", has_maps=False,
    )  # fmt: skip


def _classifiers(config: Any) -> tuple[str, ...]:
    named = config.get("classifier") or ()
    return ((named,) if isinstance(named, str) else tuple(named)) + ("AuxLogits",)


def _load(
    model: nn.Module, weights: Mapping[str, Tensor], architecture: str, *, skip: tuple[str, ...]
) -> None:
    """Load all tensors but those of a classifier.

    Raises:
        ValueError: a tensor is missing, has no place, or has another shape.
    """
    own = {k: v for k, v in weights.items() if not k.startswith(tuple(f"{s}." for s in skip))}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"weights do not fit '{architecture}': {reason}") from error
