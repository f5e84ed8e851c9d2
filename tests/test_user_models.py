"""User models without attention, from training to use, and every kind beside popularity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.prepare import prepare
from mmrec.config import Config, load_config, parse_config
from mmrec.evaluation.baselines import fit_baselines
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.evaluate import evaluate_scorers
from mmrec.evaluation.protocol import load_cases, training_histories, training_popularity
from mmrec.evaluation.ranking import VectorScorer
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.training.train import train
from mmrec.training.validate import case_vectors

pytest_plugins = ["tiny_run"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
WITHOUT_ATTENTION = ("gru", "cnn")


pytestmark = pytest.mark.usefixtures("restored_torch")


def with_block(config: Config, block: str) -> Config:
    document = config.model_dump(mode="json")
    document["model"]["history"]["block"] = block
    return parse_config(document)


@pytest.mark.parametrize("block", WITHOUT_ATTENTION)
def test_from_training_to_use(tiny_data: Path, tmp_path: Path, block: str) -> None:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    run, out = tmp_path / "run", tmp_path / "out"
    train(with_block(tiny_config("id"), block), tiny_data, run)
    metrics = evaluate_run(run)
    assert metrics["models"]["mmrec"]["warm"]["ndcg@10"] > 0
    costs = json.loads((run / "report.json").read_text())["costs"]
    assert costs["parameters"]["history"]["trainable"] > 0
    assert 0 < costs["latency"]["p50_ms"] <= costs["latency"]["p95_ms"]

    export_run(run, out, bundle=True)
    recommender, served = Recommender.load(run), Recommender.load(out / "bundle")
    known = recommender.recommend("u7", k=5)
    assert known == served.recommend("u7", k=5) and known[0].basis == "history"
    # turning a history round changes what is recommended; one without events is popularity's
    there, back = ["i1", "i2", "i8", "i9"], ["i9", "i8", "i2", "i1"]
    vectors = recommender.embed_users([there, back])
    assert not np.allclose(vectors[0], vectors[1])
    assert recommender.recommend(history=[], k=1)[0].basis == "popularity"
    user_ids, users = Export.open(out).users()
    rows, _ = recommender.retriever.stored_users(user_ids)
    stored = recommender.retriever.user_vectors(list(map(recommender.retriever.stored_user, rows)))
    assert np.abs(users[:, :-1] - stored.numpy()).max() < 1e-5


@pytest.fixture(scope="module")
def movielens_100k(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared without media, the last event of every user its target."""
    out = tmp_path_factory.mktemp("ml-100k") / "data"
    overrides = ("items.text=[title]", "items.image=[]", "split={protocol: leave_one_out}")
    catalogue = CONFIGS / "catalogues" / "movielens-100k.yaml"
    prepare(catalogue, shared_data, out, overrides=overrides, num_workers=1)
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.realdata
@pytest.mark.parametrize("block", ["gated", *WITHOUT_ATTENTION])
def test_a_short_run_beats_popularity_on_movielens_100k(
    movielens_100k: Path, tmp_path: Path, block: str
) -> None:
    changes = [f"model.history.block={block}", "training.max_epochs=8"]
    train(load_config(CONFIGS / "movielens-100k-id.yaml", changes), movielens_100k, tmp_path)
    loaded = load_run(tmp_path)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    vectors = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    scorers = fit_baselines(
        ["popularity"],
        cases,
        train_users=loaded.split.train.user_index,
        train=training_histories(loaded.split),
    )
    evaluation = evaluate_scorers(
        {"mmrec": VectorScorer(*vectors), **scorers},
        cases,
        popularity=training_popularity(loaded.split),
    )
    found = {name: each["warm"] for name, each in evaluation.models.items()}
    ours, popular = found["mmrec"], found["popularity"]
    assert ours is not None and popular is not None and ours["num_users"] == 943
    # popularity has .0443; in eight epochs gated .0748, gru .0722, cnn .0579
    assert ours["ndcg@10"] > 1.1 * popular["ndcg@10"] > 0
