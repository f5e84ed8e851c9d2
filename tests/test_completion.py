"""What an item lacks is made up for from what it has: the regression, and where it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge
from tiny_run import tiny_config

from data_prep.prepare import prepare
from fusion.completion import EXPECTED_SHARE, RIDGE, RIDGE_OF_NEW, Completion
from mmrec.build import assemble
from mmrec.evaluation.ablation import content_of_subsets
from mmrec.loaded import load_run, open_source
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.training.checkpoint import load_model
from mmrec.training.complete import FEWEST_ITEMS
from mmrec.training.train import train
from mmrec.training.validate import validate
from mmrec.vectors import item_vectors

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
    completion.expected[1] = True
    new, _ = contents(50)
    missing = torch.tensor([False, True, False]).expand(50, 3)
    for ridge, completed, length in (
        (RIDGE, completion(new, missing), None),
        (RIDGE_OF_NEW, completion.of_new(new, ~missing), 0.95),
    ):
        peer = Ridge(alpha=ridge).fit(without.double().numpy(), (whole - without).double().numpy())
        expected = new.numpy() + peer.predict(new.numpy())
        if length is not None:
            expected = length * expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(completed, expected, rtol=1e-4, atol=1e-5)
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


def test_new_items_are_told_what_is_expected_and_nothing_else() -> None:
    without, whole = contents()
    completion = Completion(NAMES, 8)
    for missing in ({"image"}, {"audio"}, {"image", "audio"}):
        completion.fit(missing, without, whole)
    has = torch.ones(200, 3, dtype=torch.bool)
    assert torch.equal(completion.of_new(without, ~has), without)  # nothing is expected yet
    completion.expected.copy_(torch.tensor([True, True, False]))
    has[50:, 2] = False  # not expected
    has[100:, 0] = False  # expected, and not fitted
    has[150:] = False  # nothing to tell it from
    assert torch.equal(completion.of_new(without, has), without)
    has[:50, 1] = False
    completed = completion.of_new(without, has)
    assert torch.equal(completed[50:], without[50:])
    assert not torch.isclose(completed[:50], without[:50]).all(1).any()
    has[:25, 2] = False  # what is not expected asks for no other map
    assert torch.equal(completion.of_new(without, has), completed)
    for names in (["text"], [f"vector.{k}" for k in range(6)]):
        other = Completion(names, 8)
        assert torch.equal(other.of_new(without, torch.zeros(200, len(names)).bool()), without)


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


@pytest.fixture(scope="module")
def lossy(
    tiny_source: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run on the tiny catalogue whose new items have no picture, and their ids."""
    loaded = load_run(tiny_run)
    unmet = sorted(set(loaded.item_ids) - {loaded.item_ids[row] for row in loaded.item_index_of})
    folder = tmp_path_factory.mktemp("lossy")
    shutil.copytree(tiny_source, folder / "source")
    shutil.copyfile(tiny_source.parent / "catalogue.yaml", folder / "catalogue.yaml")
    table = folder / "source" / "items.csv"
    is_unmet = pl.col("id").is_in(unmet)
    poster = pl.when(is_unmet).then(None).otherwise("poster").alias("poster")
    pl.read_csv(table).with_columns(poster).write_csv(table)
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    train(tiny_config(), folder / "data", folder / "run")
    return folder, unmet


def test_a_run_expects_what_nearly_all_of_its_items_have(lossy: tuple[Path, list[str]]) -> None:
    loaded = load_run(lossy[0] / "run")
    assert loaded.data is not None and loaded.model.completion is not None
    completion = loaded.model.completion
    for name, expected in zip(completion.modalities, completion.expected.tolist(), strict=True):
        has = loaded.data.items.has(name)
        assert expected == (has[loaded.item_index_of].mean() >= EXPECTED_SHARE), name
        assert name != "image" or (expected and has.mean() < EXPECTED_SHARE)


def test_new_items_are_completed_for_users_and_not_for_search(
    lossy: tuple[Path, list[str]],
) -> None:
    folder, unmet = lossy
    loaded = load_run(folder / "run")
    model, content = loaded.model, loaded.content
    assert content is not None and loaded.has is not None and model.completion is not None
    source = open_source(loaded)
    assert source is not None
    bare = content_of_subsets(loaded, source, [frozenset(model.completion.modalities)])[0]
    assert torch.equal(bare, content)
    size = len(loaded.item_ids)
    found = item_vectors(model, content, loaded.item_index_of, num_items=size, has=loaded.has)
    plain = item_vectors(model, content, loaded.item_index_of, num_items=size)
    assert found.content is content
    new = torch.tensor([item_id in unmet for item_id in loaded.item_ids])
    assert torch.equal(found.embedding[~new], plain.embedding[~new])
    assert torch.equal(found.bias[~new], plain.bias[~new])
    assert torch.equal(plain.embedding[new], content[new])
    weights = model.completion.maps_of_new[2 ** model.completion.modalities.index("image")]
    made_up = [each + each @ weights[:-1] + weights[-1] for each in content[new]]
    slow = torch.stack([0.95 * each / each.norm() for each in made_up])
    torch.testing.assert_close(found.embedding[new], slow)
    assert ((slow - content[new]).norm(dim=1) > 1e-3).all()
    # what popularity is told from, in use and where the share of it is chosen
    model.expectation.copy_(torch.linspace(-1, 1, len(model.expectation)))
    told = slow @ model.expectation[:-1] + model.expectation[-1] + model.offset
    again = item_vectors(model, content, loaded.item_index_of, num_items=size, has=loaded.has)
    torch.testing.assert_close(again.bias[new], told)
    torch.manual_seed(loaded.config.training.seed)  # which encoders below the cut depend on
    assembly = assemble(loaded.config, folder / "data")
    load_model(folder / "run" / "checkpoints" / "final", assembly.model)
    looked = validate(assembly, precision="fp32")
    assert looked.content is not None
    torch.testing.assert_close(looked.content[new], slow)
    torch.testing.assert_close(looked.content[~new], content[~new])
    whole = torch.ones_like(loaded.has)  # who lacks nothing keeps every bit
    plain = item_vectors(model, content, loaded.item_index_of, num_items=size)
    same = item_vectors(model, content, loaded.item_index_of, num_items=size, has=whole)
    assert torch.equal(same.embedding, plain.embedding) and torch.equal(same.bias, plain.bias)


def test_export_score_and_recommend_agree_on_what_is_made_up(
    lossy: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, unmet = lossy
    export_run(folder / "run", tmp_path / "out", bundle=True)
    run, bundle = Recommender.load(folder / "run"), Recommender.load(tmp_path / "out" / "bundle")
    export = Export.open(tmp_path / "out")
    ids, side = export.items()
    _, exported_content = export.content()
    rows = [ids.index(item_id) for item_id in unmet]
    assert np.abs(side[rows, :-1] - exported_content[rows]).max() > 1e-3
    user = run.retriever.user_vectors([run.retriever.given_user(["i1", *unmet])])[0].numpy()
    # `i1` and the new items: a history reads what is made up as well
    for each in (run, bundle):
        table = each.new_items(folder / "source" / "items.csv", folder / "source")
        live = each.embed_items(table)
        assert live.content is not None
        live_rows = [live.item_ids.index(item_id) for item_id in unmet]
        assert np.abs(live.embedding[live_rows] - side[rows, :-1]).max() < 1e-5
        assert np.abs(live.content[live_rows] - exported_content[rows]).max() < 1e-5
        stored = each.embed_items(unmet)
        assert stored.content is not None
        assert np.abs(stored.embedding - side[rows, :-1]).max() < 1e-6
        assert np.abs(stored.content - exported_content[rows]).max() < 1e-6
        other = each.retriever.user_vectors([each.retriever.given_user(["i1", *unmet])])[0].numpy()
        assert np.abs(other - user).max() < 1e-6
        scores = each.score(table, histories=[["i1", "i2"]])
        scored = dict(scores.select("item_id", "score").iter_rows())
        ranks = dict(scores.select("item_id", "rank").iter_rows())
        asked = each.retriever.user_vectors([each.retriever.given_user(["i1", "i2"])])[0].numpy()
        listed = {
            found.item_id: found
            for found in each.recommend(history=["i1", "i2"], k=len(ids) - 2, unmet=True)
        }
        for item_id, row in zip(unmet, rows, strict=True):
            assert scored[item_id] == pytest.approx(float(asked @ side[row, :-1]), abs=1e-5)
            whole = float(asked @ side[row, :-1] + side[row, -1])
            assert listed[item_id].score == pytest.approx(whole, abs=1e-5)
            popularity = each.retriever.item_side[row, -1]
            assert float(popularity) == pytest.approx(side[row, -1], abs=1e-6)
        for found in each.recommend(history=["i1", "i2"], k=len(ids)):
            assert found.item_id not in unmet or ranks[found.item_id] == found.rank


def test_knock_outs_ask_new_items_as_use_does(tiny_run: Path, tiny_source: Path) -> None:
    loaded = load_run(tiny_run)
    source = open_source(loaded)
    assert source is not None and loaded.has is not None and loaded.model.completion is not None
    names = loaded.model.completion.modalities
    kept = frozenset(names) - {"image"}
    content = content_of_subsets(loaded, source, [kept])[0]
    known = loaded.has & torch.tensor([name in kept for name in names])
    knocked = item_vectors(
        loaded.model, content, loaded.item_index_of, num_items=len(loaded.item_ids), has=known
    )
    recommender = Recommender.load(tiny_run)
    table = tiny_source.parent / "no-pictures.csv"
    pl.read_csv(tiny_source / "items.csv").with_columns(poster=pl.lit(None)).write_csv(table)
    live = recommender.embed_items(recommender.new_items(table, tiny_source))
    place = {item_id: row for row, item_id in enumerate(live.item_ids)}
    new = np.setdiff1d(np.arange(len(loaded.item_ids)), loaded.item_index_of)
    for row in new.tolist():
        embedding = live.embedding[place[loaded.item_ids[row]]]
        assert np.abs(knocked.embedding[row].numpy() - embedding).max() < 1e-5
        assert np.abs(content[row].numpy() - embedding).max() > 1e-3


def test_a_run_from_before_serves_as_it_did(lossy: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(lossy[0] / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "final" / "model.safetensors"
    tensors = load_file(path)
    del tensors["completion.maps_of_new"], tensors["completion.expected"]
    save_file(tensors, path)
    export_run(tmp_path / "run", tmp_path / "out", bundle=True)
    for folder in (tmp_path / "run", tmp_path / "out" / "bundle"):
        retriever = Recommender.load(folder).retriever
        completion = retriever.model.completion
        assert completion is not None and completion.maps.any()
        assert not completion.expected.any() and not completion.maps_of_new.any()
        assert retriever.content is not None
        new = torch.from_numpy(retriever.counts == 0)
        assert new.any() and torch.equal(retriever.vectors.embedding[new], retriever.content[new])
