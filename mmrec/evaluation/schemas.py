"""What report.json and `mmrec compare --json` hold, as types: whoever reads them can check them.

    ReportDocument.model_validate_json(text)      a fault names the place
    ReportDocument.model_json_schema()            JSON Schema, for other languages

Unknown keys and values of another type are refused; a document that gains a key gains it here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmrec.evaluation.ablation import KnockoutRow
from mmrec.evaluation.breakdown import Breakdown
from mmrec.evaluation.compare import Beside, DifferingSetting, Row
from mmrec.evaluation.confidence import Reliability
from mmrec.evaluation.cost import Costs
from mmrec.evaluation.data_facts import DataFacts
from mmrec.evaluation.exposure import Exposure
from mmrec.evaluation.findings import OffsetPoint
from mmrec.evaluation.gap import Gap
from mmrec.evaluation.significance import Interval, PairedDifference
from mmrec.evaluation.stability import Stability
from mmrec.evaluation.sweep import AtCost, Sweep
from mmrec.evaluation.tail import TailPoint
from mmrec.evaluation.variety import VarietyPoint

Figures = dict[str, float]
Slices = dict[str, Figures | None]


class Document(BaseModel):
    """A JSON document, or an object in one, of known keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Lists(Document):
    """What lists were measured with, in words."""

    diversity_by: str | None
    miscalibration_by: str | None


class Look(Document):
    """One look at validation."""

    step: int
    metrics: Slices


class Learning(Document):
    """Curves of training, and its gap to validation."""

    loss: list[tuple[int, float]]
    validation: list[Look]
    gap: Gap | None


class Offset(Document):
    """How the offset of new items was chosen."""

    chosen: float | None
    warm_cost: float | None
    curve: list[OffsetPoint]


class Tail(Document):
    """What less of the popularity term gives the tail, on validation."""

    popularity_share: float | None
    curve: list[TailPoint]


class Strip(Document):
    """A user's lists as ids of items."""

    user_id: str
    met: list[str]
    recommended: list[str]
    cold: list[str]
    targets: list[str]
    num_met: int | None
    note: str


class ReportDocument(Document):
    """report.json; see `report_document` for what each part is."""

    version: Literal[1] = Field(alias="schema")
    name: str
    simulated: bool
    split: str
    protocol: dict[str, Any]
    data_hash: str
    checkpoint: str | None
    seed: int
    models: dict[str, Slices]
    intervals: dict[str, dict[str, dict[str, Interval]]]
    tests: list[PairedDifference]
    sentences: list[str]
    limits: list[str]
    breakdowns: list[Breakdown]
    exposures: list[Exposure] = []
    lists: Lists
    before: Slices | None
    knockout: list[KnockoutRow]
    learning: Learning
    offset: Offset
    sweeps: list[Sweep]
    at_costs: list[AtCost]
    tail: Tail
    variety: list[VarietyPoint] = []
    reliability: list[Reliability]
    heads: dict[str, dict[str, Any]]
    labels: dict[str, dict[str, Any]]
    new_users: dict[str, Any] | None = None
    costs: Costs | None
    facts: DataFacts | None
    stability: Stability | None
    strips: list[Strip]
    best: list[Strip]
    worst: list[Strip]
    data: dict[str, Any]
    manifest: dict[str, Any] | None = None
    quarantine: dict[str, str]


class RunOfSide(Document):
    """One run of a side."""

    run: str
    seed: int
    checkpoint: str | None


class ComparisonDocument(Document):
    """What `mmrec compare --json` prints; see `compare.RunComparison`."""

    version: Literal[1] = Field(alias="schema")
    targets: Literal["validation", "test"]
    protocol: dict[str, Any]
    sides: dict[str, list[RunOfSide]]
    rows: list[Row]
    lists: list[Beside]
    costs: list[Beside]
    settings: list[DifferingSetting]
