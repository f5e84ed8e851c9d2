"""A plan: the data, the complete model, and what is taken away from it or put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ablation.grid import Figure, Grid

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMPLETE = "complete"
DEFAULT_PLAN = HERE / "movielens-1m.yaml"
FIGURES: tuple[Figure, ...] = (
    ("warm", "ndcg@10", "warm NDCG@10"),
    ("cold_among_cold", "ndcg@10", "cold among cold NDCG@10"),
    ("cold", "hr@10", "cold among all HR@10"),
)


@dataclass(frozen=True)
class Part:
    """A part of the model and the settings that take it away."""

    name: str
    settings: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """A folder name."""
        letters = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(word for word in letters.split("-") if word)


@dataclass(frozen=True)
class Plan:
    """Data, the complete model, and what is taken away from it; see the YAMLs beside this file.

    Attributes:
        users: where the data have no log, how many to simulate: arguments of
            simulated.source.write_source.
        grid: of modalities and fusions; its first cell is the complete model.
        figures: slice, metric and title of each column; slices are those of ranks and, of warm
            targets, `head`, `middle` and `tail`.
        left_out: of a plan with a grid, whether the complete model is also asked without each
            modality, beside the models that were trained without it (left_out.py).
    """

    catalogue: str
    source: str
    prepare: tuple[str, ...]
    weights: tuple[str, ...]
    config: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]
    users: Mapping[str, Any] | None = None
    grid: Grid | None = None
    figures: tuple[Figure, ...] = FIGURES
    left_out: bool = False

    def settings_of(self, part: Part, seed: int) -> dict[str, Any]:
        """What `mmrec train` is told to change."""
        return {**self.settings, **part.settings, "training.seed": seed}


def load_plan(path: Path) -> Plan:
    """Reads a plan; the complete model comes first."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = [Part(COMPLETE, {})]
    if "grid" in document:
        grid = Grid(**{name: tuple(each) for name, each in document["grid"].items()})
        config = yaml.safe_load((ROOT / document["config"]).read_text(encoding="utf-8"))
        cells = grid.cells()[1:]
        parts += [Part(cell.name, cell.settings(config["encoders"])) for cell in cells]
        document["grid"] = grid
    parts += [Part(**each) for each in document.pop("parts")]
    document["figures"] = tuple(tuple(each) for each in document.get("figures", FIGURES))
    for name in ("prepare", "weights", "seeds"):
        document[name] = tuple(document[name])
    return Plan(**document, parts=tuple(parts))
