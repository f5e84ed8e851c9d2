"""The command line: help, exit statuses, one line for each fault, and clean JSON."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep.errors import DataError, ShardError
from mmrec.cli import main
from mmrec.errors import CheckpointMismatch, ItemNotFound, NonFiniteLoss

COMMANDS = (
    "demo",
    "prepare",
    "inspect",
    "weights list",
    "weights install",
    "train",
    "tune",
    "evaluate",
    "stability",
    "compare",
    "export",
    "index",
    "score",
    "recommend",
    "popular",
    "similar",
    "serve",
    "events",
    "keys add",
    "keys remove",
)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The commands set up logging; give the suite its own back."""
    root = logging.getLogger()
    names = ("data_prep", "encoders", "fusion", "mmrec")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:], root.level = handlers, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "catalogue.yaml"
    path.write_text("name: tiny\n")
    return path


def fake_prepare(monkeypatch: pytest.MonkeyPatch, effect: Any) -> None:
    """Let `prepare` raise `effect`, or print its keyword arguments where it is None."""

    def prepare(*paths: Path, **options: Any) -> Any:
        if effect is not None:
            raise effect
        options.pop("progress")("media", 1, 2)
        return SimpleNamespace(line=lambda: f"{[path.name for path in paths]} {options}")

    monkeypatch.setitem(sys.modules, "data_prep.prepare", SimpleNamespace(prepare=prepare))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which holds one line; standard output holds none."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("mmrec: "), captured.err
    return captured.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "Usage: mmrec" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {command.split()[0]} " in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], "name a command: demo, prepare", id="no-command"),
        pytest.param(["weights"], "name a command: list, install", id="no-subcommand"),
        pytest.param(["trian"], "No such command 'trian'", id="unknown-command"),
        pytest.param(["train"], "CONFIG.yaml", id="missing-argument"),
        pytest.param(["demo", "--aut", "x"], "No such option", id="unknown-option"),
        pytest.param(["evaluate", "nowhere"], "'nowhere' does not exist", id="no-run"),
        pytest.param(["evaluate", ".", "--split", "train"], "'train'", id="bad-split"),
        pytest.param(["compare", "."], "1 run given, two are the least", id="one-run"),
        pytest.param(["recommend", "."], "exactly one of --user, --history", id="no-user"),
        pytest.param(["recommend", ".", "--user", "a", "-k", "0"], "-k", id="k-0"),
        pytest.param(
            ["similar", ".", "--item", "a", "--text", "b"], "--item and --text given", id="two"
        ),
    ],
)
def test_wrong_words(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert says in one_line(capsys)


def test_prepare_passes_its_options(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_prepare(monkeypatch, None)
    folder = str(catalogue.parent)
    words = ["prepare", str(catalogue), "--source", folder, "--out", "data", "split.seed=1"]
    assert main([*words, "split.cold_test=0.1", "--num-workers", "2", "--update"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        f"['catalogue.yaml', '{catalogue.parent.name}', 'data'] {{'overrides': ['split.seed=1', "
        "'split.cold_test=0.1'], 'num_workers': 2, 'image_side': 256, 'dry_run': False, "
        "'update': True}\n"
    )
    assert captured.err == ""


def wrapped_disk_full() -> Exception:
    """A library's own error around the system's."""
    error = RuntimeError("could not serialise")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("effect", "status", "says"),
    [
        pytest.param(DataError("items: column 'x'\nis missing"), 2, "column 'x' is", id="data"),
        pytest.param(ShardError("items-000000.tar: key 7"), 2, "key 7", id="shard"),
        pytest.param(CheckpointMismatch("run and data differ"), 2, "differ", id="mismatch"),
        pytest.param(ItemNotFound("no known id"), 2, "no known id", id="no-id"),
        pytest.param(NonFiniteLoss("step 3: loss nan"), 1, "step 3", id="loss"),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device", "out/x.tar"),
            2,
            "disk full (out/x.tar): free",
            id="disk-full",
        ),
        pytest.param(OSError("write failed (os error 28)"), 2, "disk full", id="disk-full-rust"),
        pytest.param(wrapped_disk_full(), 2, "disk full: free", id="disk-full-wrapped"),
        pytest.param(
            PermissionError(errno.EACCES, "denied", "out"),
            2,
            "permission denied (out)",
            id="denied",
        ),
        pytest.param(KeyboardInterrupt(), 130, "interrupted", id="interrupt"),
    ],
)
def test_one_line_for_a_fault(
    effect: BaseException,
    status: int,
    says: str,
    catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_prepare(monkeypatch, effect)
    words = ["prepare", str(catalogue), "--source", str(catalogue.parent), "--out", "data"]
    assert main(words) == status
    assert says in one_line(capsys)


def test_a_defect_keeps_its_traceback(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_prepare(monkeypatch, KeyError("defect"))
    with pytest.raises(KeyError, match="defect"):
        main(["prepare", str(catalogue), "--source", str(catalogue.parent), "--out", "data"])


def test_json_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of numpy, dataclasses and NaN come out as JSON, with nothing around them."""

    @dataclass(frozen=True)
    class Found:
        item_id: str
        score: np.float32
        rank: float

    class Recommender:
        @classmethod
        def load(cls, run: Path, data: Path | None, overrides: Any) -> Recommender:
            assert data is None and list(overrides) == []
            logging.getLogger("mmrec").info("loaded")
            return cls()

        def recommend(self, **query: Any) -> list[Found]:
            assert {name: value for name, value in query.items() if value} == {
                "history": ["b", "a"],
                "k": 3,
            }
            return [Found("é", np.float32(0.5), float("nan"))]

    monkeypatch.setitem(sys.modules, "mmrec.recommender", SimpleNamespace(Recommender=Recommender))
    assert main(["recommend", str(tmp_path), "--history", "b, a", "-k", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "query": {"history": ["b", "a"]},
        "items": [{"item_id": "é", "score": 0.5, "rank": None}],
    }
    assert main(["recommend", str(tmp_path), "--history", "b, a", "-k", "3"]) == 0
    assert capsys.readouterr().out.split() == ["item_id", "score", "rank", "é", "0.5000", "-"]


def test_metrics_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def values(ndcg: float) -> dict[str, float]:
        return {"num_users": 3, "hr@10": 0.5, "ndcg@10": ndcg, "recall@50": 1.0, "mrr": 0.25}

    metrics = {
        "models": {
            "mmrec": {"warm": values(0.2), "cold": None},
            "ease": {"warm": values(0.3), "cold": None},
        }
    }
    seen: dict[str, Any] = {}

    def evaluate_run(
        run: Path, *, split: str, data: Path | None, overrides: Any, progress: Any
    ) -> dict[str, Any]:
        progress("mmrec", 1, 2)
        seen.update(run=run, split=split, data=data, overrides=overrides)
        return metrics

    monkeypatch.setitem(
        sys.modules, "mmrec.evaluation.command", SimpleNamespace(evaluate_run=evaluate_run)
    )
    share = "evaluation.popularity_share=0.5"
    words = ["evaluate", str(tmp_path), share, "--split", "validation", "--data", str(tmp_path)]
    assert main(words) == 0
    assert seen == {
        "run": tmp_path,
        "split": "validation",
        "data": tmp_path,
        "overrides": [share],
    }
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["warm", "ease", "3", "0.5000"],
        ["warm", "mmrec", "3", "0.5000"],
    ]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics


def test_a_reader_that_leaves_early() -> None:
    """`mmrec … | head` ends quietly when the pipe closes."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "mmrec.cli", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        pytest.param("training.learning_rat=1", "learning_rate", id="unknown-key"),
        pytest.param("training.batch_size=many", "batch_size", id="wrong-type"),
        pytest.param("training.batch_size", "section.field=value", id="no-value"),
        pytest.param("model.width=127", "model.history.num_heads", id="two-fields"),
    ],
)
def test_wrong_settings(
    setting: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("name: tiny\nmodel: {item: id}\n")
    run = tmp_path / "run"
    words = ["train", str(config), "--data", str(tmp_path), "--run", str(run), setting]
    assert main(words) == 2
    assert says in one_line(capsys)
    assert not run.exists()
