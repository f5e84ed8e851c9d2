"""One line before a run starts from another: that the other's catalogue was a different one.

Only what costs little is looked at: tables, and texts of two thousand items. No model is built and
no random number of training is drawn.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from data_prep.errors import DataError
from data_prep.shards import PreparedData
from encoders.text_transform import TextTransform
from mmrec.config import Config
from mmrec.drift.features import attribute_lines, event_lines, media_lines
from mmrec.drift.lines import Line, large
from mmrec.drift.sides import Side
from mmrec.drift.texts import text_lines

logger = logging.getLogger(__name__)

MOST_NAMED = 3


def warn_of_drift(config: Config, data: PreparedData, transform: object | None) -> None:
    """Says which texts and features of a catalogue are far from those that a start was trained on.

    Args:
        config: of the run that begins; nothing is said where it starts from no other.
        data: its catalogue.
        transform: of its texts, with the vocabulary that was taken; None: it reads none.
    """
    training = config.training
    field = "start_from" if training.transfer_from is None else "transfer_from"
    run = training.start_from if training.transfer_from is None else training.transfer_from
    if run is None:
        return
    earlier = _data_of(run, f"training.{field}")
    if earlier is None or earlier.data_hash == data.data_hash:
        return
    is_learnt = "text" in config.encoders and config.encoders["text"].weights is None
    lines = cheap_lines(Side(earlier), Side(data), transform, is_learnt=is_learnt)
    found = large(lines)
    if found:
        named = "; ".join(line.words() for line in found[:MOST_NAMED])
        more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        logger.warning(
            "training.%s is %s: its catalogue is far from this one: %s%s; what to do about it says "
            "mmrec drift %s --against %s",
            field,
            run,
            named,
            more,
            data.path,
            run,
        )


def cheap_lines(
    earlier: Side, new: Side, transform: object | None, *, is_learnt: bool
) -> list[Line]:
    """All that needs no encoder; of a folder whose shards may be away, what its tables say."""
    lines: list[Line] = []
    if earlier.is_at_hand and new.is_at_hand:
        if isinstance(transform, TextTransform):
            lines += text_lines(transform, earlier.texts, new.texts, is_learnt=is_learnt)
        lines += attribute_lines(earlier, new)
    return [*lines, *event_lines(earlier, new), *media_lines(earlier, new)]


def _data_of(run: Path, setting: str) -> PreparedData | None:
    """The data of a run, where they still are; updated since they will do."""
    try:
        bound = json.loads((run / "data.json").read_text(encoding="utf-8"))
        data = PreparedData.open(Path(bound["path"]))
        reason = f"{data.path} has other data now"
        if bound["data_hash"] in data.past_hashes:
            return data
    except (OSError, ValueError, KeyError, DataError) as error:
        reason = str(error)
    logger.info(
        "%s is %s: its catalogue was not compared with this one, since it is not at hand: %s",
        setting,
        run,
        reason,
    )
    return None
