"""How sure scores of new items are: told by what an item has, and true of items never met."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch
from live_servers import serving

from benchmarks.transfer.world import write_world
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from fusion.confidence import Confidence
from mmrec.config import load_config
from mmrec.evaluation.heads import calibration_error
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.parts import content_by
from mmrec.serving.settings import ServiceSettings
from mmrec.training.confidence import pairs_of
from mmrec.training.train import train
from mmrec.vectors import user_vectors

pytest_plugins = ["tiny_run", "live_servers"]
LOOK, SOUND = ["vector.look"], ["vector.sound"]
CONFIG = Path(__file__).parents[1] / "benchmarks" / "variety" / "variety.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a made catalogue of looks and sounds, of whose items a quarter is held out."""
    folder = tmp_path_factory.mktemp("confidence")
    catalogue = write_world(
        folder / "source", "films", overlaps=True, num_items=400, num_users=700, seed=0
    )
    split = ["split.cold_validation=0.1", "split.cold_test=0.15"]
    prepare(catalogue, folder / "source", folder / "data", overrides=split, num_workers=1)
    torch.manual_seed(0)
    changes = ["training.max_epochs=8", "training.evaluate_every=8"]
    train(load_config(CONFIG, changes), folder / "data", folder / "run")
    return folder / "run"


def test_a_score_is_told_by_what_the_item_has() -> None:
    confidence = Confidence(["text", "image"])
    confidence.set_scaling({"text"}, 4.0, -1.0)
    confidence.set_scaling({"text", "image"}, 8.0, -2.0)
    confidence.set_scaling({"image"}, -3.0, 0.5)  # the higher the less: nothing that can be used
    score = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.5, 0.0, 1.0]])
    has = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    found = confidence(score, has)
    scalings = ((4.0, -1.0), (8.0, -2.0), None, None)
    for user in range(2):
        for item, each in enumerate(scalings):
            value = float(found[user, item])
            if each is None:
                assert np.isnan(value)
            else:
                logit = each[0] * float(score[user, item]) + each[1]
                assert value == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    many = Confidence([f"m{n}" for n in range(9)])
    assert bool(many(score, torch.ones(4, 9, dtype=torch.bool)).isnan().all())


def test_a_model_from_before_tells_none() -> None:
    confidence = Confidence(["text"])
    confidence.load_state_dict({})
    assert bool(confidence(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)).isnan().all())


def held_out_pairs(run: Path) -> tuple[Recommender, np.ndarray, torch.Tensor, np.ndarray]:
    """Who met and who did not of the test's new items, users' vectors, and rows of the items."""
    recommender = Recommender.load(run)
    data = PreparedData.open(run.parent / "data")
    cases = load_cases(data, data.split(), "test")
    cases = cases.take(np.flatnonzero(np.array(cases.slice) == "cold"))
    cold = cases.candidates[cases.candidate_is_cold]
    retriever = recommender.retriever
    users = user_vectors(retriever.model, retriever.vectors.embedding, cases.history)
    return recommender, pairs_of(cases, cold), users, cold


def told(
    recommender: Recommender, pairs: np.ndarray, users: torch.Tensor, cold: np.ndarray,
    names: list[str], as_if: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Confidence and truth of pairs, where items have no more than some modalities."""
    retriever = recommender.retriever
    content = retriever.content if len(names) > 1 else content_by(retriever, names[0])
    assert content is not None
    made_of = [names] * len(cold)
    items = retriever.embeddings_of_new(content[torch.from_numpy(cold)], made_of)
    asked = [as_if or names] * len(cold)
    sure = retriever.confidence_of_new(users @ items.T, asked).numpy()
    both = np.concatenate([sure[pairs[:, 0], pairs[:, 2]], sure[pairs[:, 1], pairs[:, 2]]])
    return both.astype(np.float64), np.repeat([1.0, 0.0], len(pairs))


@pytest.mark.parametrize(
    ("names", "right"),
    [(LOOK + SOUND, 0.6), (LOOK, 0.6), (SOUND, 0.52)],
    ids=["all", "look", "sound"],
)
def test_what_is_told_is_true_of_items_never_met(
    world: Path, names: list[str], right: float
) -> None:
    """Fitted on new items of validation, judged by those of the test, by everything and alone."""
    sure, truth = told(*held_out_pairs(world), names)
    assert len(truth) > 1000 and np.isfinite(sure).all()
    assert calibration_error(sure, truth) < 0.06
    assert ((sure > 0.5) == truth).mean() > right
    for part in (sure >= 0.7, sure <= 0.3):  # about .77 and .21 where it is .7 to .9 and .1 to .3
        assert not part.any() or abs(truth[part].mean() - sure[part].mean()) < 0.08


def test_each_set_of_media_needs_its_own_scaling(world: Path) -> None:
    """What a score by everything says would be too much of one by sound."""
    recommender, pairs, users, cold = held_out_pairs(world)
    own, truth = told(recommender, pairs, users, cold, SOUND)
    of_all, _ = told(recommender, pairs, users, cold, SOUND, as_if=LOOK + SOUND)
    assert calibration_error(of_all, truth) > 2 * calibration_error(own, truth)


def test_less_is_told_of_an_item_by_one_medium(world: Path) -> None:
    """By everything scores part users further than by look alone, and the confidence says so."""
    given = held_out_pairs(world)
    spread = [np.abs(told(*given, names)[0] - 0.5).mean()
              for names in (LOOK + SOUND, SOUND)]  # fmt: skip
    assert spread[0] > spread[1]


def test_a_bundle_and_a_run_tell_the_same(world: Path, tmp_path: Path) -> None:
    export_run(world, tmp_path / "export", bundle=True)
    run, bundle = Recommender.load(world), Recommender.load(tmp_path / "export" / "bundle")
    score = torch.linspace(-1, 1, 9)[:, None]
    made_of = [LOOK + SOUND]
    found = [each.retriever.confidence_of_new(score, made_of) for each in (run, bundle)]
    assert torch.equal(found[0], found[1]) and bool((found[0].diff(dim=0) > 0).all())


def test_scores_of_new_items_have_it(
    world: Path, tmp_path: Path, tiny_run: Path, tiny_source: Path
) -> None:
    source = world.parent / "source"
    table = next(source.glob("items.*"))
    recommender = Recommender.load(world)
    scores = recommender.score(recommender.new_items(table, source))
    sure = scores["confidence"]
    item = pl.read_parquet(table).row(0, named=True)
    expected = scores.filter(pl.col("item_id") == item["item"]).head(1)
    form = {"user_id": expected["user_id"][0], "vector.look": json.dumps(list(item["look"]))}
    form["vector.sound"] = json.dumps(list(item["sound"]))
    settings = ServiceSettings(path=world, database=f"sqlite:///{tmp_path / 'service.sqlite'}")
    with serving(settings) as (address, _):
        parts = {name: (None, value) for name, value in form.items()}
        answer = httpx.post(f"{address}/v1/score", files=parts, timeout=30)  # type: ignore[arg-type]
    [of_user] = answer.json()["users"]
    assert of_user["confidence"] == pytest.approx(expected["confidence"][0], abs=1e-5)
    assert sure.null_count() == 0 and 0 < sure.min() < 0.5 < sure.max() < 1  # type: ignore[operator]
    # a dozen items hold too few new ones for validation to tell
    (tmp_path / "new.csv").write_text("id,title\nnew,A red letter\n")
    tiny = Recommender.load(tiny_run)
    found = tiny.score(tiny.new_items(tmp_path / "new.csv", tiny_source))
    assert found["confidence"].dtype == pl.Float32
    assert len(found) and found["confidence"].null_count() == len(found)


def test_a_run_that_starts_from_another_finds_its_own(world: Path, tmp_path: Path) -> None:
    changes = [f"training.start_from={world}", "training.max_epochs=1"]
    train(load_config(CONFIG, changes), world.parent / "data", tmp_path / "run")
    before, after = load_run(world).model.confidence, load_run(tmp_path / "run").model.confidence
    assert before is not None and after is not None
    assert float(after.scaling[3, 0]) > 0 and not torch.equal(before.scaling, after.scaling)
