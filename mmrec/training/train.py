"""Training: build, maybe resume, step through the batches, look at validation, save.

    RUN/config.yaml data.json          what is trained, on what
    RUN/manifest.json                  with which versions, on what machine
    RUN/metrics.jsonl                  one object a logged step or look
    RUN/checkpoints/                   see mmrec.training.checkpoint
    RUN/catalogues/NAME/               of several catalogues: a run of each that stands for itself

A run that was killed at any moment and resumed equals the unbroken one bit for bit, for equal
machine type, threads and versions.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrec.build import Assembly, assemble
from mmrec.config import Config
from mmrec.data.batch import batch_loader
from mmrec.errors import CheckpointMismatch
from mmrec.mix import Mix, assemble_mix, banks_of, check_mix
from mmrec.run_config import go_on_with
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
from mmrec.training.files import (
    MetricsLog,
    NoLog,
    bind_data,
    catalogue_folder,
    check_run,
    open_run,
    split_metrics,
)
from mmrec.training.final import load_best, write_final
from mmrec.training.manifest import add_start
from mmrec.training.optimiser import make_optimiser, rate_at
from mmrec.training.sharding import look, shard
from mmrec.training.start import start_content
from mmrec.training.step import MixedTrained, TrainedModel, train_step
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
    data_folder: Path | Mapping[str, Path],
    run: Path,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    after_look: Callable[[int, float], bool] | None = None,
) -> TrainState:
    """Trains a run to its end.

    Args:
        config: complete settings.
        data_folder: a prepared folder; of several catalogues, each one's by its name.
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
    if resume:  # before ranks meet: the first of them writes the file that this reads
        config = go_on_with(config, run)
    check_trackers(config.training.trackers)
    with join_ranks() as ranks:
        with ranks.in_turn():  # the first fills the caches and opens the run
            if ranks.is_main:
                check_run(run, config, resume)
            torch.manual_seed(config.training.seed)
            whole = _assemble(config, data_folder, ranks)
            if ranks.is_main:
                open_run(run, config)
                for folder, assembly in _folders(run, whole).items():
                    if folder != run:
                        open_run(folder, assembly.config)
                    bind_data(folder, assembly)
        return _train(whole, run, ranks, progress=progress, after_look=after_look)


def _assemble(
    config: Config, data_folder: Path | Mapping[str, Path], ranks: Ranks
) -> Assembly | Mix:
    """One catalogue's parts, or several catalogues'."""
    if isinstance(data_folder, Mapping):
        return assemble_mix(config, data_folder, rank=ranks.rank, world=ranks.world)
    if config.catalogues:
        check_mix(config, {})
    return assemble(config, data_folder, rank=ranks.rank, world=ranks.world)


def _assemblies(whole: Assembly | Mix) -> dict[str | None, Assembly]:
    """Each catalogue's parts by its name: of one alone, None."""
    if isinstance(whole, Assembly):
        return {None: whole}
    return {name: each for name, each in whole.assemblies.items()}


def _folders(run: Path, whole: Assembly | Mix) -> dict[Path, Assembly]:
    """Where each catalogue has what stands for itself."""
    return {
        run if name is None else catalogue_folder(run, name): assembly
        for name, assembly in _assemblies(whole).items()
    }


def _train(
    whole: Assembly | Mix,
    run: Path,
    ranks: Ranks,
    *,
    progress: Callable[[Progress], None] | None,
    after_look: Callable[[int, float], bool] | None,
) -> TrainState:
    """The loop of one rank; the first writes the run."""
    config, model, settings = whole.config, whole.model, whole.config.training
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    steps_an_epoch = whole.stream.num_batches(0)
    total_steps = settings.max_steps or settings.max_epochs * steps_an_epoch

    budget.start(model, total_steps)
    state = TrainState()
    found = newest_checkpoint(checkpoints)
    assemblies = _assemblies(whole)
    bank = None
    if all(each.source is not None for each in assemblies.values()):
        num_rows = sum(each.num_rows for each in assemblies.values())
        bank = torch.zeros(num_rows, config.model.width, device=whole.device)
    if found is None and bank is not None:
        start_content(list(assemblies.values()))
        bank.copy_(torch.cat([_trained_content(each) for each in assemblies.values()]))
    banks = banks_of(bank, assemblies)
    trained = wrap(whole, ranks)
    optimiser = make_optimiser(model, config)  # of the parameters that wrapping leaves
    base_rates = [group["lr"] for group in optimiser.param_groups]
    if found is not None:
        state = load_checkpoint(found, model=model, optimiser=optimiser, bank=bank)
        logger.info("resumed at step %d (epoch %d, batch %d)", state.step, state.epoch, state.batch)
    if ranks.is_main and not state.finished:
        for folder, made_of in {**_folders(run, whole), run: whole}.items():
            add_start(
                folder,
                _assemblies(made_of),
                step=state.step,
                ranks=ranks.world,
                device=whole.device,
                precision=settings.precision,
            )
    with closing(MetricsLog(run, config, state) if ranks.is_main else NoLog()) as log:
        while not state.finished:
            set_trained(model, config, state.epoch)
            loader = batch_loader(
                whole.stream,
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
                own = banks.get(batch.catalogue)
                output = train_step(
                    trained, batch.to(whole.device), optimiser, own, settings, ranks
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
                            **({} if batch.catalogue is None else {"catalogue": batch.catalogue}),
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
                    _save(checkpoints, model, optimiser, bank, state, log, ranks)
            _finish_epoch(
                whole,
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
        load_best(run, model, state)
        for folder, assembly in _folders(run, whole).items():
            write_final(folder, assembly, trained, state, ranks)
    if ranks.is_main:
        for name in [name for name in assemblies if name is not None]:
            split_metrics(run, name)
    return state


def wrap(whole: Assembly | Mix, ranks: Ranks) -> nn.Module:
    """The model with its losses; where several ranks train, with what keeps them one model.

    Of DDP, parameters that a rank's items do not reach (a tower none of them has a medium for,
    contents that stand still, another catalogue's ids) are looked for in every step. One rank alone
    shards nothing: a mesh of one would copy each parameter to no end.
    """
    gather = GatherContents(ranks) if ranks.world > 1 else None
    each_trained = {
        name: TrainedModel(
            assembly.model,
            assembly.config.training,
            modality_dropout=assembly.config.model.fusion.modality_dropout,
            repeats_forbidden=assembly.repeats_forbidden,
            gather=gather,
        )
        for name, assembly in _assemblies(whole).items()
    }
    trained: nn.Module
    if isinstance(whole, Assembly):
        trained = each_trained[None]
    else:
        trained = MixedTrained({str(name): each for name, each in each_trained.items()})
    if ranks.world == 1:
        return trained
    if isinstance(whole, Assembly) and whole.config.training.sharding == "full":
        shard(trained, whole.model, ranks, parts=whole.config.training.micro_batches)
        return trained
    device_ids = [whole.device.index] if whole.device.index is not None else None
    with warnings.catch_warnings():
        # the newer name of broadcast_buffers is not known to every torch that is allowed
        warnings.simplefilter("ignore", FutureWarning)
        # buffers are the same on every rank: they are computed from the items of all
        return DistributedDataParallel(
            trained, device_ids=device_ids, find_unused_parameters=True, broadcast_buffers=False
        )


def _finish_epoch(
    whole: Assembly | Mix,
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

    Every rank looks for itself, so that none waits; the first one's figure decides: of several
    catalogues the mean of theirs.
    """
    settings = whole.config.training
    state.epoch, state.batch = state.epoch + 1, 0
    ended = state.step >= total_steps or state.epoch >= settings.max_epochs
    due = ended or state.epoch % settings.evaluate_every == 0
    values: list[float] = []
    metrics: dict[str | None, Any] = {}
    assemblies = _assemblies(whole)
    banks = banks_of(bank, assemblies)
    for name, assembly in assemblies.items():
        if not due or assembly.validation is None:
            continue
        looked = look(trained, partial(validate, assembly, precision=settings.precision))
        if name in banks and looked.content is not None:
            own = banks[name]
            own.copy_(looked.content[torch.from_numpy(assembly.item_index_of).to(own.device)])
        values.append(stopping_value(looked, settings.stop_on))
        metrics[name] = looked.metrics
        where = "" if name is None else f" {name}:"
        logger.info("epoch %d:%s %s", state.epoch, where, looked.line())
    if values:
        value = ranks.of_main(sum(values) / len(values))
        found = metrics[None] if None in metrics else metrics
        log.write({"step": state.step, "epoch": state.epoch, "validation": found})
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.looks_without_gain = value, state.step, 0
            _write_best(checkpoints, whole.model, bank, state, ranks)
        else:
            state.looks_without_gain += 1
            ended = ended or state.looks_without_gain >= settings.patience
        if after_look is not None and after_look(state.epoch, value):
            ended = True
    state.finished = ended
    _save(checkpoints, whole.model, optimiser, bank, state, log, ranks)


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
    model: nn.Module,
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
        model=model,
        optimiser=optimiser,
        bank=bank,
        state=state,
        ranks=ranks,
    )


def _write_best(
    checkpoints: Path, model: nn.Module, bank: Tensor | None, state: TrainState, ranks: Ranks
) -> None:
    tensors: dict[str, Any] = {"model": model_tensors(model)}
    if not ranks.is_main:
        return
    if bank is not None:
        tensors["bank"] = {"content": bank}
    write_folder(checkpoints / f"best-{state.best_step:08d}", tensors, {"schema": SCHEMA})


def _trained_content(assembly: Assembly) -> Tensor:
    assert assembly.source is not None
    return encode_content(assembly.model, assembly.source, assembly.item_index_of)
