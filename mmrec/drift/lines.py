"""A line of the comparison: what was measured on both sides, its limit, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrec.drift.two_samples import FEWEST, Gap

Part = Literal["text", "states", "attributes", "users", "events", "media"]
Verdict = Literal["ok", "large", "too few"]

ADVICE: dict[str, str] = {
    "unknown pieces": "the vocabulary cannot read these texts: "
    "encoders.text.options.vocabulary=characters reads any, or take weights of that language",
    "length": "texts are of another length: see encoders.text.options.max_length",
    "cut off": "the end of these texts is not read: raise encoders.text.options.max_length",
    "states": "these media are new to the encoders: train more blocks of them "
    "(encoders.NAME.trainable_blocks), or start from weights that were trained on the like",
    "attributes": "these values are others: a run with training.transfer_from learns them anew, "
    "one with training.start_from or a run used as it is does not know them",
    "users": "other users: do not use the run as it is, train on the new log",
    "events": "other habits: do not use the run as it is, train on the new log, with a "
    "data.max_history that fits it",
    "media": "the model has seen other media missing: raise model.fusion.modality_dropout, or "
    "give the media that are missing",
}
"""By measure, else by part."""


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        part: of the catalogue.
        name: field, modality or attribute.
        measure: what the figure is.
        gap: figure and limit; None where a side has fewer than 20 items.
        earlier: the same of the earlier side alone, where it has one.
        new: of the new side.
    """

    part: Part
    name: str
    measure: str
    gap: Gap | None
    earlier: float | None = None
    new: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the figure is above its limit."""
        if self.gap is None:
            return "too few"
        return "large" if self.gap.is_large else "ok"

    @property
    def advice(self) -> str:
        """What to do where the gap is large."""
        return ADVICE.get(self.measure) or ADVICE[self.part]

    def row(self) -> dict[str, Any]:
        """As a table shows it."""
        return {
            "part": self.part,
            "of": self.name,
            "measure": self.measure,
            "earlier": self.earlier,
            "new": self.new,
            "figure": self.gap and self.gap.figure,
            "limit": self.gap and self.gap.limit,
            "gap": self.verdict,
        }

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        interval = None if self.gap is None else self.gap.interval
        return self.row() | {
            "interval": None if interval is None else list(interval),
            "p_value": self.gap and self.gap.p_value,
        }

    def words(self) -> str:
        """As a sentence has it, of a line that has a figure."""
        assert self.gap is not None
        return (
            f"{self.part} {self.name}, {self.measure} {self.gap.figure:.3f} "
            f"(at most {self.gap.limit:.3f})"
        )


def enough(*sizes: int) -> bool:
    """Whether both sides have items enough to be compared."""
    return min(sizes) >= FEWEST


def large(lines: Sequence[Line]) -> list[Line]:
    """Those above their limit."""
    return [line for line in lines if line.verdict == "large"]
