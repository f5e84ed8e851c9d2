"""Texts of two catalogues as one tokeniser reads them: what it does not know, and how long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from encoders.text_transform import TextTransform
from mmrec.data.vocabulary import MANY, new_shares, unknown_shares
from mmrec.drift.buckets import number_gap
from mmrec.drift.lines import Line, enough
from mmrec.drift.two_samples import Gap, Z, share_gap

Texts = Sequence[Mapping[str, str]]

CUT_LIMIT = 0.1
"""Share of texts whose end is not read, beyond that of the earlier side."""


def text_lines(
    transform: TextTransform, earlier: Texts, new: Texts, *, is_learnt: bool
) -> list[Line]:
    """Unknown pieces of each field, length in pieces, and share of texts that are cut off.

    Pieces of pretrained weights should know 9 in 10 of any text. A vocabulary that was learnt from
    the earlier texts lacks some of more texts of the same kind as well: as much is added to the
    limit as `mmrec.data.vocabulary.new_shares` expects of them.

    Args:
        transform: with the tokeniser.
        earlier: texts by field, an item each.
        new: likewise.
        is_learnt: the vocabulary was learnt from the earlier catalogue.
    """
    before, after = unknown_shares(transform, earlier), unknown_shares(transform, new)
    expected = new_shares(transform, earlier) if is_learnt else {}
    n, m = (Counter(field for item in texts for field in item) for texts in (earlier, new))
    lines = []
    for field, share in after.items():
        num_earlier = n[field] or len(earlier)
        if not enough(num_earlier, m[field]):
            lines.append(Line("text", field, "unknown pieces", None, before.get(field), share))
            continue
        allowed, chance = 0.0, 0.0
        if is_learnt:
            allowed = expected.get(field, max(expected.values(), default=0.0))
            # too few signs to expect any of: one item of the earlier side could have had some
            at_least = max(allowed, 1 / num_earlier)
            sizes = 1 / num_earlier + 1 / m[field]
            chance = Z * math.sqrt(at_least * (1 - at_least) * sizes)
        gap = Gap(share, MANY + allowed + chance)
        lines.append(Line("text", field, "unknown pieces", gap, before.get(field), share))
    lengths = [np.array([_measure(transform, item) for item in side]) for side in (earlier, new)]
    if not enough(len(earlier), len(new)):
        return lines
    (long, cut), (long_new, cut_new) = (each.T for each in lengths)
    gap = number_gap(long, long_new)
    lines.append(Line("text", "all", "length", gap, float(long.mean()), float(long_new.mean())))
    shares = float(cut.mean()), float(cut_new.mean())
    gap = share_gap(
        *shares, num_earlier=len(cut), num_new=len(cut_new), limit=CUT_LIMIT, two_sided=False
    )
    return [*lines, Line("text", "all", "cut off", gap, *shares)]


def familiar(
    transform: TextTransform, earlier: Texts, new: Texts
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which items have no sign that other earlier texts lack.

    A vocabulary that was learnt from the earlier texts has all of their signs and not all of more
    texts of the same kind. States would tell two halves of one set apart by that alone: of Chinese
    names, the classifier's AUC is .74 between halves, and .53 between what this keeps of them.

    Args:
        transform: with the tokeniser, for what it makes of a sign.
        earlier: texts by field of n items.
        new: of m items.

    Returns:
        (n,) and (m,) bool: True = each sign of the item occurs in another earlier one.
    """
    signs, signs_new = ([_signs(transform, item) for item in side] for side in (earlier, new))
    num_items = Counter(sign for item in signs for sign in item)
    return (
        np.array([all(num_items[sign] > 1 for sign in item) for item in signs], np.bool_),
        np.array([all(num_items[sign] > 0 for sign in item) for item in signs_new], np.bool_),
    )


def _signs(transform: TextTransform, item: Mapping[str, str]) -> set[str]:
    normaliser = transform.tokenizer.normalizer
    text = " ".join(item.values())
    text = text if normaliser is None else normaliser.normalize_str(text)
    return set("".join(text.split()))


def _measure(transform: TextTransform, item: Mapping[str, str]) -> tuple[float, float]:
    """Pieces of an item's texts, and 1 where the last of them are not read."""
    joined = ". ".join(text.strip() for text in item.values() if text.strip())
    first = transform.tokenizer.encode(joined)
    chunks = [first, *first.overflowing]
    return float(sum(len(chunk.ids) for chunk in chunks)), float(len(chunks) > transform.max_chunks)
