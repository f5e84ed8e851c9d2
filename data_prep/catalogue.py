"""The catalogue file: one YAML that says what the columns of somebody's tables are.

In: a YAML file (or a mapping) and overrides such as ``split.cold_test=0.1``. Out: a frozen
`Catalogue`. Whatever is wrong with the file becomes one line of `DataError` that names the place,
the value, and, for an unknown key, the nearest key that exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from data_prep.documents import explain_validation_error, override, read_mapping
from data_prep.errors import DataError

__all__ = [
    "AttributeSpec",
    "AvailableSpec",
    "Catalogue",
    "InteractionsSpec",
    "ItemsSpec",
    "SplitSpec",
    "TargetsSpec",
    "UsersSpec",
    "explain_validation_error",
    "load_catalogue",
    "parse_catalogue",
]

# What a kind means where the file does not say: films are watched once, songs and groceries again.
REPEATS_BY_KIND: dict[str, Literal["allow", "forbid"]] = {
    "video": "forbid",
    "music": "allow",
    "shop": "allow",
}

WORD = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def _as_list(value: Any) -> Any:
    """Lets ``image: poster`` stand for ``image: [poster]`` and null for no column."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


Columns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class AttributeSpec(_Section):
    """One structured field of an item or user."""

    type: Literal["category", "set", "number"]
    """category: one string; set: several strings; number: a float."""
    separator: str = Field(default="|", min_length=1)
    """What parts the members of a set inside one string; lists need none."""


class AvailableSpec(_Section):
    """Columns of instants (Unix seconds or dates) between which an item can be shown."""

    start: str | None = Field(default=None, alias="from")
    """First instant, inclusive; a missing value means always."""
    until: str | None = None
    """Last instant, exclusive; a missing value means for ever."""


class ItemsSpec(_Section):
    """The table of items."""

    table: str
    """csv, jsonl or parquet, relative to the source folder and under it."""
    id: str
    """Column of ids; read as strings, unique."""
    where: str | None = None
    """Rows to keep, a polars SQL condition over the table's columns."""
    missing: Columns = ("",)
    """Strings that mean "not known" in any column of this table."""
    text: Columns = ()
    """Text columns in order; each keeps its name as the field's name."""
    image: Columns = ()
    """Columns of paths to pictures."""
    audio: Columns = ()
    """Columns of paths to sounds; one that names clips stands for their sound tracks."""
    video: Columns = ()
    """Columns of paths to clips."""
    vectors: dict[Annotated[str, Field(pattern=WORD)], str] = {}
    """Name to column of ready-made vectors; each is a modality of its own."""
    attributes: dict[str, AttributeSpec] = {}
    """Column to type."""
    available: AvailableSpec | None = None
    """When an item can be shown; null means always."""

    @model_validator(mode="after")
    def _columns_are_usable(self) -> ItemsSpec:
        for kind in ("text", "image", "audio", "video"):
            columns: tuple[str, ...] = getattr(self, kind)
            if len(set(columns)) != len(columns):
                raise ValueError(f"{kind} names a column twice: {', '.join(columns)}")
        if self.id != "item_id" and "item_id" in self.columns():
            raise ValueError(
                f"column 'item_id' is used beside id: {self.id}; the name is kept for the id, "
                "rename that column in the table"
            )
        return self

    def columns(self) -> list[str]:
        """Columns of the table that are read, the id first, each once."""
        names = [self.id, *self.text, *self.image, *self.audio, *self.video]
        names += [*self.vectors.values(), *self.attributes]
        if self.available is not None:
            names += [name for name in (self.available.start, self.available.until) if name]
        return list(dict.fromkeys(names))


class UsersSpec(_Section):
    """The table of users; users without a row in it are welcome."""

    table: str
    """csv, jsonl or parquet, relative to the source folder and under it."""
    id: str
    """Column of ids; read as strings, unique."""
    where: str | None = None
    """Rows to keep, a polars SQL condition over the table's columns."""
    missing: Columns = ("",)
    """Strings that mean "not known" in any column of this table."""
    attributes: dict[str, AttributeSpec] = {}
    """Column to type."""


class TargetsSpec(_Section):
    """Which events a model may be asked to predict; the others are history only."""

    events: Columns | None = None
    """Event types; null means any."""
    min_value: float | None = None
    """Smallest value; an event without a value is no target then."""


Scalar = str | int | float


class InteractionsSpec(_Section):
    """The log: who met which item, in what order."""

    table: str
    """csv, jsonl or parquet, relative to the source folder and under it."""
    user: str
    """Column of user ids."""
    item: str
    """Column of item ids."""
    where: str | None = None
    """Rows to keep, a polars SQL condition over the table's columns."""
    order: str | None = None
    """Column of whole numbers that order a user's events; decides over time."""
    time: str | None = None
    """Column of Unix seconds or ISO 8601 (UTC where no offset is given)."""
    event: str | None = None
    """Column of event types."""
    value: str | None = None
    """Column of numbers such as ratings; may be empty."""
    missing: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """Column to the value or values that mean "not known" there."""
    context: Columns = ()
    """Columns that describe the request (device, place), kept as strings."""
    targets: TargetsSpec = TargetsSpec()
    """Which events can be targets."""
    shown: Columns = ()
    """Event types in which an item was shown and nothing more (impressions). They are no events of
    a history: not counted, not seen, no targets. What was shown and not met is kept beside it."""

    @model_validator(mode="after")
    def _fields_agree(self) -> InteractionsSpec:
        if self.order is None and self.time is None:
            raise ValueError("needs order or time: a log has no sequence without one")
        if self.targets.events is not None and self.event is None:
            raise ValueError("targets.events needs event, the column of event types")
        if self.shown and self.event is None:
            raise ValueError("shown needs event, the column of event types")
        both = sorted(set(self.shown) & set(self.targets.events or ()))
        if both:
            raise ValueError(
                f"targets.events and shown both name '{both[0]}': what was shown is no target"
            )
        if self.targets.min_value is not None and self.value is None:
            raise ValueError("targets.min_value needs value, the column of numbers")
        stray = sorted(set(self.missing) - set(self.columns()))
        if stray:
            raise ValueError(
                f"missing names {', '.join(map(repr, stray))}, no column of this section; "
                f"columns are {', '.join(self.columns())}"
            )
        return self

    def columns(self) -> list[str]:
        """Columns of the table that are read, each once."""
        given = (self.user, self.item, self.order, self.time, self.event, self.value)
        names = [name for name in given if name is not None]
        return list(dict.fromkeys([*names, *self.context]))


def _to_unix_seconds(value: Any) -> Any:
    """Turns what YAML makes of an instant (number, text, date, datetime) into Unix seconds."""
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError("must be Unix seconds or ISO 8601 such as 2024-01-31") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return value


class SplitSpec(_Section):
    """What is trained on and what is asked."""

    protocol: Literal["leave_one_out", "time", "none"] = "leave_one_out"
    """leave_one_out: last event of each user; time: all after an instant; none: train on all."""
    cold_validation: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the items with events that training never sees, for choosing settings."""
    cold_test: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the items with events that training never sees, read once for the report."""
    seed: int = 0
    """Seed of the draw of cold items."""
    name: str = Field(default="", pattern=r"^$|" + WORD)
    """Name of the split's folder; by default protocol, -cold where cold items are drawn, -seedK."""
    min_events: int = Field(default=3, ge=1)
    """Users with fewer events are set aside; 3 for leave_one_out, 1 for the others by default."""
    validation_time: int | None = None
    """Protocol time only: Unix seconds (or ISO 8601); training lies strictly before it."""
    test_time: int | None = None
    """Protocol time only: Unix seconds (or ISO 8601); test history lies strictly before it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_protocol(cls, document: Any) -> Any:
        # A user who appears after the instant is the time protocol's new user: he must not be
        # set aside for having one event.
        if isinstance(document, Mapping) and document.get("min_events") is None:
            one = document.get("protocol") in ("time", "none")
            return {**document, "min_events": 1 if one else 3}
        return document

    @field_validator("validation_time", "test_time", mode="before")
    @classmethod
    def _parse_instant(cls, value: Any) -> Any:
        return _to_unix_seconds(value)

    @model_validator(mode="after")
    def _fields_agree(self) -> SplitSpec:
        if self.cold_validation + self.cold_test >= 1.0:
            raise ValueError(
                f"cold_validation {self.cold_validation} and cold_test {self.cold_test} "
                "leave no warm items: together they must stay below 1"
            )
        instants = (self.validation_time, self.test_time)
        if self.protocol == "time":
            if self.validation_time is None or self.test_time is None:
                raise ValueError("protocol time needs validation_time and test_time")
            if self.validation_time >= self.test_time:
                raise ValueError(
                    f"validation_time {self.validation_time} must be before "
                    f"test_time {self.test_time}"
                )
        elif instants != (None, None):
            raise ValueError(f"validation_time and test_time do not go with {self.protocol}")
        if self.protocol == "none" and self.has_cold:
            raise ValueError("protocol none trains on everything: cold shares must be 0")
        if not self.name:
            cold = "-cold" if self.has_cold else ""
            seed = f"-seed{self.seed}" if self.seed else ""
            object.__setattr__(self, "name", f"{self.protocol}{cold}{seed}")
        return self

    @property
    def has_cold(self) -> bool:
        """Whether any items are held out of training."""
        return self.cold_validation > 0.0 or self.cold_test > 0.0


class Catalogue(_Section):
    """A whole catalogue file."""

    name: str = Field(pattern=WORD)
    """Name of the catalogue: letters, digits, - and _."""
    kind: str = Field(pattern=WORD)
    """A word for the domain; video, music and shop choose defaults, any other word is fine."""
    repeats: Literal["allow", "forbid"] = "forbid"
    """May a user meet an item again? By default music and shop allow it."""
    items: ItemsSpec
    users: UsersSpec | None = None
    interactions: InteractionsSpec
    split: SplitSpec = SplitSpec()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_kind(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and document.get("repeats") is None:
            kind = document.get("kind")
            repeats = REPEATS_BY_KIND.get(kind, "forbid") if isinstance(kind, str) else "forbid"
            return {**document, "repeats": repeats}
        return document

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in fixed order.

        text, image, audio, video, then vector.NAME as in the file, attributes last.
        """
        media = (name for name in ("text", "image", "audio", "video") if getattr(self.items, name))
        vectors = (f"vector.{name}" for name in self.items.vectors)
        return (*media, *vectors, *(("attributes",) if self.items.attributes else ()))

    def document(self) -> dict[str, Any]:
        """The resolved catalogue as plain JSON values; `parse_catalogue` reads it back."""
        return self.model_dump(mode="json", by_alias=True)


def load_catalogue(path: Path, overrides: Sequence[str] = ()) -> Catalogue:
    """Reads a catalogue file.

    Args:
        path: the YAML file.
        overrides: settings that replace the file's, each ``section.field=value`` with a YAML value.

    Raises:
        DataError: no such file, no YAML, no mapping, an unknown key, a value that is not allowed.
    """
    document = override(read_mapping(path), overrides)
    return _validated(document, str(path))


def parse_catalogue(document: Mapping[str, Any]) -> Catalogue:
    """Builds a catalogue from a mapping.

    Raises:
        DataError: an unknown key or a value that is not allowed.
    """
    return _validated(document, "catalogue")


def _validated(document: Mapping[str, Any], source: str) -> Catalogue:
    try:
        return Catalogue.model_validate(document)
    except ValidationError as error:
        raise DataError(explain_validation_error(error, Catalogue, source)) from None
