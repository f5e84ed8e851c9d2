"""Training: build, maybe resume, step through the batches, look at validation, save.

    RUN/config.yaml data.json          what is trained, on what
    RUN/metrics.jsonl                  one object a logged step or look
    RUN/checkpoints/                   see mmrec.training.checkpoint

A run that was killed at any moment and resumed equals the unbroken one bit for bit, for equal
machine type, threads and versions.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrec.build import Assembly, assemble
from mmrec.config import Config
from mmrec.data.batch import batch_loader
from mmrec.errors import CheckpointMismatch
from mmrec.training import budget
from mmrec.training.checkpoint import (
    SCHEMA,
    TrainState,
    load_checkpoint,
    model_tensors,
    newest_checkpoint,
    save_checkpoint,
    write_folder,
)
from mmrec.training.distributed import GatherContents, Ranks, is_sharded, join_ranks
from mmrec.training.files import MetricsLog, NoLog, bind_data, check_run, open_run
from mmrec.training.final import write_final
from mmrec.training.optimiser import make_optimiser, rate_at
from mmrec.training.sharding import look, shard
from mmrec.training.start import start_content
from mmrec.training.step import TrainedModel, train_step
from mmrec.training.trackers import check_trackers
from mmrec.training.unfreeze import set_trained
from mmrec.training.validate import Validation, validate
from mmrec.vectors import encode_content

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the caller's progress display is told after a step."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    seconds_left: float


def train(
    config: Config,
    data_folder: Path,
    run: Path,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    after_look: Callable[[int, float], bool] | None = None,
) -> TrainState:
    """Trains a run to its end.

    Args:
        config: complete settings.
        data_folder: a prepared folder.
        run: where the run is written; a new or empty folder unless resuming.
        resume: go on from the newest checkpoint; start anew where there is none.
        progress: called after each step that is logged.
        after_look: called after each look at validation with the epoch and the value that decides;
            True ends the run there, with the best weights so far. A resumed run repeats the looks
            after its checkpoint.

    Returns:
        The final state.

    Raises:
        CheckpointMismatch: the folder holds another run, or other data.
        ConfigError: a setting does not fit the data.
        NonFiniteLoss: training diverged.
    """
    torch.use_deterministic_algorithms(config.training.deterministic)
    # no result here reads memory it has not written; filling it costs a tenth of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    check_trackers(config.training.trackers)
    with join_ranks() as ranks:
        with ranks.in_turn():  # the first fills the caches and opens the run
            if ranks.is_main:
                check_run(run, config, resume)
            torch.manual_seed(config.training.seed)
            assembly = assemble(config, data_folder, rank=ranks.rank, world=ranks.world)
            if ranks.is_main:
                open_run(run, config)
                bind_data(run, assembly)
        return _train(assembly, run, ranks, progress=progress, after_look=after_look)


def _train(
    assembly: Assembly,
    run: Path,
    ranks: Ranks,
    *,
    progress: Callable[[Progress], None] | None,
    after_look: Callable[[int, float], bool] | None,
) -> TrainState:
    """The loop of one rank; the first writes the run."""
    config, model, settings = assembly.config, assembly.model, assembly.config.training
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    steps_an_epoch = assembly.stream.plan.num_batches(0)
    total_steps = settings.max_steps or settings.max_epochs * steps_an_epoch

    budget.start(model, total_steps)
    state = TrainState()
    found = newest_checkpoint(checkpoints)
    bank = None
    if assembly.source is not None:
        bank = torch.zeros(assembly.num_rows, config.model.width, device=assembly.device)
    if found is None and bank is not None:
        start_content(assembly)
        bank.copy_(_trained_content(assembly))
    trained = wrap(assembly, ranks)
    optimiser = make_optimiser(model, config)  # of the parameters that wrapping leaves
    base_rates = [group["lr"] for group in optimiser.param_groups]
    if found is not None:
        state = load_checkpoint(found, model=model, optimiser=optimiser, bank=bank)
        logger.info("resumed at step %d (epoch %d, batch %d)", state.step, state.epoch, state.batch)
    with closing(MetricsLog(run, config, state) if ranks.is_main else NoLog()) as log:
        while not state.finished:
            set_trained(model, config, state.epoch)
            loader = batch_loader(
                assembly.stream,
                epoch=state.epoch,
                first_batch=state.batch,
                num_workers=config.data.num_workers,
            )
            for batch in loader:
                started = time.perf_counter()
                factor = rate_at(
                    state.step,
                    total_steps=total_steps,
                    warmup_steps=settings.warmup_steps,
                    min_rate=settings.min_rate,
                )
                for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
                output = train_step(
                    trained, batch.to(assembly.device), optimiser, bank, settings, ranks
                )
                budget.spend(model, state.step)
                state.step, state.batch = state.step + 1, batch.index + 1
                state.seconds += time.perf_counter() - started
                if state.step % settings.log_every == 0 or state.step == total_steps:
                    loss = float(output.loss)
                    log.write(
                        {
                            "step": state.step,
                            "epoch": state.epoch,
                            "loss": loss,
                            **{name: float(each) for name, each in output.others.items()},
                            "grad_norm": float(output.grad_norm),
                            "learning_rate": settings.learning_rate * factor,
                            "temperature": float(model.temperature.detach()),
                            "num_targets": output.num_targets,
                        }
                    )
                    if progress is not None and ranks.is_main:
                        left = state.seconds / state.step * (total_steps - state.step)
                        progress(Progress(state.step, total_steps, state.epoch, loss, left))
                if state.step >= total_steps:
                    break
                if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
                    _save(checkpoints, assembly, optimiser, bank, state, log, ranks)
            _finish_epoch(
                assembly,
                trained,
                optimiser,
                bank,
                state,
                log,
                checkpoints,
                total_steps,
                after_look,
                ranks,
            )
    if ranks.is_main or is_sharded(model):
        write_final(run, assembly, trained, state, ranks)
    return state


def wrap(assembly: Assembly, ranks: Ranks) -> nn.Module:
    """The model with its losses; where several ranks train, with what keeps them one model.

    Of DDP, parameters that a rank's items do not reach (a tower none of them has a medium for,
    contents that stand still) are looked for in every step. One rank alone shards nothing: a mesh
    of one would copy each parameter to no end.
    """
    trained = TrainedModel(
        assembly.model,
        assembly.config.training,
        modality_dropout=assembly.config.model.fusion.modality_dropout,
        repeats_forbidden=assembly.repeats_forbidden,
        gather=GatherContents(ranks) if ranks.world > 1 else None,
    )
    if ranks.world == 1:
        return trained
    if assembly.config.training.sharding == "full":
        shard(trained, assembly.model, ranks, parts=assembly.config.training.micro_batches)
        return trained
    device_ids = [assembly.device.index] if assembly.device.index is not None else None
    with warnings.catch_warnings():
        # the newer name of broadcast_buffers is not known to every torch that is allowed
        warnings.simplefilter("ignore", FutureWarning)
        # buffers are the same on every rank: they are computed from the items of all
        return DistributedDataParallel(
            trained, device_ids=device_ids, find_unused_parameters=True, broadcast_buffers=False
        )


def _finish_epoch(
    assembly: Assembly,
    trained: nn.Module,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    state: TrainState,
    log: MetricsLog | NoLog,
    checkpoints: Path,
    total_steps: int,
    after_look: Callable[[int, float], bool] | None,
    ranks: Ranks,
) -> None:
    """Moves on to the next epoch; looks at validation where it is due; decides on stopping.

    Every rank looks for itself, so that none waits; the first one's figure decides.
    """
    settings = assembly.config.training
    state.epoch, state.batch = state.epoch + 1, 0
    ended = state.step >= total_steps or state.epoch >= settings.max_epochs
    if assembly.validation is not None and (ended or state.epoch % settings.evaluate_every == 0):
        looked = look(trained, lambda: validate(assembly, precision=settings.precision))
        if bank is not None and looked.content is not None:
            bank.copy_(looked.content[torch.from_numpy(assembly.item_index_of).to(bank.device)])
        value = ranks.of_main(stopping_value(looked, settings.stop_on))
        log.write({"step": state.step, "epoch": state.epoch, "validation": looked.metrics})
        logger.info("epoch %d: %s", state.epoch, looked.line())
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.looks_without_gain = value, state.step, 0
            _write_best(checkpoints, assembly, bank, state, ranks)
        else:
            state.looks_without_gain += 1
            ended = ended or state.looks_without_gain >= settings.patience
        if after_look is not None and after_look(state.epoch, value):
            ended = True
    state.finished = ended
    _save(checkpoints, assembly, optimiser, bank, state, log, ranks)


def stopping_value(looked: Validation, stop_on: str) -> float:
    """NDCG@10 of the slices that stop_on names (`warm`, `warm+cold`, …), their mean.

    Raises:
        CheckpointMismatch: validation has no such slice.
    """
    values = []
    for name in stop_on.split("+"):
        metrics = looked.metrics.get(name)
        if metrics is None:
            having = ", ".join(key for key, value in looked.metrics.items() if value)
            raise CheckpointMismatch(
                f"training.stop_on is '{stop_on}' but validation has no slice '{name}'; "
                f"it has {having}"
            )
        values.append(metrics["ndcg@10"])
    return sum(values) / len(values)


def _save(
    checkpoints: Path,
    assembly: Assembly,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    state: TrainState,
    log: MetricsLog | NoLog,
    ranks: Ranks,
) -> None:
    if isinstance(log, MetricsLog):
        state.metrics_bytes = log.flush()
    save_checkpoint(
        checkpoints,
        model=assembly.model,
        optimiser=optimiser,
        bank=bank,
        state=state,
        ranks=ranks,
    )


def _write_best(
    checkpoints: Path, assembly: Assembly, bank: Tensor | None, state: TrainState, ranks: Ranks
) -> None:
    tensors: dict[str, Any] = {"model": model_tensors(assembly.model)}
    if not ranks.is_main:
        return
    if bank is not None:
        tensors["bank"] = {"content": bank}
    write_folder(checkpoints / f"best-{state.best_step:08d}", tensors, {"schema": SCHEMA})


def _trained_content(assembly: Assembly) -> Tensor:
    assert assembly.source is not None
    return encode_content(assembly.model, assembly.source, assembly.item_index_of)
