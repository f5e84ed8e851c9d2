"""Settings of the model: items, users, signals, and what it tells beside the next item."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmrec.config.section import Section


class FusionConfig(Section):
    """How an item's tokens become one vector."""

    kind: Literal["latents", "mean", "concat", "gated", "late"] = "latents"
    """`latents` is cross-attention from learned queries beside a mean. Of the others, which see a
    modality as the mean of its tokens: `mean`, `gated` (a weight an item and modality), `concat`
    (a perceptron over all) and `late` (each modality scores by itself). See `fusion/item.py`."""
    num_latents: int = Field(8, ge=1)
    num_layers: int = Field(1, ge=1)
    num_heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    feature_dropout: float = Field(0.3, ge=0, lt=1)
    """Chance that a channel of a modality's tokens is silent for an item in a training step. A few
    thousand items are soon learnt by heart; this keeps what is learnt of them general."""
    modality_dropout: float = Field(0.2, ge=0, lt=1)
    """Chance that a present modality of an item is masked in a training step."""


class HistoryConfig(Section):
    """The user model."""

    block: Literal["gated", "plain", "pointwise", "gru", "cnn"] = "gated"
    """Of a transformer: `gated` (LiGR) multiplies each branch by a gate; `plain` is SASRec's block;
    `pointwise` (HSTU) weighs each pair of events by itself, and learns a bias for each distance.
    Without attention: `gru` (GRU4Rec) reads one event after the other; `cnn` (NextItNet) mixes each
    event with earlier ones at growing distances."""
    num_blocks: int = Field(2, ge=1)
    """Depth: of `gru` its layers, of `cnn` pairs of convolutions (a state of 1, 2 or 3 blocks
    knows 7, 31 or 127 events)."""
    num_heads: int = Field(2, ge=1)
    """Of attention; twice as many divide the width. `gru` and `cnn` have none and ignore it."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """On embeddings and on each branch of a block (of `gru`, each layer); attention weights have
    none."""
    both_ways: bool = False
    """Events see later ones too (BERT4Rec): a step hides some and tells them, and use hides one
    more behind the last. Of `gated` and `plain`. By itself, or as a start of a run that reads
    forwards (training.start_from)."""

    start: bool = False
    """A learned event stands before a user's first, which then is a target like the others; users
    without events can be asked, by what is known of them or of their request."""

    @model_validator(mode="after")
    def _reads_both_ways(self) -> HistoryConfig:
        if self.both_ways and self.block not in ("gated", "plain"):
            raise ValueError(
                f"both_ways is true, but block '{self.block}' reads forwards only; set "
                "block=gated or block=plain"
            )
        if self.both_ways and self.start:
            raise ValueError(
                "both_ways and start are true: read both ways, a first event is a target anyway; "
                "set start=false"
            )
        return self

    @property
    def has_heads(self) -> bool:
        """Whether the block is one of attention."""
        return self.block not in ("gru", "cnn")


class SignalsConfig(Section):
    """What the user model reads beside the items of a history, each where the log has it."""

    events: bool = False
    """Types of events: what was bought says more than what was looked at, and a dislike the
    contrary."""
    values: bool = False
    """Numbers of events, such as ratings or the share that was watched."""
    times: bool = False
    """Gaps between events, the hour and the weekday (UTC), of events and of requests."""
    context: bool | tuple[str, ...] = False
    """Context of events and of requests, such as device and place: all columns, or those named."""
    users: bool | tuple[str, ...] = False
    """Attributes of users, a token each in front of the history: all, or those named."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Chance that a training step is not told of the events of a history, of a request, or of a
    user's attribute: in use they may be unknown."""

    @property
    def any(self) -> bool:
        """Whether anything is read."""
        return bool(self.events or self.values or self.times or self.context or self.users)


class HeadConfig(Section):
    """One thing more that the model tells of a user and an item, beside what comes next."""

    kind: Literal["binary", "value"]
    """`binary`: whether an event is of one of the types in `positive` (a click, a purchase);
    `value`: the number of an event, such as a rating."""
    positive: tuple[str, ...] = ()
    """Of `binary`: event types that count as yes; those of the others are no."""
    among: tuple[str, ...] = ()
    """Event types that are examples; empty: all."""
    shown: bool = True
    """Of `binary`: items that were shown and not met later are examples of no, where the catalogue
    file names such event types (interactions.shown)."""
    scorer: Literal["cosine", "bilinear", "mlp"] = "mlp"
    """How user and item are compared. An index can serve the first two."""
    weight: float = Field(0.2, gt=0)
    """Of its loss beside that of the next item: cross-entropy, or squared error in units of the
    values' variance."""

    @model_validator(mode="after")
    def _fields_agree(self) -> HeadConfig:
        if (self.kind == "binary") != bool(self.positive):
            raise ValueError(
                f"kind is '{self.kind}', positive names {', '.join(self.positive) or 'nothing'}: "
                "a binary head needs the event types that count as yes, a value has none"
            )
        return self


class LabelsConfig(Section):
    """Labels of items that the model tells from their content, for items nobody has labelled."""

    attribute: str | None = None
    """Column of the catalogue (items.attributes) that has them: a category, one label an item, or a
    set. null: the name of this section. The model may not read it itself."""
    labels: tuple[str, ...] = ()
    """Those that are told; empty: the commonest 256 of the items of training."""
    popularity: float | None = Field(None, ge=0.5, lt=1)
    """In place of an attribute, `hot` and `cold` by training events alone: at 0.8 an item is hot
    that has more of them than four fifths of the items of training have at most."""
    weight: float = Field(0.2, gt=0)
    """Of its loss beside that of the next item: cross-entropy over the labels of a category, the
    sum over labels of binary cross-entropy of a set."""

    @model_validator(mode="after")
    def _has_one_source(self) -> LabelsConfig:
        given = self.attribute or ", ".join(self.labels)
        if self.popularity is not None and given:
            raise ValueError(
                f"popularity is {self.popularity:g} and '{given}' is named: labels by popularity "
                "are hot and cold, of no attribute; drop one of them"
            )
        return self


class ModelConfig(Section):
    """Item embedding, user model and score."""

    item: Literal["both", "content", "id"] = "both"
    """What an item embedding is made of; `id` knows no media."""
    width: int = Field(128, ge=8)
    """D: width of embeddings and of the history encoder."""
    id_bound: float = Field(1.0, gt=0, le=1)
    """b: the largest length of the id part beside the content of length 1."""
    id_gate: float = Field(10.0, ge=0)
    """kappa: an item with n training events has the gate n / (n + kappa)."""
    popularity: bool = True
    """Learn an explicit term of the score that depends on the item's number of events alone."""
    temperature: float = Field(0.07, gt=0)
    """tau at the start; learned."""
    min_temperature: float = Field(0.02, gt=0)
    """Floor of tau."""
    domain: bool = False
    """A learned token in front of every history that says which catalogue it is of. A run on
    several catalogues has one for each, and needs not be told."""
    fusion: FusionConfig = FusionConfig()
    history: HistoryConfig = HistoryConfig()
    signals: SignalsConfig = SignalsConfig()
    heads: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], HeadConfig] = {}
    """Further tasks by name, which share all of the model; each has a loss and figures of its own.
    Of several catalogues a head belongs to those whose log has all of its event types, or values;
    one that names types of two logs is refused."""
    labels: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], LabelsConfig] = {}
    """Labels of items to tell, by name, such as {genres: {}}."""
