"""Runs every benchmark, one process each, and fails where a bar is missed.

    python benchmarks/run.py [NAME…] [--small] [--rounds N]

Prints the JSON lines of the benchmarks as they come and keeps them in runs/bench.jsonl. Exit
status 1 where a figure misses its bar or a benchmark ends with an error; take the figures on a
quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
OUT = FOLDER.parent / "runs" / "bench.jsonl"


def main() -> int:
    """Run the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(found)}; default: all")
    parser.add_argument("--small", action="store_true", help="reduced sizes; no bar is judged")
    parser.add_argument("--rounds", type=int, help="how often each figure is taken")
    given = parser.parse_args()
    unknown = set(given.names) - set(found)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)}: allowed are {', '.join(found)}")
    flags = ["--small"] * given.small + (["--rounds", str(given.rounds)] if given.rounds else [])

    figures: list[dict[str, Any]] = []
    broken = []
    for name in given.names or found:
        lines, status = run_one(FOLDER / f"bench_{name}.py", flags)
        figures += lines
        if status or not lines:
            broken.append(name)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("".join(json.dumps(figure) + "\n" for figure in figures))
    missed = [figure["name"] for figure in figures if figure["ok"] is False]
    skipped = [figure["name"] for figure in figures if figure["skipped"]]
    print(
        f"{len(figures)} figures, bars missed: {', '.join(missed) or 'none'}, skipped: "
        f"{', '.join(skipped) or 'none'}, failed: {', '.join(broken) or 'none'}",
        file=sys.stderr,
    )
    return 1 if missed or broken else 0


def run_one(script: Path, flags: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Run one benchmark; its figures, printed as they come, and its exit status."""
    root = str(FOLDER.parent)
    environment = os.environ | {"PYTHONPATH": root}
    figures = []
    with subprocess.Popen(
        [sys.executable, str(script), *flags], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                figures.append(json.loads(line))
    return figures, process.returncode


if __name__ == "__main__":
    sys.exit(main())
