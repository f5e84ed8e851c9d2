"""Settings of training: batches, losses, rates, when it stops, and what it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mmrec.config.section import Section


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
