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

import numpy as np
import polars as pl
import torch
from measure import ROOT, SHARED_DATA, arguments, report, seconds_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_prep.prepare import prepare
from mmrec.build import Assembly, assemble
from mmrec.config import load_config
from mmrec.data.histories import Samples
from mmrec.training.losses import ExcludedPairs
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import train_step

CONFIG = ROOT / "configs" / "movielens-1m-id.yaml"
MOVIELENS = ROOT / "configs" / "catalogues" / "movielens-1m.yaml"
SMALL = ("model.width=32", "data.max_history=50", "training.batch_size=32")
PARTS = 20

CATALOGUE = """\
name: generated
kind: video
items: {table: items.csv, id: item_id, text: [title]}
interactions: {table: log.parquet, user: user, item: item, order: order}
"""


def generate(source: Path, *, num_users: int, num_items: int, median: int) -> Path:
    """A log with the lengths of MovieLens-1M: log-normal, median 96, quartiles 47 and 194.

    Items are drawn without repeats, by a popularity that falls with the rank; returns the
    catalogue file.
    """
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(median), 1.043, num_users)).astype(np.int64)
    lengths = lengths.clip(min(18, median), num_items * 2 // 3)
    popularity = -np.log(np.arange(1, num_items + 1) + num_items / 20)
    users, items, orders = [], [], []
    for user, length in enumerate(lengths):
        # the largest of popularity and Gumbel noise: a draw without replacement
        drawn = np.argsort(-(popularity + rng.gumbel(size=num_items)))[:length]
        users.append(np.full(length, user))
        items.append(rng.permutation(drawn))
        orders.append(np.arange(length))
    columns = {"user": users, "item": items, "order": orders}
    log = pl.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    log.write_parquet(source / "log.parquet")
    titles = [f"title {item}" for item in range(num_items)]
    pl.DataFrame({"item_id": range(num_items), "title": titles}).write_csv(source / "items.csv")
    path = source / "catalogue.yaml"
    path.write_text(CATALOGUE)
    return path


def prepare_log(folder: Path, small: bool) -> str:
    """Prepares MovieLens-1M without its media, or a made log; returns which it is."""
    out, source = folder / "prepared", SHARED_DATA / "ml-1m"
    if source.is_dir() and not small:
        overrides = ("items.text=[title]", "items.image=[]")
        prepare(MOVIELENS, source, out, overrides=overrides, num_workers=1)
        return "movielens-1m"
    source = folder / "source"
    source.mkdir()
    sizes = (400, 300, 30) if small else (6040, 3416, 96)
    num_users, num_items, median = sizes
    catalogue = generate(source, num_users=num_users, num_items=num_items, median=median)
    prepare(catalogue, source, out, num_workers=1)
    return "made"


def plain_softmax(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
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
        return cross_entropy(logits, targets, label_smoothing=label_smoothing)


class Stepper:
    """Takes training steps as `train` does, on one model."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.optimiser = make_optimiser(assembly.model, assembly.config)

    def run(self, batches: Sequence[tuple[int, Samples]], *, plain: bool) -> list[float]:
        """Read and step through numbered batches; their losses."""
        if plain:
            with mock.patch("mmrec.training.step.catalogue_softmax", plain_softmax):
                return self.run(batches, plain=False)
        assembly, losses = self.assembly, []
        for index, samples in batches:
            output = train_step(
                assembly.model,
                assembly.stream.prepare(samples, index).to(assembly.device),
                self.optimiser,
                None,
                assembly.config.training,
                modality_dropout=0.0,
                repeats_forbidden=assembly.repeats_forbidden,
            )
            losses.append(float(output.loss))
        return losses


def num_targets(batches: Sequence[tuple[int, Samples]]) -> int:
    return int(sum((samples.stop - samples.start - 1).sum() for _, samples in batches))


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        log = prepare_log(Path(name), given.small)
        config = load_config(CONFIG, SMALL if given.small else ())
        torch.use_deterministic_algorithms(config.training.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as `train` does
        # the one split there is: its name differs between the two logs
        data = config.data.model_copy(update={"split": None})
        assembly = assemble(config.model_copy(update={"data": data}), Path(name) / "prepared")
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
