"""Texts as the terms that a match of words compares: words, and pieces that bear a typo.

    "Ａ red-fox" ─ NFKC, case folded ─► words  a  red  fox  redfox
                                       pieces "a" "re" "red" "ed" "fo" "fox" "ox"
    "红色狐狸"   ─────────────────────► words  红 色 狐 狸 红色 色狐 狐狸

Scripts without spaces are taken by one sign and by two. Nothing is learnt and no list of any
language is needed, so the same text gives the same terms on any machine.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_PIECE = 3
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # signs that repeat or stand for one of Han's
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),  # Hangul, whose words carry their endings
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_SIGNS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)
_RUNS = re.compile(rf"[{_SIGNS}]+|[^{_SIGNS} ]+")
_IS_SIGN = re.compile(rf"[{_SIGNS}]")


class _Letters(dict[int, int | str]):
    """Code points as `str.translate` asks for them: letters, marks and digits stay."""

    def __missing__(self, code: int) -> int | str:
        sign = chr(code)
        kept = unicodedata.category(sign)[0] in "LMN"
        found = self[code] = code if kept else " " if sign.isspace() else "-"
        return found


_LETTERS = _Letters()


def words(text: str) -> list[str]:
    """Words of a text; of scripts without spaces every sign and every two that follow each other.

    Parts joined by other signs are one more word together: "AB-12/x" is found as "ab12x" too.
    """
    found: list[str] = []
    for chunk in _chunks(text):
        parts = [part for part in chunk.split("-") if part]
        for part in parts:
            for run in _RUNS.findall(part):
                found += _signs(run) if _IS_SIGN.match(run) else [run]
        joined = "".join(parts)
        if len(parts) > 1 and not _IS_SIGN.search(joined):
            found.append(joined)
    return found


def pieces(text: str) -> list[str]:
    """Three letters in a row of each word, its edges marked; nothing of scripts without spaces.

    A word with a letter wrong, left out or too many keeps most of them.
    """
    found: list[str] = []
    for word in words(text):
        if _IS_SIGN.match(word):
            continue
        edged = f" {word} "
        found += [edged[start : start + _PIECE] for start in range(len(edged) - _PIECE + 1)]
    return found


def _chunks(text: str) -> list[str]:
    """What spaces part, with one form of each letter."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_LETTERS).split()


def _signs(run: str) -> list[str]:
    return [*run, *(first + second for first, second in pairwise(run))]
