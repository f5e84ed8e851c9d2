"""The folder of a ranker: begun in RUN/.ranker, finished in RUN/ranker.

RUN/.ranker/config.json latents.npy · last/ and best/, a checkpoint an epoch
RUN/ranker/ see mmrec.retrieval.second_stage
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fusion.ranker import Ranker
from mmrec.errors import CheckpointMismatch
from mmrec.ranking.settings import RankerConfig
from mmrec.retrieval.second_stage import RANKER_FOLDER, SCHEMA

UNFINISHED = ".ranker"


def check_folder(run: Path, settings: RankerConfig, resume: bool) -> None:
    """Refuses to train over a ranker that is there; what was interrupted goes on or is dropped."""
    if (run / RANKER_FOLDER).exists():
        raise CheckpointMismatch(
            f"{run / RANKER_FOLDER}: the run has a ranker; remove the folder to train another"
        )
    kept = run / UNFINISHED / "config.json"
    if not resume:
        shutil.rmtree(run / UNFINISHED, ignore_errors=True)
    elif kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known != settings.model_dump():
            field = next(key for key, value in settings.model_dump().items() if known[key] != value)
            raise CheckpointMismatch(
                f"{kept}: ranker.{field} is {known[field]}, now {getattr(settings, field)} is "
                "given; resume with the settings it was begun with"
            )


def write_final(
    run: Path,
    work: Path,
    ranker: Ranker,
    settings: RankerConfig,
    document: dict[str, Any],
    model_hash: str,
) -> None:
    """RUN/ranker, aside and then renamed."""
    aside = run / f".{RANKER_FOLDER}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(
        {name: each.cpu().contiguous() for name, each in ranker.state_dict().items()},
        aside / "model.safetensors",
    )
    has_latents = (work / "latents.npy").is_file()
    if has_latents:
        shutil.copyfile(work / "latents.npy", aside / "latents.npy")
    write_json(aside / "metrics.json", document)
    write_json(
        aside / "config.json",
        {
            "schema": SCHEMA,
            "model_hash": model_hash,
            "settings": settings.model_dump(),
            "latents": has_latents,
            "in_use": document["in_use"],
            "calibration": _of_heads(document, "calibration"),
            "refused": _of_heads(document, "refused"),
        },
    )
    os.replace(aside, run / RANKER_FOLDER)
    shutil.rmtree(work)


def write_json(path: Path, document: Any) -> None:
    """A document with a line a value."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _of_heads(document: dict[str, Any], key: str) -> dict[str, Any]:
    """One thing that is known of some heads, by head."""
    return {name: each[key] for name, each in document["heads"].items() if key in each}
