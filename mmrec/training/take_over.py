"""Another run's weights in place of fresh ones: `training.start_from`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from encoders.cut import StackedEncoder
from mmrec.errors import CheckpointMismatch
from mmrec.model import RecommenderModel
from mmrec.training.checkpoint import read_tensors

OF_LOSSES = frozenset({"log_alignment_temperature", "log_query_temperature", "history.mask"})
"""Learned numbers that belong to one loss, not to the model in use: a run may add such a loss. What
stands for hidden events is one: a run that reads forwards may start from one that reads both ways.
"""


def take_over(model: RecommenderModel, item_ids: Sequence[str], run: Path) -> None:
    """Gives a model the weights of a finished run.

    What LoRA and its like add, here and not there, stays fresh; what they added there and not here
    is refused, as is any other difference of the models, but for what belongs to losses that only
    one of the runs has. What new items get in place of popularity is not taken: it is chosen at the
    end of a run.

    Args:
        model: of a run that has not begun; before its caches are filled.
        item_ids: of its rows, in their order.
        run: the other.

    Raises:
        CheckpointMismatch: it is not finished, or of other items or another model.
    """
    final = run / "checkpoints" / "final"
    if not (final / "state.json").is_file():
        raise CheckpointMismatch(
            f"training.start_from is {run}: it holds no finished model; finish it with: "
            f"mmrec train … --run {run} --resume"
        )
    known = json.loads((final / "state.json").read_text(encoding="utf-8"))["item_ids"]
    if known != list(item_ids):
        raise CheckpointMismatch(
            f"training.start_from is {run}: its {len(known)} items are not the {len(item_ids)} of "
            "this run; give the same data and split"
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
    for name in sorted((wanted.keys() ^ found.keys()) - OF_LOSSES):
        what = "lacks" if name in wanted else "has"
        raise CheckpointMismatch(f"training.start_from is {run}: its model {what} {name}")
    wanted = {name: full for name, full in wanted.items() if name in found}
    for name, full in wanted.items():
        if own[full].shape != found[name].shape:
            raise CheckpointMismatch(
                f"training.start_from is {run}: its {name} is {tuple(found[name].shape)}, here it "
                f"is {tuple(own[full].shape)}"
            )
    offset, expectation = model.offset.clone(), model.expectation.clone()
    model.load_state_dict({full: found[name] for name, full in wanted.items()}, strict=False)
    model.offset.copy_(offset)
    model.expectation.copy_(expectation)


def _bare(name: str) -> str:
    """The name that a weight has where no adapter stands around it."""
    name = name.replace(".base_layer.", ".").removesuffix(".original")
    return name.replace(".parametrizations.", ".")
