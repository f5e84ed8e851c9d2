"""`mmrec train-ranker`: trains the second stage on its frozen retriever's lists.

    RUN ─► lists of training events ─► epochs: softmax over each list, heads ─► RUN/ranker
                                         └► validation ranked again: the best epoch is kept

Epoch 0 is retrieval alone. A ranker whose gain on validation may be chance is kept, and not used
unless it is asked for. What is unfinished lies in RUN/.ranker, one checkpoint an epoch.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.ranker import Candidates, Ranker
from mmrec.data.ragged import IntArray
from mmrec.errors import NonFiniteLoss, UserError
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.ranking.files import UNFINISHED, check_folder, write_final, write_json
from mmrec.ranking.gain import Asked, ask, gain, rank_again, value_of
from mmrec.ranking.heads import head_losses, judge_heads
from mmrec.ranking.latents import map_latents, write_latents
from mmrec.ranking.lists import (
    Frozen,
    Lists,
    freeze,
    held_out_examples,
    lists_of,
    training_examples,
)
from mmrec.ranking.settings import RankerConfig
from mmrec.retrieval.load import retriever_of
from mmrec.retrieval.ranker_inputs import RankerInputs
from mmrec.retrieval.second_stage import make_ranker
from mmrec.training.checkpoint import (
    load_model,
    optimiser_tensors,
    read_tensors,
    restore_optimiser,
    write_folder,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass
class State:
    """Where the training of a ranker is: all that changes and is no tensor.

    epoch: how many have been trained.
    best_value, best_epoch: NDCG@10 on validation; of epoch 0 that of retrieval alone.
    history: loss and NDCG@10 of each epoch.
    """

    epoch: int
    best_value: float
    best_epoch: int
    history: list[dict[str, float]]


def train_ranker(
    run: Path,
    settings: RankerConfig,
    *,
    data: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a ranker beside a finished run and writes RUN/ranker.

    Args:
        run: a finished run.
        settings: of the ranker.
        data: the prepared folder where it has moved.
        resume: go on after the last epoch of one that was interrupted.
        progress: called with (steps done, steps of all epochs, a note).

    Returns:
        The content of RUN/ranker/metrics.json.

    Raises:
        CheckpointMismatch: the run is not finished, its data are others, or it has a ranker.
        UserError: there is nothing to train on, or no validation to judge it by.
        NonFiniteLoss: the loss is not finite.
    """
    check_folder(run, settings, resume)
    loaded = load_run(run, data)
    assert loaded.data is not None and loaded.split is not None
    frozen = freeze(loaded)
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    cases = load_cases(loaded.data, loaded.split, "validation")
    if not len(cases):
        raise UserError(
            f"split {loaded.split.name} has no validation targets, which tell whether a ranker "
            "helps; train a run on another split"
        )
    work = run / UNFINISHED
    work.mkdir(exist_ok=True)
    write_json(work / "config.json", settings.model_dump())
    if not (work / "latents.npy").is_file() and write_latents(loaded, work / "latents.part"):
        os.replace(work / "latents.part", work / "latents.npy")
    inputs = RankerInputs(
        loaded.model, frozen.vectors, frozen.counts, map_latents(work / "latents.npy")
    )
    # with several threads, gradients of gathered rows are else summed in any order
    torch.use_deterministic_algorithms(loaded.config.training.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(settings.seed)
    ranker = make_ranker(loaded.model, inputs, settings.model_dump()).to(loaded.device)
    examples = training_examples(loaded, most=settings.lists, seed=settings.seed)
    if not examples:
        raise UserError(f"{run}: no training history has two events, so there is no list to rank")
    lists = lists_of(frozen, examples, k=settings.candidates, shown=settings.shown)
    logger.info(
        "%d lists of training; the item met next is among the first %d of %.1f %%",
        len(lists),
        settings.candidates,
        100 * lists.found,
    )
    if not len(lists.useful()):
        raise UserError(
            f"{run}: retrieval found no item met next among its first {settings.candidates} and "
            "nothing has a label, so there is nothing to learn; give more ranker.candidates"
        )
    asked = ask(frozen, cases, settings.candidates)
    started = time.monotonic()
    state = _train(frozen, inputs, ranker, lists, asked, settings, work, resume, progress)
    _load_best(work, ranker, state)
    held_out = held_out_examples(loaded, "validation")
    of_heads = judge_heads(
        frozen,
        inputs,
        ranker,
        lists_of(frozen, held_out, k=settings.candidates, shown=settings.shown)
        if held_out
        else None,
    )
    found = gain(asked, rank_again(frozen, inputs, ranker, asked))
    document = {
        "candidates": settings.candidates,
        "num_lists": len(lists),
        "lists_with_target": lists.found,
        "best_epoch": state.best_epoch,
        "epochs": state.history,
        "seconds": round(time.monotonic() - started, 1),
        "in_use": state.best_epoch > 0 and found["all"]["interval"][0] > 0,
        "validation": found,
        "heads": of_heads,
    }
    write_final(run, work, ranker, settings, document, retriever_of(loaded).model_hash)
    return document


def _train(
    frozen: Frozen,
    inputs: RankerInputs,
    ranker: Ranker,
    lists: Lists,
    asked: Asked,
    settings: RankerConfig,
    work: Path,
    resume: bool,
    progress: Progress | None,
) -> State:
    """The epochs; the best weights lie in WORK/best unless retrieval alone was best."""
    optimiser = torch.optim.AdamW(
        ranker.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    alone = value_of(asked.ranking, asked.cases)
    state = State(0, alone, 0, [])
    if resume and (work / "last" / "state.json").is_file():
        state = State(**json.loads((work / "last" / "state.json").read_text(encoding="utf-8")))
        load_model(work / "last", ranker)
        restore_optimiser(ranker, optimiser, read_tensors(work / "last" / "optimiser.safetensors"))
    useful = lists.useful()
    num_steps = -(-len(useful) // settings.batch_size)
    while state.epoch < settings.max_epochs:
        if state.epoch - state.best_epoch >= settings.patience:
            break
        random = np.random.default_rng((settings.seed, 2, state.epoch))
        torch.manual_seed(int(random.integers(2**62)))  # an epoch resumed drops out what it would
        order = useful[random.permutation(len(useful))]
        total = 0.0
        ranker.train()
        for step, start in enumerate(range(0, len(order), settings.batch_size)):
            rows = order[start : start + settings.batch_size]
            loss = list_loss(frozen, inputs, ranker, lists, rows, settings, random)
            if not torch.isfinite(loss):
                raise NonFiniteLoss(
                    f"the ranker's loss is {float(loss)} in step {step} of epoch {state.epoch + 1};"
                    " lower ranker.learning_rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
            if progress is not None:
                done = state.epoch * num_steps + step + 1
                progress(done, settings.max_epochs * num_steps, f"epoch {state.epoch + 1}")
        value = value_of(rank_again(frozen, inputs, ranker, asked), asked.cases)
        state.epoch += 1
        state.history.append({"loss": total / len(order), "ndcg@10": value})
        if value > state.best_value:
            state.best_value, state.best_epoch = value, state.epoch
            write_folder(work / "best", {"model": ranker.state_dict()}, asdict(state))
        tensors = {"model": ranker.state_dict(), "optimiser": optimiser_tensors(ranker, optimiser)}
        write_folder(work / "last", tensors, asdict(state))
        logger.info(
            "epoch %d: loss %.4f, validation ndcg@10 %.4f (retrieval alone %.4f)",
            state.epoch,
            total / len(order),
            value,
            alone,
        )
    return state


def list_loss(
    frozen: Frozen,
    inputs: RankerInputs,
    ranker: Ranker,
    lists: Lists,
    rows: IntArray,
    settings: RankerConfig,
    random: np.random.Generator,
) -> Tensor:
    """The loss of some lists.

        mean over lists with a target of -log softmax(s / tau + f)[target] over what is listed
        + sum over heads of weight x their mean loss,

    with s the frozen retriever's score and f the ranker's correction. A candidate that is shown as
    new keeps its score s: with the score of a new item, which is lower, f learnt to raise all new
    items, and undid what was chosen for them (on MovieLens-100K NDCG@10 of new ones .0220 to .0646,
    of warm ones .1212 to .0873). Scores of the retriever are
    what it gives to events that it was trained on, so they are better than they will be in use.

    Args:
        frozen: the retriever.
        inputs: of its candidates.
        ranker: in training mode.
        lists: all of them.
        rows: (B,) of the lists.
        settings: new_share and latent_dropout count.
        random: draws which candidates are shown as new, and whose go without latents.
    """
    model = frozen.loaded.model
    device = lists.users.device
    at = torch.from_numpy(rows).to(device)
    part = lists.cases.take(rows)
    scores = lists.scores[at]
    as_new = None
    if frozen.vectors.content is not None:
        drawn = random.random(lists.items[rows].shape) < settings.new_share
        as_new = torch.from_numpy(drawn).to(device)
    candidates = inputs.candidates(lists.items[rows], scores, as_new)
    hidden = torch.from_numpy(random.random(len(rows)) < settings.latent_dropout).to(device)
    past = inputs.past(lists.users[at], part.history, part.told)
    told = ranker(_without_latents(candidates, inputs, hidden), past)
    target = torch.from_numpy(lists.target[rows]).to(device)
    logits = scores / model.temperature.detach() + told[..., 0]
    logits = logits.masked_fill(~torch.from_numpy(lists.listed[rows]).to(device), -torch.inf)
    taught = target >= 0
    loss = F.cross_entropy(logits[taught], target[taught], reduction="sum")
    loss = loss / max(int(taught.sum()), 1)
    shown = candidates.tokens[:, :, 0]
    of_heads = head_losses(frozen, lists, rows, shown, told, ranker.heads)
    for name, each in zip(ranker.heads, of_heads, strict=True):
        loss = loss + model.loss_weights.weights[name] * each
    return loss


def _without_latents(candidates: Candidates, inputs: RankerInputs, hidden: Tensor) -> Candidates:
    """Some users' candidates (B,) bool by embedding and content alone."""
    if inputs.latents is None:
        return candidates
    mask = candidates.mask.clone()
    mask[..., 2:] &= ~hidden[:, None, None]
    return Candidates(candidates.tokens, mask, candidates.features)


def _load_best(work: Path, ranker: Ranker, state: State) -> None:
    """The best epoch's weights; where none was better than retrieval alone, the last one's."""
    load_model(work / ("best" if state.best_epoch else "last"), ranker)
    ranker.eval()
