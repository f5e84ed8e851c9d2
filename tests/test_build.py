"""Settings and data to the parts of a run: a share of the users for cheap searches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import PreparedData
from mmrec.build import assemble, in_share
from mmrec.config import Config, parse_config
from mmrec.errors import ConfigError
from mmrec.evaluation.command import evaluate_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]


def with_share(share: float) -> Config:
    from tiny_run import tiny_config

    document = tiny_config("id").model_dump(mode="json")
    document["data"]["user_share"] = share
    return parse_config(document)


def test_a_smaller_share_lies_within_a_larger_one() -> None:
    user_ids = [f"u{number}" for number in range(4000)]
    small, large = in_share(user_ids, 0.1), in_share(user_ids, 0.3)
    assert not (small & ~large).any()
    assert small.mean() == pytest.approx(0.1, abs=0.02)
    assert large.mean() == pytest.approx(0.3, abs=0.02)
    assert in_share(user_ids, 1.0).all()
    # by the id alone: neither the other users nor the order matter
    assert (in_share(user_ids[::-1], 0.1) == small[::-1]).all()


def test_training_and_validation_see_the_same_users(tiny_data: Path) -> None:
    data = PreparedData.open(tiny_data)
    chosen = np.flatnonzero(in_share(data.user_ids, 0.5)).tolist()
    whole, part = assemble(with_share(1.0), tiny_data), assemble(with_share(0.5), tiny_data)
    assert whole.validation is not None and part.validation is not None
    assert 0 < len(chosen) < len(data.user_ids)
    users = [part.stream.histories.read(i).user_index for i in range(len(part.stream.plan.lengths))]
    assert set(users) <= set(chosen)
    assert set(part.validation.user_index.tolist()) == set(chosen) & set(
        whole.validation.user_index.tolist()
    )
    trained = {i for batch in part.stream.plan.batches(0) for i in batch.history.tolist()}
    assert trained == {i for i, n in enumerate(part.stream.plan.lengths.tolist()) if n > 1}
    assert part.num_rows == whole.num_rows
    again = pickle.loads(pickle.dumps(part.stream.histories))  # as a worker gets them
    assert again.read(0).user_index == users[0]


def test_a_share_without_users_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train(with_share(1e-6), tiny_data, tmp_path / "run")
    assert "\n" not in str(caught.value) and "data.user_share" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_figures_of_a_share_say_so(tiny_data: Path, tmp_path: Path) -> None:
    train(with_share(0.5), tiny_data, tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["user_share"] == 0.5
