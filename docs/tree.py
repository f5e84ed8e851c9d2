"""Writes the README's tree from the first line of each file, so that it stays true.

python docs/tree.py            # part of make format; tests/test_house.py checks the result
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("data_prep", "encoders", "fusion", "mmrec", "configs", "benchmarks")
BLOCK = re.compile(r"(<!-- tree -->\n```text\n).*?(```)", re.S)


def purpose(path: Path) -> str:
    """First line of a module's docstring, or of a YAML's opening comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return text.partition("\n")[0].removeprefix("#").strip()
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def lines_of(folder: Path, depth: int = 0) -> list[str]:
    """The folder's line, its files' lines, then its folders; nothing for an empty folder."""
    margin = "  " * (depth + 1)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".py", ".yaml"))
    lines = [
        f"{margin}{path.name:<{24 - len(margin)}} {purpose(path)}".rstrip()
        for path in files
        if path.name != "__init__.py"
    ]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        lines += lines_of(inner, depth + 1)
    if not lines:
        return []
    about = folder / "__init__.py"
    name = f"{'  ' * depth}{folder.name}/"
    return [f"{name:<24} {purpose(about)}" if about.is_file() else name, *lines]


def tree() -> str:
    """The whole block, a line a file."""
    return "".join(f"{line}\n" for name in FOLDERS for line in lines_of(ROOT / name))


def with_tree(readme: str) -> str:
    """The README's text with its tree written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{tree()}{found[2]}", readme)


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
