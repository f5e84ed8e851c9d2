"""How much of a catalogue's texts a text model's vocabulary does not know, field by field.

A model of English reads half of a Chinese name as "unknown": it trains without a fault and knows
nothing. A vocabulary learnt from the catalogue knows all of it, and not what new items and queries
will say. Both are looked at before the first step, and told.
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
    from encoders.text_transform import TextTransform

logger = logging.getLogger(__name__)

MAX_ITEMS = 2000
MANY = 0.1
"""Share of unknown pieces of a field from which on it is told; English has below .001."""
MANY_NEW = 0.01
"""The same of pieces to come; English has none."""
FEWEST_NEW = 10
"""Signs that occur once; an estimate from fewer says little."""
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
    tokenizer, unknown = transform.tokenizer, _unknown_id(transform)
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


def new_shares(transform: TextTransform, texts: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Share of the signs of each field that new texts like these will have and these do not.

    It is estimated by the share of signs that occur once in all of these texts. Source: Good, "The
    population frequencies of species", Biometrika 40 (1953), equation 9.

    Args:
        transform: with a tokeniser that was learnt from the texts.
        texts: of items, by field.

    Returns:
        By field; nothing where every text can be spelled, or few signs occur once.
    """
    normaliser = transform.tokenizer.normalizer
    if _unknown_id(transform) is None or normaliser is None:
        return {}
    of_field: dict[str, Counter[str]] = {}
    for record in texts:
        for field, text in record.items():
            signs = "".join(normaliser.normalize_str(text).split())
            of_field.setdefault(field, Counter()).update(signs)
    whole = sum(of_field.values(), Counter[str]())
    once = {sign for sign, count in whole.items() if count == 1}
    if len(once) < FEWEST_NEW:
        return {}
    return {
        field: len(once & counts.keys()) / counts.total()
        for field, counts in of_field.items()
        if counts
    }


def _unknown_id(transform: TextTransform) -> int | None:
    known = [transform.tokenizer.token_to_id(name) for name in UNKNOWN]
    return next((each for each in known if each is not None), None)


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
    if weights is not None:
        return
    items = islice(never_cold(data), MAX_ITEMS)
    for field, share in new_shares(transform, (data.items.text(row) for row in items)).items():
        if share >= MANY_NEW:
            logger.warning(
                "encoders.text: about %.0f %% of the signs of new texts like those of field '%s' "
                "will not be in the vocabulary that is learnt from the catalogue, where as many "
                "occur once; set encoders.text.options.vocabulary=characters, which reads any text",
                100 * share,
                field,
            )
