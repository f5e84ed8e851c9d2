"""A step that trains encoders: beside its bare encoders, at each cut, and at longer histories.

MiniLM on 32 pieces and EfficientNet-lite0 at 128 pixels with random weights, M = 256 items a step,
32 histories, the softmax over 3,416 items, bf16; media and states are made. The bare loop runs
the same encoders on the same items forward and backward, and fusion once. Rounds alternate; ratios
are of the medians' rounds. About three minutes on two quiet cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench_cache import MINILM
from measure import arguments, report, seconds_of
from torch import Tensor

from encoders.text_transform import train_vocabulary
from encoders.tokens import Tokens
from mmrec.config import Config, parse_config
from mmrec.data.batch import Batch
from mmrec.data.media import ModalityInput
from mmrec.encoder_parts import rebuild_encoder
from mmrec.network import make_model
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import TrainedModel, train_step

NUM_ROWS, NUM_HISTORIES = 3_416, 32
PIECES, PIXELS = 32, 128


class Joint:
    """A model whose encoders train from a cut on, and a batch of made media for it."""

    def __init__(self, blocks: int | str, *, num_items: int, history: int) -> None:
        torch.manual_seed(0)
        self.config = configure(blocks, num_items)
        parts = {name: rebuild_encoder(document) for name, document in documents().items()}
        counts = torch.full((NUM_ROWS,), 20)
        self.model = make_model(self.config, parts, counts)
        self.trained = TrainedModel(
            self.model, self.config.training, modality_dropout=0.2, repeats_forbidden=True
        )
        self.optimiser = make_optimiser(self.model, self.config)
        self.bank = torch.nn.functional.normalize(torch.randn(NUM_ROWS, self.model.width), dim=1)
        self.batch = self._batch(num_items, history)

    def step(self) -> None:
        """One whole step."""
        train_step(self.trained, self.batch, self.optimiser, self.bank, self.config.training)

    def bare(self) -> None:
        """The encoders and fusion alone, forward and backward."""
        assert self.model.fusion is not None
        self.trained.train()
        with torch.autocast("cpu", torch.bfloat16):
            content: Tensor = self.model.fusion(self.model.tokens(self.batch.media))
        weight = torch.linspace(-1, 1, content.numel()).view_as(content)
        (content * weight).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)

    def _batch(self, num_items: int, history: int) -> Batch:
        events = NUM_HISTORIES * history
        return Batch(
            epoch=0,
            index=0,
            inputs=torch.randint(NUM_ROWS, (events,)),
            targets=torch.randint(NUM_ROWS, (events,)),
            counted=torch.ones(events, dtype=torch.bool),
            offsets=torch.arange(0, events + 1, history),
            fresh=torch.randperm(NUM_ROWS)[:num_items].sort().values,
            inverse_probability=torch.ones(num_items),
            media={name: self._media(name, num_items) for name in ("text", "image")},
            own=(0, num_items),
            num_counted=events,
        )

    def _media(self, name: str, num_items: int) -> ModalityInput:
        if name in self.model.cached:
            encoder = self.model.encoder(name)
            shape = (num_items, encoder.state_tokens, encoder.state_width)
            return Tokens(torch.randn(shape), torch.ones(shape[:2], dtype=torch.bool))
        present = torch.ones(num_items, dtype=torch.bool)
        if name == "image":
            return {"images": torch.randn(num_items, 3, PIXELS, PIXELS), "present": present}
        token_ids = torch.randint(1000, (num_items, PIECES))
        return {"token_ids": token_ids, "mask": token_ids >= 0, "present": present}


def documents() -> dict[str, dict[str, Any]]:
    """What rebuilds the two encoders, with random weights."""
    return {
        "text": {
            "modality": "text",
            "kind": "transformers",
            "num_tokens": PIECES,
            "options": {"max_length": PIECES},
            "tokenizer": train_vocabulary(["a text of no importance"], 100),
            "config": MINILM,
        },
        "image": {
            "modality": "image",
            "kind": "timm",
            "num_tokens": 16,
            "options": {"size": PIXELS},
            "architecture": "tf_efficientnet_lite0",
            "described": {},
        },
    }


def configure(blocks: int | str, num_items: int) -> Config:
    """Settings of a run; weights are named, so that rates are those of pretrained encoders."""
    return parse_config(
        {
            "data": {"max_history": 200},
            "encoders": {
                "text": {"kind": "transformers", "weights": "minilm", "trainable_blocks": blocks},
                "image": {
                    "kind": "timm",
                    "weights": "efficientnet-lite0",
                    "trainable_blocks": blocks,
                },
            },
            "training": {"fresh_items": num_items, "precision": "bf16"},
        }
    )


def main() -> None:
    given = arguments(__doc__)
    num_items = 8 if given.small else 256
    blocks: tuple[int | str, ...] = ("all", 1, 0)
    models = {each: Joint(each, num_items=num_items, history=50) for each in blocks}
    longer = Joint("all", num_items=num_items, history=200)
    taken: dict[str, Callable[[], None]] = {
        "bare": models["all"].bare,
        "all": models["all"].step,
        "1": models[1].step,
        "0": models[0].step,
        "history 200": longer.step,
    }
    for action in taken.values():
        action()  # kernels are made at their first use
    seconds: dict[str, list[float]] = {name: [] for name in taken}
    names = list(taken)
    for number in range(given.rounds):
        # each goes first in turn: what runs after the longest step pays for memory it gave back
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(taken[name]))
    config = {
        "items": num_items,
        "pieces": PIECES,
        "pixels": PIXELS,
        "histories": NUM_HISTORIES,
        "events": 50,
        "rows": NUM_ROWS,
        "precision": "bf16",
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(each, 4) for each in values] for name, values in seconds.items()},
    }

    def ratio(name: str, above: str, below: str, bar: float, better: Any) -> None:
        values = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        report(name, values, unit="ratio", bar=bar, better=better, small=given.small, config=config)

    ratio("joint_step_over_bare", "all", "bare", 1.15, "lower")
    ratio("joint_cut_1_speed", "all", "1", 4.0, "higher")
    ratio("joint_cut_0_speed", "all", "0", 12.0, "higher")
    ratio("joint_history_200_over_50", "history 200", "all", 1.2, "lower")


if __name__ == "__main__":
    main()
