"""Reads Dockerfile, .dockerignore and compose.yaml as Docker would, without Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?:(:[-?])([^}]*))?\}|(\w+)|(\$))")


class MissingVariable(Exception):
    """A variable that has to be given is not."""


@dataclass
class Stage:
    """What a FROM begins: its instructions, `(word, rest of the line)`, in order."""

    image: str
    name: str | None
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for each, rest in self.instructions if each == word]


def read_dockerfile(path: Path) -> list[Stage]:
    """Its stages; the arguments before the first FROM are filled in."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    text = re.sub(r"\\\n\s*", " ", text)
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stages.append(Stage(filled_in(image, arguments), name or None))
        elif stages:
            stages[-1].instructions.append((word, rest))
        else:
            assert word == "ARG"
            name, _, value = rest.partition("=")
            arguments[name] = value
    return stages


def travels(path: Path, ignore: Path) -> bool:
    """Whether a file or folder of the root is sent to the builder: the last line it meets says."""
    kept = True
    for line in ignore.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if path.match(pattern) or any(parent.match(pattern) for parent in path.parents):
                kept = line.startswith("!")
    return kept


def filled_in(text: str, given: Mapping[str, str]) -> str:
    """A text with its variables, `${NAME}`, `${NAME:-default}` and `${NAME:?what is missing}`."""

    def value(found: re.Match[str]) -> str:
        if found[5]:
            return "$"
        name = found[1] or found[4]
        if given.get(name):
            return given[name]
        if found[2] == ":-":
            return found[3]
        raise MissingVariable(f"{name}: {found[3] or 'not given'}")

    return _VARIABLE.sub(value, text)


def read_compose(path: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """The document with its variables filled in."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each) for each in value]
        return filled_in(value, given) if isinstance(value, str) else value

    return dict(fill(yaml.safe_load(path.read_text(encoding="utf-8"))))


def variables(path: Path) -> dict[str, str | None]:
    """Variables that a file asks for, with their defaults; None: there is none."""
    found: dict[str, str | None] = {}
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    for name, kind, rest, bare, _ in _VARIABLE.findall(text):
        if name or bare:
            found[name or bare] = rest if kind == ":-" else None
    return found
