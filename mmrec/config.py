"""A run's settings: one frozen section a part, every field with its unit and its reason.

`load_config` reads a complete YAML, applies `section.field=value` overrides and checks the
result; an unknown key names the nearest valid one. The resolved settings are saved with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.catalogue import explain_validation_error
from mmrec.errors import ConfigError


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Which part of a prepared folder a run reads."""

    split: str | None = None
    """Name of the split; null where the folder holds one only."""
    max_history: int = Field(200, ge=2)
    """Events a history window holds. 200 is the setting that works on ML-1M."""
    windows: Literal["all", "last"] = "all"
    """Of a longer history: `all` makes every event a target once an epoch, `last` the newest only.
    Figures are means over users, and `all` gives long histories more of the loss."""
    num_workers: int = Field(0, ge=0)
    """Processes that prepare batches; any number gives the same batches."""
    shuffle_window: int = Field(16, ge=1)
    """Shards of histories among which samples are permuted."""
    bucket_batches: int = Field(16, ge=1)
    """Batches sorted by length together, so that a batch holds histories of like length."""
    user_share: float = Field(1.0, gt=0, le=1)
    """Share of the users whose histories train and whose targets validation asks for, chosen by a
    hash of their ids; below 1 for cheap searches. A smaller share lies within a larger one. Items
    keep the counts of all training histories."""
    event_share: float = Field(1.0, gt=0, le=1)
    """Share of the events that the run knows of, chosen by a hash of user and item, to see how it
    stands sparse data. A smaller share lies within a larger one; every user keeps two training
    events where he has them. Histories, the inputs of validation and test, items' counts and the
    baselines are of known events alone; targets, candidates and what a list leaves out as seen are
    those of the whole log. `recommend`, `score` and `export` ask with whole histories."""
    new_users: float = Field(0.0, ge=0, lt=1)
    """Share of the users that training never sees, chosen by a hash of their ids: none of their
    events trains, is counted, is a target of validation or test, or is told to a baseline. Instead
    `evaluate` asks one half of them (the other with --split validation) behind their first events,
    see evaluation.first_events."""
    max_broken_media: float = Field(0.05, ge=0, le=1)
    """Share of media that may fail to decode before the run stops."""


class EncoderConfig(Section):
    """One modality's encoder."""

    kind: Literal[
        "small", "transformers", "timm", "torchvision", "open_clip", "musicnn", "vector", "fields"
    ] = "small"
    """`small` trains from scratch; `vector` and `fields` (of attributes) have no weights; the
    others are families of pretrained models (musicnn hears music)."""
    weights: str | None = None
    """An installed name (`mmrec weights list`), a folder, or a hub name; null: random weights."""
    architecture: str | None = None
    """The family's own name of the model, where the weights do not say it."""
    trainable_blocks: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Blocks at the top that train: 0 (all cached), k (what lies below is cached, whole sequences
    or maps) or `all` (raw media, end to end). CNNs count by stage."""
    method: Literal["full", "lora", "adalora", "ia3", "prompt", "adapter"] = "full"
    """What trains in those blocks: `full` their weights; else the weights stand, and low-rank
    matrices (`lora`, `adalora`), scales (`ia3`), tokens beside an item's own (`prompt`, in
    transformers) or a bottleneck behind each block (`adapter`) train in their place. It saves
    memory of the optimiser and the size of what is kept, not the time of a step: the cut does."""
    rank: int = Field(8, ge=1)
    """Of low-rank matrices; width of a bottleneck; number of prompt tokens."""
    num_tokens: int = Field(16, ge=1)
    """Tokens an item keeps of this modality."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Of cached states. `float32`: an item's content agrees to 1e-5 between export, `/v1/embed` and
    `score`, whatever items are encoded beside it. `float16`: half the disk, and a state between two
    steps may round either way: contents agree to 1e-5 with most pretrained encoders, to 2e-4 with
    fresh ones. Where a state exceeds 3e4, bfloat16 takes its place."""
    learning_rate: float | None = Field(None, gt=0)
    """Rate of this encoder where it trains; null: 1e-5 where it starts from weights, which a larger
    one destroys, 2e-4 for what another method than `full` adds to them, else
    training.content_learning_rate."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Rate of a block as a share of that of the block above it; the end has the whole rate. Low
    blocks know what all pictures or texts have in common, and should move least."""
    weight_decay: float | None = Field(None, ge=0)
    """Of this encoder's matrices; null: training.weight_decay."""
    frozen_epochs: int = Field(0, ge=0)
    """Epochs at the start in which this encoder stands still, though it has a gradient to come: a
    fresh fusion would pull it anywhere."""
    unfreeze_every: int = Field(0, ge=0)
    """Epochs between two blocks that begin to train, from the top; 0: all at once. The cache is
    made at the lowest cut that trainable_blocks names."""
    components: int | None = Field(None, ge=1)
    """Directions of a frozen encoder's states that fusion reads: those in which the catalogue's
    items differ most. null: every channel, which a few thousand items learn by heart."""
    scale: float = Field(1.0, gt=0)
    """How much this modality weighs at the start beside the others; learning may change it."""
    options: dict[str, int | float | str | bool] = {}
    """Arguments of the encoder and its transform (image size, seconds, vocabulary size; of text
    max_length, the pieces of a chunk, and max_chunks, for texts longer than the model reads; of a
    frozen text model of transformers int8: true, a quarter of the size, see `encoders/int8.py`; of
    audio loudness, the LUFS that a sound is brought to, off unless given: -23 is broadcast's; of
    small text vocabulary: `pieces` of words, or `characters`, which reads any text of any language;
    see `encoders/characters.py`). Of attributes: max_values, num_knots, FIELD: false for each that
    is to be left out, and FIELD: log for a number whose ratios count, such as a price."""


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


class TrainingConfig(Section):
    """The loop."""

    seed: int = Field(0, ge=0)
    start_from: Path | None = None
    """A finished run whose weights this one starts with, in place of fresh ones: to go on with more
    blocks, another method or other rates, or with what has come since (`prepare --update`). Both
    know the same modalities; items that only this one trains on start as their content."""
    transfer_from: Path | None = None
    """A finished run on another catalogue, of any kind, with the same model section: encoders of
    modalities that both have, fusion and user model start with its weights; ids, popularity,
    attributes, heads and signals start fresh. For catalogues that have few events themselves; how
    far the two are apart says `mmrec drift`."""
    max_epochs: int = Field(40, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many steps; null: epochs decide."""
    batch_size: int = Field(128, ge=1)
    """Histories a step, over all ranks."""
    micro_batches: int = Field(1, ge=1)
    """Parts in which a step's histories are computed, one after the other: the same gradient for
    less memory, and a second forward pass of the user model. Fresh items are encoded once; for
    their memory see activation_checkpointing."""
    fresh_items: int | None = Field(512, ge=1)
    """M: items encoded with gradient each step; null: all."""
    candidates: int | None = Field(None, ge=64)
    """Items drawn uniformly, beside the batch's targets and fresh items, that the loss compares;
    the log of their probability is taken from the logits. null: every item of training, which is
    exact and worth its cost up to about a million. A batch's targets alone are no choice here: that
    pushes down what is popular, and corrected it still learns little of the rest."""
    cold_weight: float = Field(0.25, ge=0)
    """Weight of the second loss, in which the fresh items are scored as if never met, by content
    alone; it trains what new items are scored by. 0: no such loss."""
    alignment_weight: float = Field(0.0, ge=0)
    """Weight of a third loss (InfoNCE), which draws together what the media of an item say one by
    one, and apart from other items' media: for search by one medium, and items that have one."""
    modality_weight: float = Field(0.0, ge=0)
    """Weight of a loss for each modality, their mean, in which users meet the fresh items by that
    modality alone: else the modality that is learnt first does all the work, and items that lack it
    are scored by ones that learnt nothing. Each costs the softmax of a step once more."""
    query_weight: float = Field(0.0, ge=0)
    """Weight of a loss (InfoNCE) in which a random piece of an item's text, by itself, finds the
    item among the step's fresh ones: a title, a sentence of a plot. For search by text."""
    query_items: int | None = Field(64, ge=1)
    """Queries a step, over all ranks; null: one for each item that the step encodes. Each is
    encoded live, below the cut too: little on a GPU, most of a step on a CPU."""
    unlabelled_items: int = Field(0, ge=0)
    """U: items that no event names, and that are cold in no split, which join each step's fresh
    ones for the losses that need no labels: alignment_weight and query_weight."""
    shown_weight: float = Field(0.0, ge=0)
    """Weight of a loss (BPR) in which the item met next scores above each that was shown before it
    and not met; of catalogues that name such event types (interactions.shown)."""
    variety_weight: float = Field(0.0, ge=0)
    """Weight of how alike two items are that the model would show a user: above 0, lists are more
    varied and a little less to the point. Only users learn from it; items stay where they are."""
    loss_weights: Literal["fixed", "learned"] = "fixed"
    """`learned`: each task (the next item, each of model.heads and of model.labels) learns how much
    noise it has, from where its weight is on, and weighs the less (Kendall et al., 1705.07115). The
    losses that have a weight in this section keep that share of the next item's."""
    content_gradient: float = Field(1.0, ge=0, le=1)
    """Share of the first loss's gradient that reaches contents. Encoders that still have to learn
    what to look at learn the items of training by heart with all of it; cached ones do not."""
    max_inverse_probability: float = Field(20.0, ge=1)
    """Cap on 1 / pi, the weight of a fresh item's content gradient."""
    mask_seen: Literal["none", "before", "all"] = "before"
    """Where the catalogue forbids repeats: which other items of the user's own history are no
    candidates of the loss: those met before the position, or all of them."""
    learning_rate: float = Field(1e-3, gt=0)
    content_learning_rate: float | None = Field(None, gt=0)
    """Rate of the fusion, and of encoders without a rate of their own; null: learning_rate. Every
    step moves the contents of all items a little, under a user model that has just met them."""
    freeze_content_epochs: int = Field(0, ge=0)
    """Epochs at the start in which contents stay as the fresh fusion gives them, and nothing is
    encoded: the user model and the ids learn on firm ground first, and cheaply."""
    optimiser: Literal["adamw", "sgd", "adafactor", "adamw8bit"] = "adamw"
    """`adamw` keeps two numbers a parameter, `sgd` one (its momentum), `adafactor` a row and a
    column of each matrix, `adamw8bit` two bytes (the extra `lowbit`). All decay apart from the
    gradient."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of adamw; the first is sgd's momentum."""
    weight_decay: float = Field(0.05, ge=0)
    """On matrices only: none on norms, biases and embeddings."""
    max_grad_norm: float = Field(5.0, gt=0)
    warmup_steps: int = Field(200, ge=0)
    min_rate: float = Field(0.05, ge=0, le=1)
    """Share of the learning rate at the end of the cosine."""
    activation_checkpointing: bool = False
    """Of encoders that train: keep each block's input alone and compute the block once more in the
    backward pass. About a third more time for a fraction of the memory."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast; parameters and optimiser stay fp32."""
    sharding: Literal["none", "full"] = "none"
    """Where several ranks train: `none` gives each the whole model (DDP), `full` a part of its
    parameters, gradients and optimiser state (FSDP2), for models that are too large for one device.
    A run may be resumed with another value, and by any number of ranks."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    event_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Weight of a target in the loss by the type of its event, such as {purchase: 3}; 1 for others.
    Which events may be targets at all the catalogue file says (interactions.targets)."""
    hidden_share: float = Field(0.2, gt=0, le=1)
    """Where histories are read both ways: share of the events that a step hides, at least one of
    each history."""
    evaluate_every: int = Field(1, ge=1)
    """Epochs between two looks at validation."""
    patience: int = Field(5, ge=1)
    """Looks without a better value before the run stops."""
    stop_on: str = "warm"
    """Slice whose NDCG@10 decides; `warm+cold` takes the mean of both."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; null: every epoch."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics.jsonl is shown as well, inside the run's folder; each needs its extra. Nothing
    is sent anywhere unless WANDB_MODE or MLFLOW_TRACKING_URI say so."""
    deterministic: bool = True
    """torch.use_deterministic_algorithms: a resumed run equals the unbroken one bit for bit."""


class EvaluationConfig(Section):
    """What `evaluate` runs, how new items' offset is chosen, how much popularity counts in use."""

    baselines: tuple[
        Literal["random", "popularity", "item_knn", "ease", "markov", "content_knn"], ...
    ] = ("random", "popularity", "item_knn", "ease", "markov", "content_knn")
    warm_cost: float = Field(0.05, ge=0, lt=1)
    """Share of warm NDCG@10 that the offset of items without events may cost on validation."""
    expected_popularity: bool = True
    """New items get a share of the popularity that their content lets expect, beside the offset;
    which share, validation says. False: the offset alone."""
    popularity_share: float = Field(1.0, ge=0, le=1)
    """Share of the learned popularity term that scores keep: 1 as trained, less for more of the
    tail in the lists, at a cost in the head that report.html shows. The loss always has all of it;
    validation, from which epoch and offset are chosen, has the share. A trained run can be given
    another on the line of evaluate, recommend, score and export."""
    groups: tuple[str, ...] = ()
    """Categories and sets by which the report tells accuracy apart: users.gender, items.genres. The
    worst group of each stands in the scorecard. A trained run can be given others on the line of
    evaluate."""
    first_events: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 3, 5), min_length=1)
    """How many events are known of users whom data.new_users held out when they are asked; their
    targets lie behind the largest number. A trained run can be given others on the line of
    evaluate."""


class CatalogueConfig(Section):
    """One of several catalogues that a run trains on."""

    weight: float = Field(1.0, gt=0)
    """Passes over its histories in an epoch: 0.5 takes half of them in one epoch and the others in
    the next."""
    split: str | None = None
    """Name of the split; null where the folder holds one only."""


class Config(Section):
    """A complete run."""

    name: str = "run"
    data: DataConfig = DataConfig()
    catalogues: dict[str, CatalogueConfig] = {}
    """Several catalogues in one run, by the names of `--data NAME=DIR`: they share encoders, fusion
    and user model, and each has its own ids, popularity, attributes, signals, heads and labels, as
    far as it has the columns: what no catalogue has is refused. Empty for one alone."""
    encoders: dict[str, EncoderConfig] = {}
    """One section a modality: text, image, audio, vector.NAME, attributes."""
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.item != "id" and not self.encoders:
            raise ValueError(
                f"model.item is '{self.model.item}' but encoders is empty: name an encoder for "
                "a modality, or set model.item=id"
            )
        if self.model.item == "id" and self.encoders:
            raise ValueError(
                "model.item is 'id' but encoders names "
                f"{', '.join(self.encoders)}: drop the encoders, or set model.item=both"
            )
        if self.training.start_from is not None and self.training.transfer_from is not None:
            raise ValueError(
                "training.start_from and training.transfer_from are both set: a run starts from "
                "one on the same catalogue, or from one on another; drop one of them"
            )
        if self.training.modality_weight and len(self.encoders) < 2:
            raise ValueError(
                f"training.modality_weight is {self.training.modality_weight:g} but encoders names "
                f"{', '.join(self.encoders) or 'none'}: modalities are told apart where there are "
                "two; name another encoder, or set training.modality_weight=0"
            )
        if self.training.unlabelled_items and not (
            self.training.alignment_weight or self.training.query_weight
        ):
            raise ValueError(
                f"training.unlabelled_items is {self.training.unlabelled_items}, but "
                "training.alignment_weight and training.query_weight are 0: no other loss does "
                "without labels; set one of them, or training.unlabelled_items=0"
            )
        if self.training.query_weight and "text" not in self.encoders:
            raise ValueError(
                f"training.query_weight is {self.training.query_weight:g} but encoders names no "
                "text: queries are pieces of texts; add encoders.text, or set "
                "training.query_weight=0"
            )
        if self.training.loss_weights == "learned" and not (self.model.heads or self.model.labels):
            raise ValueError(
                "training.loss_weights is 'learned' but model.heads and model.labels are empty: "
                "there is one task alone, and nothing to weigh it against; name a head, or set "
                "training.loss_weights=fixed"
            )
        if self.data.new_users and self.data.event_share < 1:
            raise ValueError(
                f"data.new_users is {self.data.new_users:g} and data.event_share "
                f"{self.data.event_share:g}: a run leaves out users or events; set one of them to "
                "its default, 0 or 1"
            )
        if not self.model.popularity and self.evaluation.popularity_share < 1:
            raise ValueError(
                f"evaluation.popularity_share is {self.evaluation.popularity_share:g} but "
                "model.popularity is false: there is no such term to take a share of; leave it at 1"
            )
        in_parts = ("adamw", "sgd")  # what they do to an entry, they know from that entry
        if self.training.sharding == "full" and self.training.optimiser not in in_parts:
            raise ValueError(
                f"training.sharding is 'full' but training.optimiser is "
                f"'{self.training.optimiser}', which cannot update a part of a matrix by itself: "
                f"set training.optimiser to {' or '.join(in_parts)}, or training.sharding=none"
            )
        history = self.model.history
        if history.both_ways and self.model.heads:
            raise ValueError(
                "model.history.both_ways is true, but model.heads asks what a user does next, "
                "and a model that reads both ways has seen it: set both_ways=false, or drop them"
            )
        if history.both_ways and self.model.signals.any:
            raise ValueError(
                "model.history.both_ways is true, but model.signals reads more than items, and "
                "what is told of a hidden event gives it away: set one of the two to false"
            )
        if history.has_heads and self.model.width % (2 * history.num_heads):
            raise ValueError(
                f"model.width {self.model.width} is no multiple of twice model.history.num_heads "
                f"{history.num_heads}"
            )
        if self.model.width % self.model.fusion.num_heads:
            raise ValueError(
                f"model.width {self.model.width} is no multiple of model.fusion.num_heads "
                f"{self.model.fusion.num_heads}"
            )
        for modality, encoder in self.encoders.items():
            moving = ("frozen_epochs", "unfreeze_every")
            for name in moving if encoder.trainable_blocks == 0 else ():
                if getattr(encoder, name):
                    raise ValueError(
                        f"encoders.{modality}.{name} is {getattr(encoder, name)}, but "
                        f"encoders.{modality}.trainable_blocks is 0: nothing of it ever trains; "
                        "drop one of the two"
                    )
            if encoder.method != "full" and encoder.trainable_blocks == 0:
                raise ValueError(
                    f"encoders.{modality}.method is '{encoder.method}', but "
                    f"encoders.{modality}.trainable_blocks is 0: nothing of it ever trains; "
                    "set trainable_blocks, or drop the method"
                )
            if encoder.method == "adalora" and self.training.sharding == "full":
                raise ValueError(
                    f"training.sharding is 'full' but encoders.{modality}.method is 'adalora', "
                    "which weighs whole matrices after each step: set "
                    f"encoders.{modality}.method=lora, or training.sharding=none"
                )
            if encoder.components is not None and encoder.trainable_blocks != 0:
                raise ValueError(
                    f"encoders.{modality}.components is {encoder.components}, but the encoder "
                    "trains: only states that stand still have lasting directions; drop it, or "
                    f"set encoders.{modality}.trainable_blocks=0"
                )
        return self


def parse_config(document: Mapping[str, Any], source: str = "config") -> Config:
    """Checks a mapping of settings.

    Args:
        document: nested settings as YAML gives them.
        source: name of the file, for messages.

    Raises:
        ConfigError: one line that names the key, its value and what is allowed.
    """
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error, Config, source)) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's YAML and applies `section.field=value` overrides.

    Raises:
        ConfigError: the file is missing, is no mapping, or a setting is wrong.
    """
    return resolve(read_document(path), overrides, str(path))


def resolve(document: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Applies `section.field=value` overrides to settings, in place, and checks the result.

    Raises:
        ConfigError: a setting or an override is wrong.
    """
    for override in overrides:
        _apply(document, override)
    return parse_config(document, source)


def read_document(path: Path) -> dict[str, Any]:
    """The settings of a YAML as they are written.

    Raises:
        ConfigError: the file is missing, or is no mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run's YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, not a mapping of sections")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value` in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: not YAML: {' '.join(str(error).split())}"
        ) from None
    _set(document, key, value, f"override {override!r}")


def _set(document: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Sets the value of a dotted key in place."""
    *parents, field = _split_key(key)
    node = document
    for name in parents:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {name} is a value, not a section")
        node = child
    node[field] = value


def change(config: Config, settings: Mapping[str, Any], source: str) -> Config:
    """The settings with some of them changed, checked anew.

    Args:
        config: what to start from.
        settings: values by dotted name.
        source: where they come from, for messages.

    Raises:
        ConfigError: a name is unknown, or a value is not allowed.
    """
    document = config.model_dump(mode="json")
    for key, value in settings.items():  # a later name may change a part of an earlier value
        _set(document, key, deepcopy(value), f"{source}: {key}")
    return parse_config(document, source)


def setting(config: Config, key: str) -> Any:
    """The value of a dotted name that exists."""
    node: Any = config
    for name in _split_key(key):
        node = node[name] if isinstance(node, Mapping) else getattr(node, name)
    return node


def _split_key(key: str) -> list[str]:
    """Splits at dots, but keeps the dot of a ready-made vector's modality (`vector.clip`)."""
    names = key.split(".")
    if len(names) > 2 and names[0] == "encoders" and names[1] == "vector":
        names[1:3] = [f"vector.{names[2]}"]
    return names


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; `load_config` reads them back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dotted_settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name, such as `model.history.dropout`."""
    return _flat(config.model_dump(mode="json"), "")


def _flat(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{key}.")
        else:
            found[path + key] = value
    return found
