"""Every YAML that ships reads as what it is, and says in its first lines what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.catalogue import load_catalogue
from mmrec.config import dump_config, load_config
from mmrec.tuning.space import load_search

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
CATALOGUES = sorted((CONFIGS / "catalogues").glob("*.yaml"))
SPACES = sorted((CONFIGS / "tune").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_catalogue_loads(path: Path) -> None:
    assert load_catalogue(path).modalities


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_space_loads(path: Path) -> None:
    assert load_search(path, load_config(CONFIGS / "movielens-1m-id.yaml")).space


@pytest.mark.parametrize("path", [*RUNS, *CATALOGUES, *SPACES], ids=lambda path: path.stem)
def test_header_says_how_it_is_used(path: Path) -> None:
    header = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    command = {"catalogues": "mmrec prepare", "tune": "mmrec tune"}.get(
        path.parent.name, "mmrec train"
    )
    assert any(command in line for line in header), f"{path.name}: the command is not named"
