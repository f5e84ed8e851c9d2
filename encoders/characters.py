"""A vocabulary of single characters, with bytes for those it does not hold: any text can be read.

    texts -learn_characters-> tokenizer JSON, for `encoders.text_transform.TextTransform`

Word pieces that are learnt from a catalogue know no sign that the catalogue lacks: of Chinese names
one sign in six was new in the other half of the names, and read as "unknown" like all others. Here
such a sign is the three bytes of its UTF-8.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

PADDING = "[PAD]"
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))  # the names that byte_fallback looks for
FEWEST = 2
"""Times a character must occur. Those that occur once are read as bytes in training already: bytes
that training never meets would mean nothing in use."""


def learn_characters(texts: Iterable[str], size: int = 4000) -> str:
    """Learn the most frequent characters of texts and return them as tokenizer JSON.

    Texts are brought to NFKC and lower case, so that full-width and half-width letters are the
    same; marks stay, since without them Hindi or Vietnamese says something else. A run of white
    space is one space, which is a character like the others.

    Args:
        texts: the texts of the catalogue.
        size: the largest number of ids: the padding, 256 bytes, and characters.

    Returns:
        The JSON document that `TextTransform` takes; equal texts give equal JSON. It has no id for
        what is unknown.

    Raises:
        ValueError: size leaves no room for a character.
    """
    if size <= 1 + len(BYTES):
        raise ValueError(
            f"vocabulary_size is {size}: a vocabulary of characters takes 1 for the padding, "
            f"{len(BYTES)} for bytes and at least 1 for a character; give {len(BYTES) + 2} or more"
        )
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    counts = Counter(sign for text in texts for sign in tokenizer.normalizer.normalize_str(text))
    # by code point where as frequent: the order of a counter is that of the texts
    ranked = sorted(counts, key=lambda sign: (-counts[sign], sign))
    frequent = [sign for sign in ranked if counts[sign] >= FEWEST]
    pieces = [PADDING, *BYTES, *frequent][:size]
    document = json.loads(tokenizer.to_str())
    document["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    return json.dumps(document, ensure_ascii=False)
