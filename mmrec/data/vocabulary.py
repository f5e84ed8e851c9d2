"""How much of a catalogue's texts a text model's vocabulary does not know, field by field.

A model of English reads half of a Chinese name as "unknown": it trains without a fault and knows
nothing. This is looked at before the first step, and told.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from mmrec.data.corpus import never_cold

if TYPE_CHECKING:
    from data_prep.shards import PreparedData
    from encoders.text import TextTransform

logger = logging.getLogger(__name__)

MAX_ITEMS = 2000
MANY = 0.1
"""Share of unknown pieces of a field from which on it is told; English has below .001."""
UNKNOWN = ("[UNK]", "<unk>")


def unknown_shares(
    transform: TextTransform, texts: Iterable[Mapping[str, str]]
) -> dict[str, float]:
    """Share of the pieces of each field that are not in the vocabulary.

    Args:
        transform: with the tokeniser.
        texts: of items, by field.

    Returns:
        By field, of those that have a piece; nothing where every text can be spelled (bytes).
    """
    tokenizer = transform.tokenizer
    known = [tokenizer.token_to_id(name) for name in UNKNOWN]
    unknown = next((each for each in known if each is not None), None)
    if unknown is None:
        return {}
    pieces: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for record in texts:
        for field, text in record.items():
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            pieces[field] += len(ids)
            lost[field] += ids.count(unknown)
    return {field: lost[field] / count for field, count in pieces.items() if count}


def warn_of_unknown(data: PreparedData, transform: TextTransform, weights: str | None) -> None:
    """Tells of fields that the model's vocabulary does not cover."""
    items = islice(never_cold(data), MAX_ITEMS)
    shares = unknown_shares(transform, (data.items.text(row) for row in items))
    for field, share in shares.items():
        if share >= MANY:
            logger.warning(
                "encoders.text: %.0f %% of the pieces of field '%s' are not in the vocabulary of "
                "%s: the model cannot read them; use weights of that language, or "
                "encoders.text.kind=small with encoders.text.options.vocabulary=characters, which "
                "reads any text",
                100 * share,
                field,
                weights or "the encoder",
            )
