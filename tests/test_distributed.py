"""Two ranks on gloo compute what one computes; a killed rank ends the run, which then resumes."""

import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from several_ranks import configure, final_of, finish, losses_of, start, train_here

from data_prep.shards import PreparedData
from mmrec.build import assemble
from mmrec.data.batch import batch_loader, share_of

pytest_plugins = ["tiny_run", "several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch", "nobody_left")


@pytest.mark.parametrize("num", [0, 1, 2, 5, 8])
def test_shares_are_whole_and_even(num: int) -> None:
    shares = [share_of(num, rank=rank, world=3) for rank in range(3)]
    assert [start for start, _ in shares] == [0, shares[0][1], shares[1][1]]
    assert shares[-1][1] == num
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_each_batch_and_miss_nothing(world: int, tiny_data: Path) -> None:
    config = configure(blocks=0)
    whole = list(assemble(config, tiny_data).stream)
    parts = [list(assemble(config, tiny_data, rank=r, world=world).stream) for r in range(world)]
    for index, batch in enumerate(whole):
        shares = [part[index] for part in parts]
        pairs = sorted(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True))
        found = sorted(
            pair
            for each in shares
            if each.counted.any()
            for pair in zip(each.inputs.tolist(), each.targets.tolist(), strict=True)
        )
        assert found == pairs
        assert all(each.num_counted == int(batch.counted.sum()) for each in shares)
        assert all(torch.equal(each.fresh, batch.fresh) for each in shares)
        assert [each.own for each in shares] == [
            share_of(len(batch.fresh), rank=rank, world=world) for rank in range(world)
        ]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_comes_once_an_epoch(world: int, num_workers: int, tiny_data: Path) -> None:
    """At any number of ranks and workers, in another order each epoch, the same each time."""
    config = configure(blocks=0)

    def histories(epoch: int) -> list[tuple[int, ...]]:
        found = []
        for rank in range(world):
            stream = assemble(config, tiny_data, rank=rank, world=world).stream
            for batch in batch_loader(stream, epoch=epoch, first_batch=0, num_workers=num_workers):
                if batch.counted.any():
                    for start, stop in pairwise(batch.offsets.tolist()):
                        last = int(batch.targets[stop - 1])
                        found.append((*batch.inputs[start:stop].tolist(), last))
        return found

    data = PreparedData.open(tiny_data)
    split = data.split(data.splits[0])
    assembly = assemble(config, tiny_data)
    row_of = {int(item): row for row, item in enumerate(assembly.item_index_of)}
    wanted = sorted(
        tuple(row_of[int(item)] for item in split.train.read(row).item_index)
        for row in range(len(split.train))
        if len(split.train.read(row).item_index) > 1
    )
    first, second = histories(0), histories(1)
    assert sorted(first) == sorted(second) == wanted
    assert first != second and first == histories(0)


@pytest.mark.parametrize("blocks", [0, pytest.param(1, marks=pytest.mark.slow), "all"])
def test_two_ranks_compute_what_one_does(
    blocks: int | str, tiny_data: Path, tmp_path: Path
) -> None:
    # Contents stand still at first: then no rank has an item to encode. With SGD, since AdamW makes
    # a step of full size of a gradient that is nothing but rounding (of a bias that centring
    # takes out again).
    config = configure(
        blocks,
        **{
            "training.freeze_content_epochs": 1,
            "training.alignment_weight": 0.5,
            "training.modality_weight": 0.5,
            "training.query_weight": 0.5,
            "training.variety_weight": 0.5,
            "training.unlabelled_items": 3,
            "training.max_epochs": 3,
            "training.optimiser": "sgd",
            "training.learning_rate": 0.02,
        },
    )
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(config, tiny_data, one)
    finish(start(config, tiny_data, two, 2), two)
    expected, found = losses_of(one), losses_of(two)
    assert len(found) == len(expected) >= 15
    np.testing.assert_allclose(found, expected, atol=1e-5)
    mine, theirs = final_of(one), final_of(two)
    assert mine.keys() == theirs.keys()
    moved = assemble(config, tiny_data).model.state_dict()
    assert not torch.allclose(
        mine["fusion.out.projection.weight"], moved["fusion.out.projection.weight"]
    )
    for name, each in mine.items():
        torch.testing.assert_close(theirs[name], each, atol=1e-5, rtol=1e-4, msg=name)
    told = (tmp_path / "two-1.log").read_text()
    assert "ndcg" not in told.lower() and "trained" not in told  # one rank speaks


@pytest.mark.timeout(600)
def test_killed_rank_ends_the_run_which_resumes_at_two_and_at_one(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = configure(
        **{
            "training.max_epochs": 6,
            "training.checkpoint_every": 2,
            "training.patience": 99,
            "training.optimiser": "sgd",
            "training.learning_rate": 0.02,
        }
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(config, tiny_data, whole, 2), whole)
    processes = start(config, tiny_data, broken, 2)
    log = broken / "metrics.jsonl"
    while not log.exists() or log.read_text().count('"loss"') < 8:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert processes[0].wait(timeout=90) != 0  # the group waits for 60 s at most
    assert time.monotonic() - killed < 90
    assert not (broken / "checkpoints" / "final").exists()

    alone = tmp_path / "alone"
    subprocess.run(["cp", "-r", str(broken), str(alone)], check=True)
    finish(start(config, tiny_data, broken, 2, "--resume"), broken)
    expected, found = final_of(whole), final_of(broken)
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    assert losses_of(broken) == losses_of(whole)
    train_here(config, tiny_data, alone, resume=True)
    assert len(losses_of(alone)) == len(losses_of(whole))
    np.testing.assert_allclose(losses_of(alone), losses_of(whole), atol=1e-4)
