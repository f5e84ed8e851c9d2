"""Another run's weights in place of fresh ones: `training.start_from`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.shards import PreparedData, Split
from encoders.cut import StackedEncoder
from mmrec.data.new_users import KnownUsersSplit
from mmrec.data.signal_spec import SignalSpec, spec_of
from mmrec.errors import CheckpointMismatch
from mmrec.model import RecommenderModel
from mmrec.run_config import load_trained_config
from mmrec.training.checkpoint import read_tensors

logger = logging.getLogger(__name__)

ID_TABLE = "id_part.table.weight"
OF_LOSSES = frozenset({"log_alignment_temperature", "log_query_temperature", "history.mask"})
"""Learned numbers that belong to one loss, not to the model in use: a run may add such a loss. What
stands for hidden events is one: a run that reads forwards may start from one that reads both ways.
"""


@dataclass(frozen=True)
class StartRun:
    """The finished run that another one starts from.

    Attributes:
        run: its folder.
        state: of its final model.
    """

    run: Path
    state: Mapping[str, Any]

    @classmethod
    def open(cls, run: Path) -> StartRun:
        """Reads what the run says of itself.

        Raises:
            CheckpointMismatch: it is not finished.
        """
        path = run / "checkpoints" / "final" / "state.json"
        if not path.is_file():
            raise CheckpointMismatch(
                f"training.start_from is {run}: it holds no finished model; finish it with: "
                f"mmrec train … --run {run} --resume"
            )
        return cls(run, json.loads(path.read_text(encoding="utf-8")))

    @property
    def item_ids(self) -> list[str]:
        """Ids of its rows."""
        return list(self.state["item_ids"])

    def signals(self, fresh: SignalSpec | None) -> SignalSpec | None:
        """Types, words and knots that its weights know, where it reads what is to be read here."""
        known = spec_of(self.state.get("signals"))
        if known is None or fresh is None or _columns(known) != _columns(fresh):
            return fresh
        return known

    def warn_of_met(self, data: PreparedData, split: Split) -> None:
        """Says where its training may have met what figures of this split take for unknown."""
        cold = [each for ids in split.manifest["cold"].values() for each in ids]
        met = len(set(cold) & set(self.item_ids))
        if met:
            logger.warning(
                "training.start_from is %s: it was trained on %d of the %d items that split %s "
                "keeps back as new; figures of new items will be too good",
                self.run,
                met,
                len(cold),
                split.name,
            )
        data_hash, split_hash = self.state["data_hash"], self.state["split_hash"]
        is_same = split_hash == split.hash or data.state_at(data_hash, split.name, split_hash)
        if not is_same and split.manifest["protocol"] != "none":
            logger.warning(
                "training.start_from is %s: it was trained on another split than %s and may have "
                "met its targets; figures will be too good",
                self.run,
                split.name,
            )
        if isinstance(split, KnownUsersSplit):
            its = load_trained_config(self.run / "config.yaml").data.new_users
            if its < split.share:  # a smaller share lies within a larger one
                logger.warning(
                    "training.start_from is %s: its data.new_users is %g, so that it met users "
                    "whom %g holds out; figures of new users will be too good",
                    self.run,
                    its,
                    split.share,
                )


def _columns(spec: SignalSpec) -> tuple[Any, ...]:
    names = tuple(tuple(field.name for field in each) for each in (spec.context, spec.users))
    return bool(spec.event_types), bool(spec.value_knots), bool(spec.gap_knots), *names


def take_over(
    model: RecommenderModel,
    item_ids: Sequence[str],
    start: StartRun,
    *,
    data_hashes: Sequence[str] = (),
    keep_offset: bool = False,
) -> None:
    """Gives a model the weights of a finished run.

    What LoRA and its like add, here and not there, stays fresh; what they added there and not here
    is refused, as is any other difference of the models, but for what belongs to losses that only
    one of the runs has.

    Where the catalogue has grown since, an item that the other run trained on keeps its learnt
    part, and any other starts as its content alone. How often items were met, what is computed
    from that, and what heads expect of anybody are those of this run's histories.

    Args:
        model: of a run that has not begun; before its caches are filled.
        item_ids: of its rows, in their order.
        start: the other.
        data_hashes: of the data, now and before each update.
        keep_offset: take what new items get in place of popularity, and how sure their scores are;
            else both are found at the end.

    Raises:
        CheckpointMismatch: it is of other items or another model.
    """
    run, known = start.run, start.item_ids
    final = run / "checkpoints" / "final"
    row_of = {item_id: row for row, item_id in enumerate(known)}
    rows = [row for row, each in enumerate(item_ids) if each in row_of]
    rows_there = [row_of[item_ids[row]] for row in rows]
    if known != list(item_ids) and (
        start.state["data_hash"] not in data_hashes or not rows or rows_there != sorted(rows_there)
    ):
        raise CheckpointMismatch(
            f"training.start_from is {run}: its {len(known)} items are not the {len(item_ids)} of "
            "this run; give the same data and split, or the same folder after an update"
        )
    own = model.state_dict()
    added = {
        f"encoders.{name}.{each}"
        for name, encoder in model.encoders.items()
        if isinstance(encoder, StackedEncoder)
        for each in encoder.added or ()
    }
    wanted = {_bare(name): name for name in own if name not in added}
    tensors = read_tensors(final / "model.safetensors")
    found = {_bare(name): each for name, each in tensors.items()}
    for name in sorted(filter(_is_of_the_model, wanted.keys() ^ found.keys())):
        what = "lacks" if name in wanted else "has"
        raise CheckpointMismatch(f"training.start_from is {run}: its model {what} {name}")
    as_there = known == list(item_ids) and torch.equal(found["counts"], own["counts"])
    if not as_there:
        table = found.get(ID_TABLE)
        if table is not None and table.shape[1:] == own[ID_TABLE].shape[1:]:
            found[ID_TABLE] = own[ID_TABLE].clone()
            found[ID_TABLE][rows] = table[rows_there]
        found |= {name: own[full] for name, full in wanted.items() if _is_of_histories(name)}
    wanted = {name: full for name, full in wanted.items() if name in found}
    for name, full in wanted.items():
        if own[full].shape != found[name].shape:
            raise CheckpointMismatch(
                f"training.start_from is {run}: its {name} is {tuple(found[name].shape)}, here it "
                f"is {tuple(own[full].shape)}"
            )
    offset, expectation = model.offset.clone(), model.expectation.clone()
    model.load_state_dict({full: found[name] for name, full in wanted.items()}, strict=False)
    if not as_there and model.popularity is not None:
        model.popularity.recentre(model.counts)
    if not keep_offset:
        model.offset.copy_(offset)
        model.expectation.copy_(expectation)
        if model.confidence is not None:
            model.confidence.scaling.zero_()


def _is_of_the_model(name: str) -> bool:
    return name not in OF_LOSSES and not name.startswith(("loss_weights.", "confidence."))


def _is_of_histories(name: str) -> bool:
    """Whether a buffer is computed from the training histories, not learnt."""
    of_head = name.startswith("heads.") and name.endswith((".base", ".spread"))
    return of_head or name in ("counts", "id_part.counts") or name.startswith("value_offsets_")


def _bare(name: str) -> str:
    """The name that a weight has where no adapter stands around it."""
    name = name.replace(".base_layer.", ".").removesuffix(".original")
    return name.replace(".parametrizations.", ".")
