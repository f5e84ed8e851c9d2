"""Real stamps that nobody has met, for simulated users: how often their media alone find them.

Tastes are of topics, drawings and kinds of sounds (benchmarks/simulated), so names, pictures and
sounds each say something. What is asked are the cold items of the split, among themselves; where
popularity knows nothing of any of them its list is as good as chance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from benchmarks.simulated.source import write_source
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import change, load_config
from mmrec.evaluation.protocol import load_cases, training_popularity
from mmrec.recommender import Recommender
from mmrec.retrieval.parts import content_by
from mmrec.training.train import train
from mmrec.vectors import user_vectors
from mmrec.weights import folder_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("restored_torch")]
CONFIGS = Path(__file__).parents[1] / "configs"
K, NUM_DRAWS = 10, 20


@pytest.fixture(scope="module")
def stamps(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("minilm", "efficientnet-lite0"):
        if folder_of(name) is None:
            pytest.skip(f"weights {name} are not installed: mmrec weights install {name}")
    folder = tmp_path_factory.mktemp("cold_stamps")
    source = shared_data / "stamps"
    write_source(source, folder / "source", num_users=1000, events_per_user=20, seed=0)
    catalogue = CONFIGS / "catalogues" / "stamps.yaml"
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


@pytest.mark.parametrize("seed", range(5))
def test_media_alone_find_items_that_nobody_has_met(
    seed: int, stamps: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = load_config(CONFIGS / "stamps.yaml")
    train(change(config, {"training.seed": seed}, "test"), stamps, tmp_path / "run")
    data = PreparedData.open(stamps)
    cases = load_cases(data, data.split(), "test")
    cases = cases.take(np.flatnonzero(np.array(cases.slice) == "cold"))
    cold = cases.candidates[cases.candidate_is_cold]
    assert len(cases) > 60 and len(cold) > 60
    assert training_popularity(data.split())[cold].sum() == 0  # so that all of them tie
    chance = K / len(cold)

    retriever = Recommender.load(tmp_path / "run").retriever
    users = user_vectors(retriever.model, retriever.vectors.embedding, cases.history)
    place = {int(row): number for number, row in enumerate(cold)}

    def recall(content: Tensor, order: np.ndarray) -> float:
        """Share of the targets among the first K, where items stand for each other in an order."""
        scores = (users @ content[cold[order]].T).numpy()
        found = [
            (scores[user] > scores[user][place[int(target)]]).sum() < K
            for user in range(len(cases))
            for target in cases.targets[user]
            if int(target) in place
        ]
        return float(np.mean(found))

    contents = {"all": retriever.content} | {
        name: content_by(retriever, name) for name in retriever.transforms
    }
    own = np.arange(len(cold))
    found = {}
    for name, content in contents.items():
        assert content is not None
        has = retriever.items.any_medium if name == "all" else retriever.items.has[name]
        assert has[cold].mean() > 0.9
        found[name] = recall(content, own)
    random = np.random.default_rng(seed)
    assert retriever.content is not None
    permuted = [recall(retriever.content, random.permutation(own)) for _ in range(NUM_DRAWS)]
    found |= {"permuted": float(np.mean(permuted)), "popularity": chance, "chance": chance}
    print(f"seed {seed}, {len(cases)} users, {len(cold)} items: "
          + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))  # fmt: skip
    for name, value in found.items():
        record_property(name, value)
    assert found["all"] > 2 * chance and found["text"] > 1.5 * chance
    assert found["image"] > 1.5 * chance and found["audio"] > 1.15 * chance
    assert found["all"] > max(permuted)
    spread = float(np.std(permuted)) / NUM_DRAWS**0.5
    assert abs(found["permuted"] - chance) < max(4 * spread, 0.15 * chance)
