"""RUN/manifest.json: what a run was made with, each start of it, and nothing private."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from compared_runs import configure, train_until

from data_prep.shards import PreparedData
from mmrec.evaluation.report_tables import run_rows
from mmrec.training.manifest import MANIFEST_FILE, checkout, installed_packages, read_manifest
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def test_every_start_is_told_with_versions_and_data(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = configure("id", max_steps=6, checkpoint_every=2)
    train_until(config, tiny_data, run, 3, resume=False)
    train(config, tiny_data, run, resume=True)
    train(config, tiny_data, run, resume=True)  # finished: nothing starts
    manifest = read_manifest(run)
    assert manifest is not None
    assert [start["step"] for start in manifest["starts"]] == [0, 2]
    data = PreparedData.open(tiny_data)
    assert manifest["data"] == {
        "tiny": {
            "data_hash": data.data_hash,
            "split": data.split().name,
            "split_hash": data.split().hash,
        }
    }
    assert manifest["config"] == hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    for start in manifest["starts"]:
        assert start["packages"]["torch"] == version("torch") and start["mmrec"] == version("mmrec")
        assert start["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
        assert start["threads"] == torch.get_num_threads() and start["ranks"] == 1
        assert start["deterministic"] is config.training.deterministic
        assert abs(start["time"] - (run / "config.yaml").stat().st_mtime) < 600
    text = (run / MANIFEST_FILE).read_text()
    for private in (str(tmp_path), str(tiny_data), os.path.expanduser("~"), os.uname().nodename):
        assert private not in text


def test_the_setting_makes_torch_deterministic_and_its_absence_does_not(
    tiny_data: Path, tmp_path: Path
) -> None:
    for wanted in (True, False):
        run = tmp_path / str(wanted)
        train(configure("id", max_steps=1, deterministic=wanted), tiny_data, run)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        manifest = read_manifest(run)
        assert manifest is not None and manifest["starts"][0]["deterministic"] is wanted


def test_commit_and_changes_of_a_checkout_alone(tmp_path: Path) -> None:
    assert checkout(tmp_path) == {}
    inside = tmp_path / "environment" / "site-packages"
    inside.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert checkout(tmp_path) == {"commit": commit, "changes": False}
    assert checkout(inside) == {}  # installed within somebody's own repository
    (tmp_path / "new").write_text("a file that git does not know")
    assert checkout(tmp_path)["changes"] is False
    (tmp_path / "file").write_text("2")
    assert checkout(tmp_path) == {"commit": commit, "changes": True}


def test_packages_are_those_that_results_may_depend_on() -> None:
    packages = installed_packages()
    assert {"torch", "transformers", "numpy", "webdataset"} <= packages.keys()
    assert not {"ruff", "mypy", "pytest", "import-linter"} & packages.keys()


def test_report_shows_the_last_start_and_stands_without_one(tmp_path: Path) -> None:
    document = {"protocol": {"name": "leave_one_out", "hash": "ab"}, "data_hash": "cd", "seed": 3}
    manifest = {
        "starts": [
            {"mmrec": "0.0.9"},
            {
                "mmrec": "0.1.0",
                "commit": "0123456789abcdef",
                "changes": True,
                "device": "cpu",
                "processor": "A processor",
                "packages": {"torch": "2.14.1"},
            },
        ]
    }
    rows = dict(run_rows(document, manifest))
    assert rows["trained by mmrec"] == "0.1.0" and rows["with torch"] == "2.14.1"
    assert rows["at commit"] == "0123456789ab and changes" and rows["on"] == "A processor"
    assert rows["started"] == "2 times"
    assert "at commit" not in dict(run_rows(document)) and read_manifest(tmp_path) is None
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"schema": 99, "starts": []}))
    assert read_manifest(tmp_path) is None
