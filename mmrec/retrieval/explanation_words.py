"""An explanation as a sentence, in English or Chinese."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mmrec.errors import UserError

if TYPE_CHECKING:
    from mmrec.retrieval.explain import EventReason, Explanation

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
LEAST_SHARE = 0.01
"""A part that gives less is not worth a word."""

_PARTS: dict[Language, dict[str, str]] = {
    "en": {
        "text": "its text",
        "image": "its picture",
        "audio": "its sound",
        "video": "its clip",
        "attributes": "its attributes",
        "users": "what others did with it",
    },
    "zh": {
        "text": "文字",
        "image": "图片",
        "audio": "声音",
        "video": "视频",
        "attributes": "属性",
        "users": "其他用户的行为",
    },
}
_WITHOUT_EVENTS: dict[Language, dict[str, str]] = {
    "en": {
        "history": "For no single thing that you met",
        "taste": "For what you say you like",
        "attributes": "For what is known of you",
        "request": "For when and where you ask",
        "popularity": "Met {:,} times by others",
    },
    "zh": {
        "history": "并非因为某一次接触",
        "taste": "因为您说的喜好",
        "attributes": "因为您的资料",
        "request": "因为您此刻的情境",
        "popularity": "被其他用户接触过 {:,} 次",
    },
}


def as_language(name: str) -> Language:
    """A language by its code.

    Raises:
        UserError: there are no words in it.
    """
    for language in LANGUAGES:
        if language == name:
            return language
    raise UserError(f"words in '{name}': allowed is one of {', '.join(LANGUAGES)}")


def in_words(explanation: Explanation, basis: str, count: int, language: Language) -> str:
    """The sentence.

    Args:
        explanation: whose words are still to be found.
        basis: what the score was made from.
        count: training events of the item.
        language: of the sentence.
    """
    names = _PARTS[language]
    shares = [
        f"{names.get(name, name)} {part.share:.0%}"
        for name, part in explanation.parts.items()
        if part.share >= LEAST_SHARE
    ]
    if not explanation.events:
        why = _WITHOUT_EVENTS[language][basis].format(count)
    elif language == "zh":
        named = [_named(each, "“{}”", "({})", ":", "、") for each in explanation.events]
        why = f"因为您接触过{_listed(named, '、', '和')}"
    else:
        named = [_named(each, "'{}'", " ({})", ": ", ", ") for each in explanation.events]
        why = f"Because you met {_listed(named, ', ', ' and ')}"
    if language == "zh":
        return f"{why};依据:{'、'.join(shares)}。" if shares else f"{why}。"
    return f"{why}; told by {_listed(shares, ', ', ' and ')}." if shares else f"{why}."


def _named(event: EventReason, quoted: str, beside: str, colon: str, comma: str) -> str:
    """An event by its title, with what it shares with the item."""
    shared = [f"{name}{colon}{comma.join(words)}" for name, words in event.shared.items()]
    name = quoted.format(event.title or event.item_id)
    return name + beside.format("; ".join(shared)) if shared else name


def _listed(parts: list[str], comma: str, last: str) -> str:
    return last.join([comma.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
