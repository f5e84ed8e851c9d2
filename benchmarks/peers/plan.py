"""The plan of a comparison: which arms on which tables, their settings and where these come from.

One YAML is one plan (quick.yaml, movielens-1m.yaml). An arm is a model with its settings on one
table; a table is one split with the slices that are shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
OURS, FLOORS = "mmrec", "floors"  # these two run in our own environment


class PlanError(Exception):
    """A plan, or what the command line asks of it, is wrong; one line."""


@dataclass(frozen=True)
class Table:
    """One split of the data and what is shown of it.

    Attributes:
        split: name of the split of the prepared folder.
        prepare: overrides of the catalogue that make the split.
        slices: shown, in order.
        select: slices whose mean NDCG@10 on validation chooses among the settings of a search.
    """

    name: str
    title: str
    split: str
    prepare: tuple[str, ...]
    slices: tuple[str, ...]
    select: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One model on one table.

    Attributes:
        table: name of the table.
        peer: of peer_PEER.py and requirements/PEER.txt; "floors" and "mmrec" are ours.
        settings: of the model; a search's choice is laid over them.
        origin: where the settings come from, for the table.
        search: settings to choose from on validation, with the first seed; empty for none.
        content: the model reads the frozen content vectors.
        deterministic: no seed changes it, so it runs once.
        minutes: expected on two cores, search included, for one seed; for the budget.
        limit_core_minutes: of processor time, threads together, after which training is ended and
            the best epoch so far is taken.
    """

    table: str
    name: str
    peer: str
    settings: Mapping[str, Any]
    origin: str
    search: tuple[Mapping[str, Any], ...] = ()
    content: bool = False
    deterministic: bool = False
    minutes: float = 1.0
    limit_core_minutes: float = 1200.0

    @property
    def slug(self) -> str:
        """A folder name."""
        letters = (c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(part for part in "".join(letters).split("-") if part)

    def seeds(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """Those it runs with."""
        return tuple(wanted[:1] if self.deterministic else wanted)

    def key(self, **facts: Any) -> str:
        """Changes with whatever the arm's result depends on, our own package's code apart."""
        sources = [path.read_text(encoding="utf-8") for path in self.files()]
        content = {
            "peer": self.peer,
            "settings": dict(self.settings),
            "search": [dict(one) for one in self.search],
            "content": self.content,
            "limit": self.limit_core_minutes,
            "sources": sources,
            **facts,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def files(self) -> list[Path]:
        """Script, requirements and configuration behind it."""
        if self.peer == OURS:
            return [HERE.parent.parent / self.settings["config"]]
        found = [HERE / "exchange.py", HERE / f"peer_{self.peer}.py"]
        return found if self.peer == FLOORS else [*found, requirements_of(self.peer)]


@dataclass(frozen=True)
class Plan:
    """A catalogue, its tables and arms."""

    name: str
    title: str
    catalogue: str
    source: str
    weights: tuple[str, ...]
    encoders: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    tables: tuple[Table, ...]
    arms: tuple[Arm, ...] = field(repr=False)

    def choose(self, only: Sequence[str]) -> tuple[Arm, ...]:
        """The arms of the given slugs, on all their tables; all where none is given.

        Raises:
            PlanError: there is no such arm.
        """
        unknown = set(only) - {arm.slug for arm in self.arms}
        if unknown:
            known = ", ".join(dict.fromkeys(arm.slug for arm in self.arms))
            raise PlanError(f"--only {min(unknown)}: no such arm; there are {known}")
        return tuple(arm for arm in self.arms if not only or arm.slug in only)


def requirements_of(peer: str) -> Path:
    """The file of exact versions behind a peer's environment."""
    return HERE / "requirements" / f"{peer}.txt"


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: a key is missing or not known, an arm names no table, or two share a place.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    tables = tuple(
        Table(name=name, **_tuples(_known(Table, entry, f"{path.name}: table {name}")))
        for name, entry in document.pop("tables").items()
    )
    arms = []
    for entry in document.pop("arms"):
        names = entry.pop("table")
        for table in [names] if isinstance(names, str) else names:
            if table not in {known.name for known in tables}:
                raise PlanError(f"{path.name}: arm {entry.get('name')!r} names no table: {table!r}")
            arm = _known(Arm, entry, f"{path.name}: arm {entry.get('name')!r}")
            arms.append(Arm(table=table, **_tuples(arm)))
    places = [(arm.table, arm.slug) for arm in arms]
    if len(set(places)) < len(places):
        raise PlanError(f"{path.name}: two arms of one table share a name")
    plan = _tuples(_known(Plan, document, path.name))
    return Plan(name=path.stem, tables=tables, arms=tuple(arms), **plan)


def _known(kind: type, entry: dict[str, Any], where: str) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    if set(entry) - names:
        raise PlanError(f"{where}: unknown key {min(set(entry) - names)!r}")
    return entry


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
