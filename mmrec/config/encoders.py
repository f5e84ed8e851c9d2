"""Settings of an encoder: its kind, its weights, and how much of it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrec.config.section import Section


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
    `score`, whatever items are encoded beside it (shown on CPUs).
    `float16`: half the disk, and a state between two steps may round either way: contents agree to
    1e-5 with most pretrained encoders, to 2e-4 with fresh ones. Where a state exceeds 3e4, bfloat16
    takes its place."""
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
