"""The range test of the learning rate."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmrec.cli import app
from mmrec.config import change, dump_config
from mmrec.errors import ConfigError
from mmrec.training.find_rate import RatePoint, find_rate, steepest

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def points(*smoothed: float) -> list[RatePoint]:
    return [RatePoint(10.0 ** (step - 6), each, each) for step, each in enumerate(smoothed)]


def test_the_steepest_fall_before_the_best_is_named() -> None:
    found = points(5.0, 5.0, 5.0, 5.0, 4.9, 4.0, 3.0, 2.9, 2.9, 8.0)
    assert steepest(found) in (10.0**-1, 10.0**0)
    assert steepest(points(5.0, 5.1, 5.2, 5.3, 5.4, 6.0)) is None
    assert steepest(points(5.0, 4.0)) is None


def test_rates_grow_evenly_and_the_loss_falls_before_it_blows_up(tiny_data: Path) -> None:
    from tiny_run import tiny_config

    config = change(tiny_config("id"), {"training.batch_size": 2}, "test")
    found = find_rate(config, tiny_data, lowest=1e-5, highest=100.0, num_steps=13)
    rates = np.array([each.rate for each in found])
    assert rates[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10 ** (7 / 12))
    assert 5 <= len(found) <= 13


def test_too_few_batches_are_refused(tiny_data: Path) -> None:
    from tiny_run import tiny_config

    with pytest.raises(ConfigError, match="an epoch has 4: lower training.batch_size"):
        find_rate(tiny_config("id"), tiny_data)


def test_the_command_prints_rates_and_writes_no_run(tiny_data: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_config

    path, run = tmp_path / "config.yaml", tmp_path / "run"
    config = change(tiny_config(), {"training.batch_size": 2}, "test")
    path.write_text(dump_config(config), encoding="utf-8")
    asked = ["train", str(path), "--data", str(tiny_data), "--run", str(run), "--find-lr"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert "learning_rate" in told.stdout and "loss" in told.stdout and not run.exists()
