"""The suite says how many tests ran on the real data, and fails where none did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
READS = "def test_reads(shared_data):\n    assert shared_data.is_dir()\n"
SKIPS = "import pytest\n\ndef test_skips(shared_data):\n    pytest.skip('no')\n"
PLAIN = "def test_plain():\n    pass\n"


def run_suite(
    folder: Path, body: str, *args: str, shared: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a suite of one file with our conftest in a checkout of its own."""
    tests = folder / "checkout" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(CONFTEST, tests)
    (tests / "test_one.py").write_text(body)
    (tests.parent / "pytest.ini").write_text(
        "[pytest]\ntestpaths = tests\nmarkers =\n    realdata: x\n    slow: x\n"
    )
    if shared:
        (folder / "shared" / "data").mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a second each time, and none is used
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=tests.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "shared", "status", "line"),
    [
        pytest.param(READS, True, 0, "shared/data present): 1 tests ran, 0 skipped", id="ran"),
        pytest.param(READS, False, 0, "shared/data absent): 0 tests ran, 1 skipped", id="absent"),
        pytest.param(SKIPS, True, 1, "no test on it ran", id="all-skipped"),
        pytest.param(PLAIN, True, 1, "no test on it ran", id="none-there"),
    ],
)
def test_whole_suite(tmp_path: Path, body: str, shared: bool, status: int, line: str) -> None:
    result = run_suite(tmp_path, body, shared=shared)
    assert result.returncode == status, result.stdout + result.stderr
    assert line in result.stdout
    closing = result.stdout.strip().splitlines()[-1]
    assert " in " in closing and ("passed" in closing or "skipped" in closing)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        pytest.param(READS, 0, "shared/data present): 1 tests ran, 0 skipped", id="ran"),
        pytest.param(PLAIN, 1, "no test on it ran", id="none-there"),
    ],
)
def test_whole_suite_on_two_workers(tmp_path: Path, body: str, status: int, line: str) -> None:
    result = run_suite(tmp_path, body, "-p", "xdist", "--numprocesses=2")
    assert result.returncode == status, result.stdout + result.stderr
    assert result.stdout.count(line) == 1


@pytest.mark.parametrize("args", [("tests/test_one.py",), ("-k", "plain")], ids=["path", "k"])
def test_chosen_tests_need_no_real_data(tmp_path: Path, args: tuple[str, ...]) -> None:
    result = run_suite(tmp_path, PLAIN, *args)
    assert result.returncode == 0, result.stdout + result.stderr
