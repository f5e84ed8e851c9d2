"""`mmrec drift`: a prepared folder beside the catalogue of a run, or beside another folder.

earlier side, new side ─► texts, states, attributes, events, media ─► lines ─► Report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shards import PreparedData
from encoders.text_transform import TextTransform
from mmrec.build import vector_width
from mmrec.config import Config
from mmrec.data.items import VECTOR_PREFIX
from mmrec.drift.earlier import open_earlier
from mmrec.drift.features import attribute_lines, event_lines, media_lines
from mmrec.drift.lines import Line, large
from mmrec.drift.sides import MAX_ITEMS, Side
from mmrec.drift.states import Progress, state_lines
from mmrec.drift.texts import familiar, text_lines
from mmrec.errors import UserError

SCHEMA = 1
OWN = "attributes"
"""The modality whose values are compared themselves, not their states."""


@dataclass(frozen=True)
class Report:
    """What was compared, line by line.

    Attributes:
        data: folder of the new side.
        against: folder of the earlier one, or of its run.
        num_items: of the earlier and of the new catalogue.
        lines: one a comparison.
        left_out: what was not compared, and why.
    """

    data: Path
    against: Path
    num_items: tuple[int, int]
    lines: Sequence[Line]
    left_out: Sequence[str]

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "data": self.data,
            "against": self.against,
            "num_items": {"earlier": self.num_items[0], "new": self.num_items[1]},
            "lines": [line.document() for line in self.lines],
            "num_large": len(large(self.lines)),
            "advice": self.advice,
            "left_out": list(self.left_out),
        }

    @property
    def advice(self) -> list[str]:
        """What to do about the large gaps, each thing once."""
        return list(dict.fromkeys(line.advice for line in large(self.lines)))

    def summary(self) -> list[str]:
        """What is large and what to do about it; what was not compared."""
        found, told = large(self.lines), [line for line in self.lines if line.gap is not None]
        names = list(dict.fromkeys(f"{line.part} {line.name}" for line in found))
        sizes = "{:,} earlier items, {:,} new".format(*self.num_items)
        if found:
            said = [f"large: {len(found)} of {len(told)} gaps ({sizes}): {', '.join(names)}"]
        else:
            said = [f"no gap is large, of {len(told)} ({sizes})"]
        return [*said, *self.advice, *(f"not compared: {each}" for each in self.left_out)]


def compare(
    data_folder: Path,
    against: Path,
    *,
    config: Config | None = None,
    earlier_data: Path | None = None,
    max_items: int = MAX_ITEMS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Compares a prepared folder with an earlier catalogue.

    Args:
        data_folder: the new side.
        against: folder of a finished run, or another prepared folder.
        config: whose encoders read both, where `against` is no run; None: texts and states are not
            compared then.
        earlier_data: the run's prepared folder, where it has moved.
        max_items: most items and users of a side that are looked at.
        seed: of the items, the folds and the divisions.
        progress: told how many items are encoded.

    Raises:
        CheckpointMismatch: the run is not finished, or its data are others.
        ConfigError: an encoder does not fit the earlier data.
        ShardError: a folder is no prepared one, or is damaged.
        UserError: options contradict each other, or vectors of a modality differ in width.
    """
    data = PreparedData.open(data_folder)
    data.verify_tables()
    found = open_earlier(against, config, earlier_data)
    earlier, new = (Side(each, max_items, seed) for each in (found.data, data))
    lines: list[Line] = []
    left_out = _left_out(earlier, new, set(found.parts))
    both = set(earlier.data.items.modalities) & set(data.items.modalities)
    for name, parts in found.parts.items():
        if name not in both or name == OWN:
            continue
        drawn = [(side.data, side.rows_with(name)) for side in (earlier, new)]
        if name == "text":
            transform, is_learnt = parts.transform, found.has_learnt_texts
            assert isinstance(transform, TextTransform)
            lines += text_lines(transform, earlier.texts, new.texts, is_learnt=is_learnt)
            if is_learnt:
                masks = familiar(transform, earlier.texts, new.texts)
                drawn = [(at, rows[kept]) for (at, rows), kept in zip(drawn, masks, strict=True)]
                left_out += _unfamiliar(*masks)
        elif name.startswith(VECTOR_PREFIX):
            _check_width(name, earlier, new)
        lines += state_lines(name, parts, *drawn, device=found.device, seed=seed, progress=progress)
    lines += [
        *attribute_lines(earlier, new), *event_lines(earlier, new), *media_lines(earlier, new)
    ]  # fmt: skip
    sizes = int(earlier.there.sum()), int(new.there.sum())
    return Report(data_folder, against, sizes, lines, left_out)


def _check_width(modality: str, earlier: Side, new: Side) -> None:
    name = modality.removeprefix(VECTOR_PREFIX)
    width, width_new = (vector_width(side.data, name) for side in (earlier, new))
    if width != width_new:
        raise UserError(
            f"{new.data.path}: {modality} has {width_new} numbers, in {earlier.data.path} it has "
            f"{width}: prepare it with the vectors of one model, or without"
        )


def _unfamiliar(earlier: npt.NDArray[np.bool_], new: npt.NDArray[np.bool_]) -> list[str]:
    if earlier.all() and new.all():
        return []
    return [
        f"states of {int((~earlier).sum()):,} of {len(earlier):,} earlier and of "
        f"{int((~new).sum()):,} of {len(new):,} new texts, whose signs other earlier ones lack"
    ]


def _left_out(earlier: Side, new: Side, encoded: set[str]) -> list[str]:
    """What only one side has, and media that no encoder reads."""
    before, after = earlier.data.catalogue.items.attributes, new.data.catalogue.items.attributes
    notes = [
        f"attribute {name}, which is no {kind} on both sides"
        for name, kind in {name: spec.type for name, spec in (before | after).items()}.items()
        if name not in before or name not in after or before[name].type != after[name].type
    ]
    unread = [
        name
        for name in new.data.items.modalities
        if name in earlier.data.items.modalities and name not in encoded and name != OWN
    ]
    if unread:
        notes.append(
            f"states of {', '.join(unread)}, for want of an encoder: name a run that reads them, "
            "or give --config"
        )
    return notes
