"""Runs that break and go on: equal to the unbroken, bit for bit, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import assert_same_run, configure, losses_of, train_until

from mmrec.config import dump_config, parse_config
from mmrec.errors import CheckpointMismatch
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent
MODES = pytest.mark.parametrize("blocks", [0, 1, "all"], ids=["cached", "cut", "all"])
pytestmark = pytest.mark.usefixtures("restored_torch")


@MODES
def test_broken_and_resumed_equals_unbroken(
    tiny_data: Path, tmp_path: Path, blocks: int | str
) -> None:
    # few of the items are fresh in a step: the others' contents come from the bank
    changes: dict[str, Any] = {
        "max_steps": 10,
        "checkpoint_every": 5,
        "max_epochs": 9,
        "fresh_items": 4,
    }
    config = configure(blocks=blocks, **changes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    state = train(config, tiny_data, whole)
    assert (state.step, state.finished) == (10, True)
    assert len(losses_of(whole)) == 10
    train_until(config, tiny_data, broken, 3, resume=False)  # before the first checkpoint
    train_until(config, tiny_data, broken, 7)  # after that of step 5, in the midst of an epoch
    assert (broken / "checkpoints" / "step-00000005").is_dir()
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)
    train(config, tiny_data, broken, resume=True)  # a finished run stays as it is
    assert_same_run(whole, broken)


@pytest.mark.parametrize("block", ["gru", "cnn"])
def test_user_models_without_attention_resume_too(
    tiny_data: Path, tmp_path: Path, block: str
) -> None:
    document = configure("id", max_steps=6, checkpoint_every=3).model_dump(mode="json")
    document["model"]["history"] |= {"block": block, "num_blocks": 2}
    config = parse_config(document)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, tiny_data, whole)
    train_until(config, tiny_data, broken, 5, resume=False)
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)


@pytest.mark.parametrize("optimiser", ["sgd", "adafactor", "adamw8bit"])
def test_other_optimisers_resume_too(tiny_data: Path, tmp_path: Path, optimiser: str) -> None:
    changes = {"max_steps": 6, "checkpoint_every": 3, "optimiser": optimiser}
    document = configure(blocks=0, **changes).model_dump(mode="json")
    document["model"]["width"] = 32  # a few matrices are large enough for eight bits
    config = parse_config(document)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, tiny_data, whole)
    train_until(config, tiny_data, broken, 5, resume=False)
    train(config, tiny_data, broken, resume=True)
    assert_same_run(whole, broken)


def test_folder_of_another_run_is_refused(
    tiny_data: Path, tiny_run_id: Path, tmp_path: Path
) -> None:
    log = (tiny_run_id / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointMismatch, match="holds a run already; add --resume"):
        train(configure("id"), tiny_data, tiny_run_id)
    with pytest.raises(CheckpointMismatch, match=r"config\.yaml: differs from the settings"):
        train(configure("id", seed=5), tiny_data, tiny_run_id, resume=True)
    run = tmp_path / "run"
    train(configure("id", max_steps=1), tiny_data, run)
    bound = json.loads((run / "data.json").read_text())
    for key in ("data_hash", "split_hash"):
        (run / "data.json").write_text(json.dumps({**bound, key: "0" * 64}))
        with pytest.raises(CheckpointMismatch, match=f"{key} is .*begun on 000000000000") as caught:
            train(configure("id", max_steps=1), tiny_data, run, resume=True)
        assert "\n" not in str(caught.value)
    assert (tiny_run_id / "metrics.jsonl").read_bytes() == log


def test_run_begun_before_a_setting_existed_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    config = configure("id", max_steps=4, checkpoint_every=2)
    train_until(config, tiny_data, tmp_path, 3, resume=False)
    path = tmp_path / "config.yaml"
    older = [line for line in path.read_text().splitlines() if "user_share" not in line]
    path.write_text("\n".join(older) + "\n")
    assert train(config, tiny_data, tmp_path, resume=True).step == 4
    assert path.read_text() == dump_config(config)


def start(config: Path, data: Path, run: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmrec.cli", "train", str(config)]
    command += ["--data", str(data), "--run", str(run), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int, delay_s: float) -> None:
    """Sends SIGKILL a moment after a step was logged; the run must not have ended."""
    log = run / "metrics.jsonl"
    while not log.exists() or log.read_text().count('"loss"') < step:
        assert process.poll() is None, f"ended before step {step}"
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MODES
def test_process_killed_three_times_equals_the_unbroken(
    tiny_data: Path, tmp_path: Path, blocks: int | str
) -> None:
    document = configure(
        blocks=blocks, max_epochs=12, batch_size=4, fresh_items=4, checkpoint_every=3, patience=99
    ).model_dump(mode="json")
    document["data"]["num_workers"] = 2
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(parse_config(document)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(path, tiny_data, whole).wait() == 0
    steps = len(losses_of(whole))
    random = np.random.default_rng(steps)
    options: list[str] = []
    for third in range(3):
        step = steps * third // 4 + int(random.integers(2, steps // 5))
        process = start(path, tiny_data, broken, *options)
        kill_after(process, broken, step, float(random.uniform(0, 0.02)))
        assert not (broken / "checkpoints" / "final").exists()
        options = ["--resume"]
    assert start(path, tiny_data, broken, *options).wait() == 0
    assert_same_run(whole, broken)
