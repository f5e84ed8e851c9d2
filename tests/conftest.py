"""Fixtures of all tests, and the count of tests that ran on the real data beside the checkout.

A test that asks for `shared_data` (or carries the mark `realdata`) reads `../shared/data`. Where
that folder is absent the test is skipped with a reason. Where it is present, a run of the whole
suite in which not one such test ran fails: a guard that is silently skipped guards nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

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
_RAN = pytest.StashKey[dict[str, int]]()


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
    config.stash[_RAN] = {"ran": 0, "skipped": 0}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the real data carries the mark, before marks select tests."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.realdata)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a test on the real data as run once its body has started."""
    report = yield
    if item.get_closest_marker("realdata"):
        counts = item.config.stash[_RAN]
        counts["skipped"] += report.skipped
        counts["ran"] += report.when == "call" and not report.skipped
    return report


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
    return (
        (SHARED / "data").is_dir() and config.stash[_RAN]["ran"] == 0 and _runs_whole_suite(config)
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a whole run that has the real data beside it and read none of it."""
    if exitstatus == pytest.ExitCode.OK and _is_unguarded(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on the real data, above pytest's closing line."""
    config = terminalreporter.config
    counts = config.stash[_RAN]
    present = "present" if (SHARED / "data").is_dir() else "absent"
    terminalreporter.write_line(
        f"real data ({SHARED.name}/data {present}): "
        f"{counts['ran']} tests ran, {counts['skipped']} skipped"
    )
    if _is_unguarded(config):
        terminalreporter.write_line(
            "FAILED: the real data is present and no test on it ran", red=True, bold=True
        )
