"""RUN/manifest.json: what a run was made with, so that somebody else can make it again.

    schema
    config          sha256 of config.yaml
    data            catalogue -> data_hash, split, split_hash
    starts          one for each start of `mmrec train` on the run, resumed ones too:
        step        the step it went on from
        time        Unix seconds, UTC
        mmrec       version; `commit` and whether the checkout had `changes`, where it runs from one
        python, system, processor, cores, threads, device, ranks, precision, deterministic
        packages    version of every package that mmrec may use and that is installed

It holds no path and no name of a person or machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

import mmrec
from mmrec.build import Assembly

SCHEMA = 1
MANIFEST_FILE = "manifest.json"


def add_start(
    run: Path,
    assemblies: Mapping[str | None, Assembly],
    *,
    step: int,
    ranks: int,
    device: torch.device,
    precision: str,
) -> None:
    """Writes the manifest, or adds a start to it; a file that cannot be read is begun anew.

    Args:
        run: the run, with its config.yaml.
        assemblies: each catalogue's parts; of one alone, by None.
        step: of the checkpoint that training goes on from; 0 at the beginning.
        ranks: how many processes train.
        device: where the first of them does.
        precision: `fp32` or `bf16`.
    """
    path = run / MANIFEST_FILE
    start = {
        "step": step,
        "time": int(time.time()),
        "mmrec": version("mmrec"),
        **checkout(Path(mmrec.__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": ranks,
        "precision": precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "packages": installed_packages(),
    }
    document = {
        "schema": SCHEMA,
        "config": hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest(),
        "data": {
            each.data.manifest["name"] if name is None else name: {
                "data_hash": each.data.data_hash,
                "split": each.split.name,
                "split_hash": each.split.hash,
            }
            for name, each in assemblies.items()
        },
        "starts": [*_earlier(path), start],
    }
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_manifest(run: Path) -> dict[str, Any] | None:
    """The manifest of a run; None where it has none that can be read."""
    try:
        document = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(document, dict) and document.get("schema") == SCHEMA
    return document if known and document.get("starts") else None


def _earlier(path: Path) -> list[dict[str, Any]]:
    document = read_manifest(path.parent)
    return [] if document is None else document["starts"]


def checkout(root: Path) -> dict[str, Any]:
    """`commit` and `changes` of a git checkout of mmrec; nothing elsewhere.

    Args:
        root: the folder that holds the package. Installed into an environment that lies within
            somebody's own repository it is not that repository's root, whose commit says nothing.
    """
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {}
    commit = _said(git, root, "rev-parse", "HEAD")
    status = _said(git, root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return {}
    return {"commit": commit, "changes": bool(status)}


def _said(git: str, root: Path, *arguments: str) -> str | None:
    said = subprocess.run(
        [git, "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() if said.returncode == 0 else None


def installed_packages() -> dict[str, str]:
    """Name -> version of what mmrec requires, its extras too, as far as it is installed.

    Not the tools of its developers, on which no result depends.
    """
    found = {}
    for requirement in requires("mmrec") or []:
        if re.search(r"extra == ['\"]dev['\"]", requirement):
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def processor() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
