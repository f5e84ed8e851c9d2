"""Fixtures of all tests, and the count of tests that ran on the real data beside the checkout.

A test that asks for `shared_data` (or carries the mark `realdata`) reads `../shared/data`. Where
that folder is absent the test is skipped with a reason. Where it is present, a run of the whole
suite in which not one such test ran fails: a guard that is silently skipped guards nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Workers side by side share the cores already. Before torch is imported, which reads it then; what
# a test starts inherits it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# a test file that is collected first may import one before pytest does, which names it as a plug-in
pytest.register_assert_rewrite(
    "compared_runs",
    "index_kinds",
    "live_servers",
    "tiny_run",
    "several_ranks",
    "told_catalogue",
    "whole_way",
)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


class RealDataCount:
    """How many tests on the real data ran, by the reports of this process and of its workers."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.ran = 0
        self.skipped = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test as run once its body has started."""
        if "realdata" in report.keywords:
            self.skipped += report.skipped
            self.ran += report.when == "call" and not report.skipped


_COUNT = pytest.StashKey[RealDataCount]()


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `../shared`; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no data folder beside the checkout ({SHARED.name}/data)")
    return SHARED


@pytest.fixture(scope="session")
def shared_data(shared_folder: Path) -> Path:
    """Folder of the real data beside the checkout; the test is skipped where it is absent."""
    return shared_folder / "data"


@pytest.fixture
def restored_torch() -> Iterator[None]:
    """One thread, which golden figures need and tiny runs like best; what training set is undone.

    Training sets torch to deterministic algorithms.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def pytest_configure(config: pytest.Config) -> None:
    """Start the count."""
    config.stash[_COUNT] = RealDataCount()
    config.pluginmanager.register(config.stash[_COUNT])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the real data carries the mark, before marks select tests."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.realdata)


def _runs_whole_suite(config: pytest.Config) -> bool:
    """Nothing on the command line chose some of the tests (a path, -k, --lf, another -m)."""
    return (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and not config.option.keyword
        and not config.getoption("lf", False)
        and not config.option.collectonly
        and config.option.markexpr in ("", "not slow")
    )


def _is_unguarded(config: pytest.Config) -> bool:
    is_worker = hasattr(config, "workerinput")  # which has a part of the tests: the whole is judged
    return (
        (SHARED / "data").is_dir()
        and config.stash[_COUNT].ran == 0
        and not is_worker
        and _runs_whole_suite(config)
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a whole run that has the real data beside it and read none of it."""
    if exitstatus == pytest.ExitCode.OK and _is_unguarded(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on the real data, above pytest's closing line."""
    config = terminalreporter.config
    count = config.stash[_COUNT]
    present = "present" if (SHARED / "data").is_dir() else "absent"
    terminalreporter.write_line(
        f"real data ({SHARED.name}/data {present}): {count.ran} tests ran, {count.skipped} skipped"
    )
    if _is_unguarded(config):
        terminalreporter.write_line(
            "FAILED: the real data is present and no test on it ran", red=True, bold=True
        )
