"""What an item lacks is made up for from what it has: the regression, and where it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from tiny_run import tiny_config

from fusion.completion import RIDGE, Completion
from mmrec.evaluation.ablation import content_of_subsets
from mmrec.loaded import load_run, open_source
from mmrec.training.complete import FEWEST_ITEMS
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NAMES = ("text", "image", "audio")


def contents(n: int = 200, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    whole = F.normalize(torch.randn(n, width, generator=random), dim=1)
    turn = torch.randn(width, width, generator=random)
    return F.normalize(whole @ turn + 0.3, dim=1), whole


def test_it_is_ridge_regression_of_what_changes() -> None:
    without, whole = contents()
    completion = Completion(NAMES, 8)
    completion.fit(frozenset({"image"}), without, whole)
    peer = Ridge(alpha=RIDGE).fit(without.double().numpy(), (whole - without).double().numpy())
    new, _ = contents(50)
    missing = torch.tensor([False, True, False]).expand(50, 3)
    expected = new.numpy() + peer.predict(new.numpy())
    np.testing.assert_allclose(completion(new, missing), expected, rtol=1e-4, atol=1e-5)
    closer = (completion(without, missing[:1].expand(200, 3)) - whole).norm(dim=1)
    assert closer.mean() < 0.5 * (without - whole).norm(dim=1).mean()


def test_what_lacks_nothing_or_was_not_fitted_stays_bit_for_bit() -> None:
    without, whole = contents()
    completion = Completion(NAMES, 8)
    completion.fit(frozenset({"image"}), without, whole)
    missing = torch.zeros(200, 3, dtype=torch.bool)
    missing[50:100, 0] = True  # text was not fitted
    missing[100:, 1] = True
    completed = completion(without, missing)
    assert torch.equal(completed[:100], without[:100])
    assert not torch.isclose(completed[100:], without[100:]).all(1).any()
    many = Completion([f"vector.{k}" for k in range(6)], 8)
    assert many.maps.shape[0] == 1
    assert many(without, torch.ones(200, 6, dtype=torch.bool)) is without


def test_a_run_learns_what_its_items_lose(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config(), tiny_data, run)
    loaded = load_run(run)
    assert loaded.data is not None
    completion = loaded.model.completion
    assert completion is not None
    names = completion.modalities
    has = np.stack([loaded.data.items.has(name)[loaded.item_index_of] for name in names], axis=1)
    fitted = completion.maps.flatten(1).any(1)
    assert len(names) > 1 and not fitted[0] and not fitted[-1] and fitted.any()
    for row in range(1, 2 ** len(names) - 1):
        gone = np.array([bool(row >> bit & 1) for bit in range(len(names))])
        enough = (has[:, gone].all(1) & has[:, ~gone].any(1)).sum() >= FEWEST_ITEMS
        assert bool(fitted[row]) == enough, gone
    # of items of training, without one modality: nearer to the whole than fusion alone leaves it
    source = open_source(loaded)
    assert source is not None
    everything = frozenset(names)
    subsets = [everything, everything - {names[0]}]
    whole, completed = content_of_subsets(loaded, source, subsets)
    maps = completion.maps.clone()
    completion.maps.zero_()
    _, bare = content_of_subsets(loaded, source, subsets)
    completion.maps.copy_(maps)
    met = torch.from_numpy(loaded.item_index_of)
    new = torch.from_numpy(np.setdiff1d(np.arange(len(loaded.item_ids)), loaded.item_index_of))
    assert len(new) and torch.equal(completed[new], bare[new])
    assert (completed - whole)[met].norm() < (bare - whole)[met].norm()
