"""The loop: what a run repeats and logs, when it looks, stops and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared_runs import assert_same_run, configure, losses_of, tensors_of
from safetensors.torch import load_file

from data_prep.errors import BrokenMedium
from data_prep.prepare import prepare
from mmrec.build import Assembly
from mmrec.config import load_config
from mmrec.data import items
from mmrec.errors import CheckpointMismatch, ConfigError, MediaError
from mmrec.training import train as training
from mmrec.training.train import stopping_value, train
from mmrec.training.validate import Validation

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("restored_torch")


def test_one_seed_gives_one_model(tiny_data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(configure(blocks="all", max_steps=3, seed=seed), tiny_data, tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "same")
    one, other = (tensors_of(tmp_path / name / "checkpoints/final") for name in ("one", "other"))
    weights = [name for name in one if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_metrics_are_numbers_with_their_step(tiny_run: Path) -> None:
    records = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    looks = [record for record in records if "validation" in record]
    assert [record["epoch"] for record in looks] == [1, 2]
    assert all({"hr@10", "ndcg@10", "mrr"} <= set(each["validation"]["warm"]) for each in looks)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)


def looks_at(values: list[float]) -> Any:
    """Stands for `validate` and finds the given NDCG@10, one after the other."""
    given = iter(values)

    def look(assembly: Assembly, *, precision: str) -> Validation:
        metrics: dict[str, dict[str, float] | None] = {"warm": {"ndcg@10": next(given, 0.0)}}
        metrics["warm"]["hr@10"] = 0.0  # type: ignore[index]
        return Validation(metrics, None, torch.zeros(0), torch.zeros(0))

    return look


def test_patience_stops_and_the_best_weights_are_kept(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validate", looks_at([0.1, 0.3, 0.3, 0.2, 0.9]))
    state = train(configure("id", max_epochs=9, patience=2), tiny_data, tmp_path)
    assert (state.epoch, state.best_value, state.looks_without_gain) == (4, 0.3, 2)
    per_epoch = state.step // 4
    assert state.best_step == 2 * per_epoch
    checkpoints = tmp_path / "checkpoints"
    final = load_file(checkpoints / "final" / "model.safetensors")
    best = load_file(checkpoints / f"best-{state.best_step:08d}" / "model.safetensors")
    last = load_file(checkpoints / f"step-{state.step:08d}" / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in final)
    assert not torch.equal(final["id_part.table.weight"], last["id_part.table.weight"])
    document = json.loads((checkpoints / "final" / "state.json").read_text())
    assert document["step"] == state.best_step and document["steps_trained"] == state.step


def test_looks_are_as_rare_as_asked(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validate", looks_at([0.1, 0.2, 0.3]))
    train(configure("id", max_epochs=5, evaluate_every=2), tiny_data, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in records if "validation" in each] == [2, 4, 5]


def test_slices_that_decide() -> None:
    metrics: dict[str, dict[str, float] | None] = {
        "warm": {"ndcg@10": 0.2},
        "cold": {"ndcg@10": 0.1},
        "new_users": None,
    }
    looked = Validation(metrics, None, torch.zeros(0), torch.zeros(0))
    assert stopping_value(looked, "warm") == 0.2
    assert stopping_value(looked, "warm+cold") == pytest.approx(0.15)
    for unknown in ("new_users", "warm+lukewarm"):
        with pytest.raises(CheckpointMismatch, match="stop_on is.*it has warm, cold$") as caught:
            stopping_value(looked, unknown)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stop_on", "says"),
    [
        ("lukewarm", "slice 'lukewarm', which does not exist; validation has all, warm"),
        ("warm+new_users", "slice 'new_users', which this split has not; validation has all"),
        ("warm+", "slice '', which does not exist"),
    ],
    ids=["unknown", "absent", "empty"],
)
def test_slice_that_cannot_decide_is_refused_before_the_first_step(
    stop_on: str, says: str, tiny_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        train(configure("id", stop_on=stop_on), tiny_data, run)
    assert "\n" not in str(caught.value) and "training.stop_on" in str(caught.value)
    assert not run.exists()


def test_cold_cannot_decide_where_the_split_has_no_cold_items(
    tiny_source: Path, tmp_path: Path
) -> None:
    overrides = ["split.cold_validation=0", "split.cold_test=0"]
    catalogue, data = tiny_source.parent / "catalogue.yaml", tmp_path / "data"
    prepare(catalogue, tiny_source, data, overrides=overrides, num_workers=1)
    for stop_on in ("cold", "warm+cold_among_cold"):
        with pytest.raises(ConfigError, match="split has not; validation has all, warm:"):
            train(configure("id", stop_on=stop_on), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_broken_media_than_allowed_are_refused(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a prepared folder that no longer decode, as after a change of the decoder."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data, ignore=shutil.ignore_patterns("cache"))

    def refuse(content: bytes) -> None:
        raise BrokenMedium("broken image: of a kind no longer known")

    monkeypatch.setitem(items._DECODERS, "image", refuse)
    says = r"13 of \d+ media cannot be read, more than data.max_broken_media 0.05 allows.*item i0,"
    with pytest.raises(MediaError, match=says) as caught:
        train(configure(), data, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_golden_losses(tiny_data: Path, tmp_path: Path) -> None:
    train(load_config(ROOT / "configs" / "tiny.yaml"), tiny_data, tmp_path / "run")
    golden = np.loadtxt(ROOT / "tests" / "golden" / "tiny_loss.txt")
    assert golden.shape == (10,)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), golden, rtol=1e-4)
