"""A run that reads a few directions of a frozen encoder's states: found at the start, then kept."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_run import tiny_config

from mmrec.config import Config, parse_config
from mmrec.loaded import LoadedRun, load_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]


def configure(components: int | None) -> Config:
    document = tiny_config().model_dump()
    document["encoders"] = {"image": {**document["encoders"]["image"], "components": components}}
    return parse_config(document)


def basis_of(loaded: LoadedRun) -> torch.Tensor:
    assert loaded.model.fusion is not None
    basis: torch.Tensor = loaded.model.fusion.get_buffer("projections.image.basis")
    return basis


def test_components_are_found_before_the_first_step_and_stay(tiny_data: Path) -> None:
    folder = tiny_data.parent / "components"
    first = configure(3)
    short = parse_config(
        {**first.model_dump(), "training": {**first.training.model_dump(), "max_steps": 1}}
    )
    train(short, tiny_data, folder / "short")
    train(first, tiny_data, folder / "long")
    bases = [basis_of(load_run(folder / name)) for name in ("short", "long")]
    assert bases[0].shape[1] == 3
    assert torch.equal(*bases)
    products = bases[0].T @ bases[0]  # orthogonal, of one length: not the identity it began with
    torch.testing.assert_close(products, products[0, 0] * torch.eye(3))
    assert not torch.equal(bases[0], torch.eye(*bases[0].shape))
