"""An epoch of ids on MovieLens-1M beside the same with plain fp32 cross-entropy over all items.

Settings of configs/movielens-1m-id.yaml. Both sides read the same batches from shards and take the
whole step on the same model; they differ in the loss alone, which leaves the same items out. Each
round takes another twentieth of an epoch, batches of every length, and scales its seconds by the
number of targets. No bar. Where MovieLens-1M is absent, a made log of its size and lengths stands
in. About a minute on two quiet cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from measure import arguments, report, seconds_of
from movielens import prepare_log, read_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmrec.build import Assembly, assemble
from mmrec.data.histories import Samples
from mmrec.training.distributed import ALONE
from mmrec.training.losses import ExcludedPairs
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import train_step
from mmrec.training.train import wrap

PARTS = 20


def plain_softmax(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    excluded: ExcludedPairs | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`catalogue_softmax` with all logits at once in fp32, by torch's own cross-entropy."""
    with torch.autocast(users.device.type, enabled=False):
        logits = torch.addmm(bias.float(), users.float(), items.float().T)
        if excluded is not None:
            kept = excluded.items != targets[excluded.rows]
            pairs = excluded.rows[kept] * items.shape[0] + excluded.items[kept]
            logits.view(-1).index_fill_(0, pairs, float("-inf"))
        if weights is None:
            return cross_entropy(logits, targets, label_smoothing=label_smoothing)
        terms = cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
        return (terms * weights).sum() / weights.sum()


class Stepper:
    """Takes training steps as `train` does, on one model."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.trained = wrap(assembly, ALONE)
        self.optimiser = make_optimiser(assembly.model, assembly.config)

    def run(self, batches: Sequence[tuple[int, Samples]], *, plain: bool) -> list[float]:
        """Read and step through numbered batches; their losses."""
        if plain:
            with mock.patch("mmrec.training.objective.catalogue_softmax", plain_softmax):
                return self.run(batches, plain=False)
        assembly, losses = self.assembly, []
        for index, samples in batches:
            output = train_step(
                self.trained,
                assembly.stream.prepare(samples, index).to(assembly.device),
                self.optimiser,
                None,
                assembly.config.training,
            )
            losses.append(float(output.loss))
        return losses


def num_targets(batches: Sequence[tuple[int, Samples]]) -> int:
    return int(sum((samples.stop - samples.start - 1).sum() for _, samples in batches))


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        log = prepare_log(Path(name), given.small)
        config = read_config(given.small)
        torch.use_deterministic_algorithms(config.training.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as `train` does
        assembly = assemble(config, Path(name) / "prepared")
        stepper = Stepper(assembly)
        epoch = sorted(enumerate(assembly.stream.plan.batches(0)), key=lambda b: num_targets([b]))
        middle = epoch[len(epoch) // 2 :][:1]
        for plain in (False, True):  # before the clock: kernels and the optimiser are set up
            stepper.run(middle, plain=plain)

        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(given.rounds):
            part = epoch[int((turn + 0.5) * PARTS / given.rounds) :: PARTS]
            scale = num_targets(epoch) / num_targets(part)
            for times, plain in ((ours, False), (theirs, True)):
                times.append(scale * seconds_of(lambda: stepper.run(part, plain=plain)))  # noqa: B023
    setting = {
        "log": log,
        "items": assembly.num_rows,
        "targets": num_targets(epoch),
        "batches": len(epoch),
        "measured": f"a part in {PARTS} of the batches each round, scaled by targets",
        "batch_size": config.training.batch_size,
        "max_history": config.data.max_history,
        "width": config.model.width,
        "blocks": config.model.history.num_blocks,
        "precision": config.training.precision,
    }
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    report("epoch_time_to_plain", ratios, unit="ratio", small=given.small, config=setting)
    report("epoch_time", ours, unit="s", small=given.small, config=setting)
    setting["precision"] = f"{setting['precision']}, loss in fp32"
    report("epoch_time_plain", theirs, unit="s", small=given.small, config=setting)


if __name__ == "__main__":
    main()
