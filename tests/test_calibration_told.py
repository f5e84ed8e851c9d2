"""Where the log says what was shown, every command that gives probabilities says how far off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from test_shown import NUM_USERS, shop_config, write_shop

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.evaluation.heads import calibration_error
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

RANKER = ["num_blocks=1", "num_heads=2", "max_epochs=1", "batch_size=16", "candidates=6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two items shown, users take the one of their taste; the run has a head for it."""
    folder = tmp_path_factory.mktemp("calibration")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    train(shop_config(max_epochs=6, evaluate_every=6), folder / "data", folder / "run")
    return folder / "run"


def test_it_is_the_mean_distance_in_scikit_learns_bins() -> None:
    random = np.random.default_rng(0)
    told = random.beta(1, 4, 1_000)
    taken = (random.random(1_000) < 0.6 * told).astype(np.float64)
    observed, predicted = calibration_curve(taken, told, n_bins=10, strategy="quantile")
    found = calibration_error(told, taken)
    assert found == pytest.approx(np.abs(observed - predicted).mean()) and found > 0.05
    assert calibration_error(np.full(1_000, taken.mean()), taken) < 0.06


def test_evaluate_says_how_far_off_probabilities_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    click = json.loads((run / "metrics-test.json").read_text())["heads"]["click"]
    assert click["num"] == 2 * NUM_USERS  # what was taken, and what was shown beside it
    assert 0 <= click["calibration_error"] < 0.5
    told = f"calibration error {click['calibration_error']:.4f}, {click['num']} events"
    assert told in printed
    report = json.loads((run / "report.json").read_text())
    assert report["heads"]["click"]["calibration_error"] == click["calibration_error"]
    # the other kind: that the next item is the first of a list, or among its ten
    of_lists = {each["k"]: each["error"] for each in report["reliability"]}
    assert set(of_lists) == {1, 10} and all(0 <= error <= 1 for error in of_lists.values())
    page = re.sub(r"<[^>]*>", "|", (run / "report.html").read_text())
    assert f"calibration error||{click['calibration_error']:.4f}" in page
    assert f"{of_lists[1]:.4f} for the first item" in page
    facet = (run / "report.md").read_text().split("Probabilities: expected calibration error")[1]
    assert f"| first item | {of_lists[1]:.4f} |".replace("0.", ".") in facet


def test_train_ranker_says_it_of_the_probabilities_that_lists_tell(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-ranker", str(run), *(f"ranker.{each}" for each in RANKER)]) == 0
    printed = capsys.readouterr().out
    head = json.loads((run / "ranker" / "metrics.json").read_text())["heads"]["click"]
    assert 0 <= head["calibration"]["calibration_error"] < 0.5
    found = re.search(r"^click: calibrated, expected calibration error (\S+)$", printed, re.M)
    assert found is not None
    assert found[1] == f"{head['calibration']['calibration_error']:.4f}"
    words = ["recommend", str(run), "--user", "u0", "--calibrated", "--json"]
    assert main(words) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert items and all(0 < each["heads"]["click"] < 1 for each in items)
