"""One training step: the losses of a batch, their gradient, the update, the bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch
from mmrec.errors import NonFiniteLoss
from mmrec.model import RecommenderModel
from mmrec.training import budget
from mmrec.training.distributed import ALONE, GatherContents, Ranks
from mmrec.training.fresh import step_generator
from mmrec.training.objective import Losses, compute_losses
from mmrec.training.sharding import average_whole_gradients, clip_sharded_gradients

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepOutput:
    """What a step reports.

    Attributes:
        loss: of items as they are.
        others: the other losses that the step has, by the name of their field of `Losses`, and the
            log variances that weigh them.
        grad_norm: of their weighted sum, before clipping.
        num_targets: positions that the losses are means of.
    """

    loss: Tensor
    others: dict[str, Tensor]
    grad_norm: Tensor
    num_targets: int


class TrainedModel(nn.Module):
    """A model with its losses as its forward pass: what data parallelism wraps.

    Args:
        model: whose parameters train.
        config: loss settings.
        modality_dropout: chance that a present modality is masked in the second loss.
        repeats_forbidden: leave items met before out of the candidates.
        gather: puts the items of all ranks together; None for a process alone.
    """

    def __init__(
        self,
        model: RecommenderModel,
        config: TrainingConfig,
        *,
        modality_dropout: float,
        repeats_forbidden: bool,
        gather: GatherContents | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.modality_dropout, self.repeats_forbidden = modality_dropout, repeats_forbidden
        self.gather = gather
        if gather is not None and model.fusion is not None:
            gather.attach(model.fusion.out)  # type: ignore[arg-type]

    def forward(self, batch: Batch, bank: Tensor | None) -> tuple[Tensor, Losses]:
        """The weighted sum of a batch's losses, and its terms."""
        if self.gather is not None:
            self.gather.num_items = (batch.fresh.shape[0],)
        config, device = self.config, batch.inputs.device
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = compute_losses(
                self.model,
                batch,
                bank,
                config,
                modality_dropout=self.modality_dropout,
                repeats_forbidden=self.repeats_forbidden,
                gather=self.gather,
            )
        total = losses.loss
        for weight, loss in (
            (config.cold_weight, losses.cold_loss),
            (config.alignment_weight, losses.alignment),
            (config.modality_weight, losses.modality_loss),
            (config.query_weight, losses.query_loss),
            (config.shown_weight, losses.shown_loss),
            (config.variety_weight, losses.variety_loss),
        ):
            if loss is not None:
                total = total + weight * loss
        weights = self.model.loss_weights
        losses = replace(losses, log_variances=weights.current())
        total = weights.of_next_item(total)  # what stands with it has a share of its weight
        for name, loss in losses.heads.items():
            total = total + weights.of_task(name, loss)
        for name, loss in losses.labels.items():
            total = total + weights.of_task(f"{name}_labels", loss)
        extra = budget.penalty(self.model)
        return total if extra is None else total + extra, losses

    def look(self, function: Callable[[], Result]) -> Result:
        """What reads the model outside of a step, as a forward pass; see `sharding.look`."""
        return function()


class MixedTrained(nn.Module):
    """Several catalogues' models with their losses: a batch is one's.

    Args:
        catalogues: by name.
    """

    def __init__(self, catalogues: Mapping[str, TrainedModel]) -> None:
        super().__init__()
        self.catalogues = nn.ModuleDict({f"of_{name}": each for name, each in catalogues.items()})

    def forward(self, batch: Batch, bank: Tensor | None) -> tuple[Tensor, Losses]:
        """As `TrainedModel.forward`, of the batch's catalogue."""
        found: tuple[Tensor, Losses] = self.catalogues[f"of_{batch.catalogue}"](batch, bank)
        return found


def train_step(
    trained: nn.Module,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    bank: Tensor | None,
    config: TrainingConfig,
    ranks: Ranks = ALONE,
) -> StepOutput:
    """Forward, backward, clip, update; the fresh items' content goes to the bank.

    Args:
        trained: a TrainedModel, or what wraps one.
        batch: on the model's device.
        optimiser: over its parameters.
        bank: (R, D) last content of every item of the batch's catalogue, written in place; None
            where the item is its id.
        config: loss settings.
        ranks: who trains.

    Raises:
        NonFiniteLoss: the gradient is NaN or infinite; names epoch, batch and loss.
    """
    # dropout is a function of (seed, epoch, batch, rank), so that a resumed run repeats it
    seed = int(step_generator(config.seed, batch, 6).integers(2**62))
    torch.manual_seed(seed + ranks.rank)
    trained.train()
    total, losses = trained(batch, bank)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    if isinstance(trained, FSDPModule):
        average_whole_gradients(trained, ranks)
        grad_norm = clip_sharded_gradients(trained, config.max_grad_norm)
    else:
        grad_norm = nn.utils.clip_grad_norm_(trained.parameters(), config.max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise NonFiniteLoss(
            f"gradient of epoch {batch.epoch}, batch {batch.index} is {float(grad_norm)} at loss "
            f"{float(total.detach())}: lower training.learning_rate or set training.precision=fp32"
        )
    optimiser.step()
    if bank is not None and losses.content is not None:
        # of before the update, and with the encoders' dropout: to encode once more would cost a
        # third of an end-to-end step. Each look at validation fills the bank anew, without.
        with torch.no_grad():
            bank.index_copy_(0, batch.fresh, losses.content)
    return StepOutput(
        loss=ranks.mean(losses.loss.detach()),
        others=_others(losses, ranks),
        grad_norm=grad_norm,
        num_targets=batch.num_counted,
    )


def _others(losses: Losses, ranks: Ranks) -> dict[str, Tensor]:
    """The losses beside the first; those of positions are shares of a mean over the ranks."""
    shares = {"cold_loss": losses.cold_loss, "modality_loss": losses.modality_loss}
    shares |= {"shown_loss": losses.shown_loss, "variety_loss": losses.variety_loss}
    shares |= {f"{name}_loss": each for name, each in losses.heads.items()}
    whole = {"alignment": losses.alignment, "query_loss": losses.query_loss}
    whole |= {f"{name}_labels_loss": each for name, each in losses.labels.items()}
    return {
        **losses.log_variances,
        **{name: ranks.mean(each.detach()) for name, each in shares.items() if each is not None},
        **{name: each.detach() for name, each in whole.items() if each is not None},
    }
