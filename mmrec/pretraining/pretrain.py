"""Trains a text model on the catalogue's own texts, before any user: `mmrec pretrain`.

    weights + texts of no cold item ─ hidden or next pieces ─► OUT/config.json tokenizer.json
                                                               model.safetensors pretraining.json

OUT is what `encoders.text.weights` takes. It holds the head that tells pieces too, so that it can
be trained further; a run reads what lies below. The language of a catalogue (its names, genres and
abbreviations) is not that of the encyclopaedia a model comes from.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_prep.shards import PreparedData
from encoders.text_transform import TextTransform
from mmrec.build import pick_device
from mmrec.config import Config
from mmrec.encoder_weights import resolve_weights
from mmrec.errors import ConfigError, NonFiniteLoss, UserError
from mmrec.pretraining.language_model import (
    load_language_model,
    make_task,
    positions_of,
    read_tokenizer,
)
from mmrec.pretraining.tasks import Task, perplexity, total_loss
from mmrec.pretraining.texts import Texts
from mmrec.training.optimiser import rate_at

logger = logging.getLogger(__name__)

SCHEMA = 1
WARMUP_SHARE = 0.1
WEIGHT_DECAY, MAX_GRAD_NORM = 0.01, 1.0  # as BERT's own pre-training has them

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast.

    Attributes:
        epochs: times that every text is read.
        batch_size: items a step.
        learning_rate: at the top of the schedule; 1e-5 to 5e-5 leave what the weights know.
        seed: of order, hidden pieces and dropout.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 3e-5
    seed: int = 0


@dataclass(frozen=True)
class Pretrained:
    """What came of it; `pretraining.json` holds the same.

    Attributes:
        task: `masked` or `causal`.
        weights: that it started from.
        data_hash: of the prepared folder.
        num_items: whose texts trained.
        num_held_out: whose texts measured.
        steps: taken.
        perplexity_before, perplexity_after: of a piece of the texts held out.
        seconds: in all.
    """

    task: str
    weights: str
    data_hash: str
    num_items: int
    num_held_out: int
    steps: int
    perplexity_before: float
    perplexity_after: float
    seconds: float

    def line(self) -> str:
        """One line for the console."""
        kind = "pseudo-perplexity" if self.task == "masked" else "perplexity"
        return (
            f"{self.num_items} texts, {self.steps} steps, {self.seconds:.0f} s; {kind} of "
            f"{self.num_held_out} texts held out: {self.perplexity_before:.2f} before, "
            f"{self.perplexity_after:.2f} after"
        )


def pretrain(
    config: Config,
    data_folder: Path,
    out: Path,
    settings: Pretraining = Pretraining(),
    *,
    progress: Progress | None = None,
) -> Pretrained:
    """Trains the model that `encoders.text` names, on texts of items that are cold in no split.

    Nothing is written before the end.

    Args:
        config: a run's settings; encoders.text says which weights, and how long texts are.
        data_folder: a prepared folder.
        out: a new or empty folder for the weights.
        settings: how long and how fast.
        progress: called after each step with (steps done, steps in all, a note).

    Raises:
        ConfigError: encoders.text is no pretrained text model, or texts are too few.
        NonFiniteLoss: training diverged.
        ShardError: the data cannot be opened, or a table of theirs was changed.
        UserError: the folder holds something.
        WeightsError: the weights are missing, or of no kind that can be trained so.
    """
    started = time.perf_counter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: holds something already; give a new or an empty folder")
    encoder = config.encoders.get("text")
    if encoder is None or encoder.kind != "transformers" or encoder.weights is None:
        found = (
            "absent" if encoder is None else f"of kind '{encoder.kind}', weights {encoder.weights}"
        )
        raise ConfigError(
            f"encoders.text is {found}: what can be trained without labels is a pretrained text "
            "model; set encoders.text.kind=transformers and encoders.text.weights=NAME"
        )
    folder = resolve_weights(encoder.weights)
    torch.use_deterministic_algorithms(config.training.deterministic)
    torch.manual_seed(settings.seed)
    model = load_language_model(folder)
    positions = positions_of(model, folder)
    max_length = int(encoder.options.get("max_length", 256))
    if max_length > positions:
        raise ConfigError(
            f"encoders.text.options.max_length is {max_length}, but the model in {folder} reads "
            f"{positions} pieces at most: set encoders.text.options.max_length={positions}"
        )
    data = PreparedData.open(data_folder)
    data.verify_tables()
    texts = Texts(
        data,
        TextTransform(
            read_tokenizer(folder),
            max_length=max_length,
            max_chunks=int(encoder.options.get("max_chunks", 1)),
        ),
    )
    task = make_task(model, texts.transform, folder)
    model.to(pick_device())
    training, held_out = texts.split()
    batch_size = settings.batch_size
    measured = [texts.read(rows) for rows in _cut(held_out, batch_size)]
    before = perplexity(model, task, measured)
    logger.info("perplexity of %d texts held out: %.2f", len(held_out), before)
    steps = _train(
        model, task, texts, training, settings, precision=config.training.precision,
        progress=progress,
    )  # fmt: skip
    outcome = Pretrained(
        task=task.name,
        weights=encoder.weights,
        data_hash=data.data_hash,
        num_items=len(training),
        num_held_out=len(held_out),
        steps=steps,
        perplexity_before=before,
        perplexity_after=perplexity(model, task, measured),
        seconds=round(time.perf_counter() - started, 3),
    )
    _write(out, model, folder, outcome, settings)
    return outcome


def _train(
    model: Any,
    task: Task,
    texts: Texts,
    items: Sequence[int],
    settings: Pretraining,
    *,
    precision: str,
    progress: Progress | None,
) -> int:
    """The loop; returns the steps taken."""
    device = model.device
    optimiser = torch.optim.AdamW(_groups(model), lr=settings.learning_rate)
    batches_an_epoch = math.ceil(len(items) / settings.batch_size)
    total = settings.epochs * batches_an_epoch
    step = 0
    model.train()
    for epoch, batch, rows in _order(items, settings):
        random = torch.Generator().manual_seed(
            int(np.random.default_rng((settings.seed, epoch, 1, batch)).integers(2**62))
        )
        token_ids, mask = texts.read(rows)
        inputs, answers = task.draw(token_ids, mask, random)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate_at(
                step, total_steps=total, warmup_steps=int(WARMUP_SHARE * total), min_rate=0.0
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, count = total_loss(
                model, (inputs.to(device), answers.to(device)), mask.to(device)
            )
        loss = loss / max(count, 1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        if not torch.isfinite(norm):
            raise NonFiniteLoss(
                f"gradient of epoch {epoch}, batch {batch} is {float(norm)}: lower --learning-rate "
                f"({settings.learning_rate:g})"
            )
        optimiser.step()
        step += 1
        if progress is not None:
            progress(step, total, f"epoch {epoch} loss {float(loss.detach()):.3f}")
    return step


def _order(items: Sequence[int], settings: Pretraining) -> Iterator[tuple[int, int, list[int]]]:
    """Epoch, number and items of each batch, in an order that (seed, epoch) decides."""
    for epoch in range(settings.epochs):
        random = np.random.default_rng((settings.seed, epoch, 0))
        shuffled = random.permutation(np.asarray(items)).tolist()
        for batch, rows in enumerate(_cut(shuffled, settings.batch_size)):
            yield epoch, batch, rows


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters with decay (matrices) and without (norms, biases, embeddings and what is tied)."""
    embedded = {
        id(each)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for each in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for each in model.parameters():
        (decayed if each.ndim > 1 and id(each) not in embedded else others).append(each)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


def _write(out: Path, model: Any, source: Path, outcome: Pretrained, settings: Pretraining) -> None:
    """Writes the folder aside, then renames it."""
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        model.cpu().save_pretrained(aside)
        shutil.copyfile(source / "tokenizer.json", aside / "tokenizer.json")
        document = {"schema": SCHEMA, **asdict(outcome), "settings": asdict(settings)}
        text = json.dumps(document, indent=2) + "\n"
        (aside / "pretraining.json").write_text(text, encoding="utf-8")
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
