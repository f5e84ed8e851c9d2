"""The second stage from a run's lists to a user's: trained, resumed, served, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_shown import shop_config, write_shop
from tiny_run import NUM_USERS

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import parse_config
from mmrec.data.ragged import Ragged
from mmrec.data.told import unknown_events
from mmrec.errors import CheckpointMismatch, ConfigError, UserError
from mmrec.evaluation.protocol import Cases, load_cases
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.loaded import load_run
from mmrec.ranking.calibrate import calibrate, refusal
from mmrec.ranking.evaluate import evaluate_ranker
from mmrec.ranking.gain import ask, rank_again, reordered
from mmrec.ranking.lists import freeze, lists_of, training_examples
from mmrec.ranking.settings import RankerConfig, parse_ranker_config
from mmrec.ranking.train import train_ranker
from mmrec.recommender import RankedRecommendation, Recommendation, Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.ranker_inputs import RankerInputs
from mmrec.retrieval.ranker_outputs import calibrated
from mmrec.retrieval.second_stage import Shortlist, alike_in_length, make_ranker
from mmrec.retrieval.wishes import Wishes
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

SMALL = RankerConfig(candidates=6, num_blocks=1, num_heads=2, max_epochs=2, batch_size=16)


def copied(run: Path, folder: Path) -> Path:
    """A run that a ranker may be put beside: others use the fixture too."""
    return Path(shutil.copytree(run, folder / "run"))


@pytest.fixture(scope="module")
def ranked_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a ranker whose numbers are not 0, whatever it is worth."""
    run = copied(tiny_run, tmp_path_factory.mktemp("ranked"))
    train_ranker(run, SMALL)
    return run


@pytest.fixture(scope="module")
def ranked(ranked_run: Path) -> Recommender:
    return Recommender.load(ranked_run)


def cases_by_hand() -> Cases:
    """Three users, five candidates; the last is asked for two items."""
    return Cases(
        user_index=np.arange(3),
        history=Ragged.from_rows([[0], [1], [2]]),
        seen=Ragged.from_rows([[0], [], []]),
        targets=Ragged.from_rows([[4], [2], [0, 3]]),
        slice=["warm"] * 3,
        candidates=np.arange(5),
        candidate_is_cold=np.zeros(5, np.bool_),
        num_items=5,
    )


def test_only_the_best_k_change_places() -> None:
    cases = cases_by_hand()
    scores = torch.tensor([[9, 4, 3, 2, 1], [5, 4, 1, 3, 2], [5, 4, 3, 2, 1]], dtype=torch.float32)
    retrieval = rank_cases(VectorScorer(scores, torch.eye(5)), cases, top_k=3)
    assert retrieval.rank.tolist() == [4, 5, 1, 4]  # the first user has met item 0
    same = reordered(retrieval, cases, retrieval.top_scores)
    assert same.rank.tolist() == retrieval.rank.tolist()
    final = np.array([[1, 2, 3], [1, 2, 2], [1, 3, 1]], np.float32)  # of items 123, 013, 012
    turned = reordered(retrieval, cases, final)
    # not among the first three: as they were; item 0 of the last shares places 2 and 3
    assert turned.rank.tolist() == [4, 5, 2.5, 4]
    assert turned.top_items.tolist() == [[3, 2, 1], [1, 3, 0], [1, 0, 2]]
    assert (np.diff(turned.top_scores) <= 0).all()


@pytest.mark.parametrize("kind", ["both", "id"])
def test_an_untrained_ranker_leaves_lists_as_they_are(
    tiny_run: Path, tiny_run_id: Path, kind: str
) -> None:
    loaded = load_run(tiny_run if kind == "both" else tiny_run_id)
    assert loaded.data is not None and loaded.split is not None
    frozen = freeze(loaded)
    inputs = RankerInputs(loaded.model, frozen.vectors, frozen.counts, None)
    ranker = make_ranker(loaded.model, inputs, SMALL.model_dump())
    asked = ask(frozen, load_cases(loaded.data, loaded.split, "validation"), 6)
    found = rank_again(frozen, inputs, ranker, asked)
    np.testing.assert_array_equal(found.rank, asked.ranking.rank)
    np.testing.assert_array_equal(found.top_items, asked.ranking.top_items)
    np.testing.assert_array_equal(found.top_scores, asked.ranking.top_scores)


def test_lists_are_what_would_have_been_served(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    frozen = freeze(loaded)
    examples = training_examples(loaded, most=1000, seed=0)
    lists = lists_of(frozen, examples, k=6, shown=0)
    train_events = loaded.split.train.lengths
    assert len(lists) == int((train_events - 1).sum())  # all events but the first of each user
    held_out = loaded.split.targets("validation").vstack(loaded.split.targets("test"))
    first = dict(held_out.group_by("user_index").agg(pl.col("position").min()).iter_rows())
    for row, each in enumerate(examples):
        assert each.position < first.get(each.user_index, 10**9)  # nothing of what is held out
        full = loaded.split.full
        whole = full.read(int(np.searchsorted(full.user_index, each.user_index))).item_index
        assert whole[each.position] == each.item
        listed = lists.items[row][lists.items[row] >= 0]
        assert not set(listed) & set(whole[: each.position])
        assert len(set(listed)) == len(listed)
        at = lists.target[row]
        assert (at >= 0) == (each.item in listed) and (at < 0 or listed[at] == each.item)
    assert lists.found == pytest.approx((lists.target >= 0).mean())
    # cold items stand in the lists, as in use, and do not compete: training met none of them
    never_met = (lists.items >= 0) & (frozen.counts[lists.items] == 0)
    assert never_met.any() and not lists.listed[never_met].any()
    assert lists.listed[(lists.items >= 0) & ~never_met].all()
    again = frozen.scores(lists.users, lists.items)[torch.from_numpy(lists.items >= 0)]
    torch.testing.assert_close(again, lists.scores[torch.from_numpy(lists.items >= 0)])
    assert len(training_examples(loaded, most=NUM_USERS, seed=0)) <= NUM_USERS


def test_a_ranked_list_is_distinct_unseen_and_never_increases(ranked: Recommender) -> None:
    alone = ranked.recommend("u3", k=100, ranked=False)
    for k in (3, 100):
        found = ranked.recommend("u3", k=k, ranked=True)
        assert all(isinstance(each, RankedRecommendation) for each in found)
        assert [each.rank for each in found] == list(range(1, len(found) + 1))
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
    ids = [each.item_id for each in found]
    assert len(set(ids)) == len(ids) and set(ids) == {each.item_id for each in alone}
    places = {each.item_id: each.rank for each in alone}
    assert all(places[e.item_id] == e.retrieval_rank for e in found)  # type: ignore[attr-defined]
    assert [e.score for e in found] != [e.score for e in alone]


def test_wishes_are_kept_of_a_ranked_list(ranked: Recommender) -> None:
    """Hard ones before the ranker, variety behind it; the list is as long as without it."""
    plain = ranked.recommend("u3", k=100, ranked=False)
    without = tuple(each.item_id for each in plain[:2])
    found = ranked.recommend("u3", k=len(plain), ranked=True, wishes=Wishes(without=without))
    assert {each.item_id for each in found} == {each.item_id for each in plain[2:]}
    places = {each.item_id: place for place, each in enumerate(plain[2:], start=1)}
    for each in found:
        assert isinstance(each, RankedRecommendation)
        assert each.retrieval_rank == places[each.item_id]

    varied = ranked.recommend("u3", k=2, ranked=True, wishes=Wishes(diversity=1.0))
    assert varied[0].item_id == ranked.recommend("u3", k=1, ranked=True)[0].item_id
    assert len({each.item_id for each in varied}) == 2
    best = ranked.recommend("u3", k=2, ranked=True)
    assert diversity_of(ranked, varied) >= diversity_of(ranked, best)


def diversity_of(recommender: Recommender, found: Sequence[Recommendation]) -> float:
    """1 - mean cosine of contents within a list."""
    content = recommender.embed_items([each.item_id for each in found]).content
    assert content is not None
    cosines = content @ content.T
    return 1 - float(cosines[np.triu_indices(len(found), 1)].mean())


@pytest.mark.parametrize("kind", ["media", "shop"])
def test_users_ranked_together_are_as_each_alone(
    kind: str, ranked: Recommender, request: pytest.FixtureRequest
) -> None:
    """Whatever is beside them: longer histories, none at all, more candidates, other heads."""
    if kind == "shop":
        ranked = Recommender.load(request.getfixturevalue("shop_run"))
    retriever, stage = ranked.retriever, ranked.second_stage
    assert stage is not None
    users = [retriever.stored_user(row) for row in range(8)]
    users[3] = replace(users[3], history=users[3].history[:0], events=unknown_events(0))
    rng = np.random.default_rng(0)
    shortlists = []
    for asked, length in zip(users, (9, 3, 1, 6, 9, 2, 7, 4), strict=True):
        user = retriever.user_vectors([asked])[0]
        items = rng.permutation(len(retriever.items.item_ids))[:length]
        scores = torch.from_numpy(np.sort(rng.normal(size=length))[::-1].astype(np.float32))
        shortlists.append(Shortlist(asked, user, items, scores))
    together = stage.rank_together(shortlists)
    for shortlist, found in zip(shortlists, together, strict=True):
        [alone] = stage.rank_together([shortlist])
        np.testing.assert_array_equal(found.items, alone.items)
        np.testing.assert_array_equal(found.retrieval_rank, alone.retrieval_rank)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert found.heads.keys() == alone.heads.keys()
        for name, values in found.heads.items():
            assert values.shape == (len(shortlist.items),)
            np.testing.assert_allclose(values, alone.heads[name], atol=1e-5)
    if kind == "shop":
        assert all(each.heads for each in together)


def test_no_list_is_padded_to_more_than_twice_its_length() -> None:
    lengths = [100, 1000, 150, 3, 200, 201, 5, 0]
    groups = alike_in_length(lengths)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert [[lengths[place] for place in group] for group in groups] == [
        [0], [3, 5], [100, 150, 200], [201], [1000]
    ]  # fmt: skip
    assert alike_in_length([7]) == [[0]] and alike_in_length([]) == []


def test_use_is_what_training_saw(ranked: Recommender, ranked_run: Path) -> None:
    """A stored history asked in use scores as the same history among the cases of evaluation."""
    loaded = load_run(ranked_run)
    assert loaded.data is not None and loaded.split is not None
    stage = ranked.second_stage
    assert stage is not None
    cases = load_cases(loaded.data, loaded.split, "validation")
    frozen = freeze(loaded)
    asked = ask(frozen, cases, 6)
    found = rank_again(frozen, stage.inputs, stage.ranker, asked)
    history = [loaded.item_ids[row] for row in cases.history[0]]
    served = ranked.recommend(history=history, k=3, ranked=True)
    ids = [loaded.item_ids[row] for row in found.top_items[0]]
    seen = {loaded.item_ids[row] for row in cases.seen[0]}
    if seen == set(history):
        assert [each.item_id for each in served] == ids[:3]
    by_id = dict(zip(ids, found.top_scores[0].tolist(), strict=True))
    for each in served:
        if each.item_id in by_id:
            assert each.score == pytest.approx(by_id[each.item_id], abs=1e-5)


def test_evaluation_tells_what_it_adds(ranked_run: Path) -> None:
    loaded = load_run(ranked_run)
    assert loaded.data is not None and loaded.split is not None
    found = evaluate_ranker(loaded, load_cases(loaded.data, loaded.split, "validation"))
    metrics = json.loads((ranked_run / "ranker" / "metrics.json").read_text())
    assert found is not None and found["candidates"] == SMALL.candidates
    assert found["slices"].keys() == metrics["validation"].keys()
    for name, each in found["slices"].items():
        assert each["both"] == pytest.approx(metrics["validation"][name]["both"])


def test_whether_it_is_used_is_what_validation_said(ranked_run: Path, tmp_path: Path) -> None:
    run = copied(ranked_run, tmp_path)
    path = run / "ranker" / "config.json"
    for in_use in (True, False):
        path.write_text(json.dumps({**json.loads(path.read_text()), "in_use": in_use}))
        found = Recommender.load(run).recommend("u3", k=3)
        assert isinstance(found[0], RankedRecommendation) is in_use
    metrics = json.loads((run / "ranker" / "metrics.json").read_text())
    of_all = metrics["validation"]["all"]
    assert 0 <= of_all["recall"] <= 1
    difference = of_all["both"]["ndcg@10"] - of_all["retrieval"]["ndcg@10"]
    assert of_all["difference"] == pytest.approx(difference)
    assert metrics["in_use"] == (metrics["best_epoch"] > 0 and of_all["interval"][0] > 0)


def test_a_bundle_ranks_as_its_run(ranked: Recommender, ranked_run: Path, tmp_path: Path) -> None:
    export_run(ranked_run, tmp_path / "export", formats=("npy",), bundle=True)
    bundle = tmp_path / "export" / "bundle"
    served = Recommender.load(bundle)
    assert served.recommend("u3", k=5, ranked=True) == ranked.recommend("u3", k=5, ranked=True)
    with open(bundle / "ranker" / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointMismatch, match="ranker/model.safetensors: was changed"):
        Recommender.load(bundle)


def test_an_item_that_has_changed_is_shown_by_its_content_alone(ranked: Recommender) -> None:
    stage = ranked.second_stage
    assert stage is not None and stage.inputs.latents is not None
    items = np.array([[0, 1, 13]])  # the last is in no event
    read = stage.inputs.candidates(items, torch.zeros(1, 3))
    assert read.mask.all()
    content = stage.inputs.vectors.content
    assert content is not None
    other = content.clone()
    other[1] = content[2]
    vectors = replace(stage.inputs.vectors, content=other)
    changed = RankerInputs(
        stage.inputs.model, vectors, ranked.retriever.counts, stage.inputs.latents[:13]
    )
    read = changed.candidates(items, torch.zeros(1, 3))
    assert read.mask[0, :, 2:].any(1).tolist() == [True, False, False]
    assert read.mask[0, :, :2].all()


def test_a_candidate_shown_as_new_is_its_content(ranked: Recommender) -> None:
    stage = ranked.second_stage
    assert stage is not None
    items, scores = np.array([[0, 1]]), torch.tensor([[0.3, 0.2]])
    plain = stage.inputs.candidates(items, scores)
    read = stage.inputs.candidates(items, scores, torch.tensor([[True, False]]))
    vectors = stage.inputs.vectors
    assert vectors.content is not None
    torch.testing.assert_close(read.tokens[0, 0, 0], vectors.content[0])
    torch.testing.assert_close(plain.tokens[0, 0, 0], vectors.embedding[0])
    assert read.features[0, 0, 1:].tolist() == [0.0, 1.0]
    assert read.features[0, 0, 0] == plain.features[0, 0, 0]  # where retrieval puts it
    torch.testing.assert_close(read.tokens[0, 1], plain.tokens[0, 1])
    torch.testing.assert_close(read.tokens[0, 0, 1:], plain.tokens[0, 0, 1:])


def test_resumed_is_unbroken(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "unbroken").mkdir()
    unbroken = copied(tiny_run, tmp_path / "unbroken")
    train_ranker(unbroken, SMALL)
    run = copied(tiny_run, tmp_path)

    def stop(done: int, total: int, note: str) -> None:
        if done > total // 2:  # in the second of two epochs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_ranker(run, SMALL, progress=stop)
    assert not (run / "ranker").exists() and (run / ".ranker" / "last").is_dir()
    with pytest.raises(CheckpointMismatch, match=r"ranker\.num_blocks is 1, now 3"):
        train_ranker(run, SMALL.model_copy(update={"num_blocks": 3}), resume=True)
    train_ranker(run, SMALL, resume=True)
    assert not (run / ".ranker").exists()
    first, second = (load_file(each / "ranker" / "model.safetensors") for each in (run, unbroken))
    for name, each in first.items():
        torch.testing.assert_close(each, second[name], rtol=0, atol=0)
    with pytest.raises(CheckpointMismatch, match="the run has a ranker"):
        train_ranker(run, SMALL)


def test_what_cannot_be_used_is_refused(
    ranked_run: Path, ranked: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no second stage; run: mmrec train-ranker"):
        Recommender.load(tiny_run).recommend("u3", ranked=True)
    with pytest.raises(UserError, match="a query and the second stage are both asked for"):
        ranked.recommend("u3", query="red", ranked=True)
    with pytest.raises(UserError, match="ranked is False"):
        ranked.recommend("u3", ranked=False, calibrated=True)
    with pytest.raises(UserError, match=r"no probability can be told.*model\.heads"):
        ranked.recommend("u3", calibrated=True)
    run = copied(ranked_run, tmp_path)
    path = run / "ranker" / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "model_hash": "0" * 64}))
    with pytest.raises(CheckpointMismatch, match="was trained on the model 000000000000"):
        Recommender.load(run).recommend("u3", ranked=True)
    path.write_text(json.dumps(document))
    (run / "ranker" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointMismatch, match="train the ranker anew"):
        Recommender.load(run).recommend("u3", ranked=True)


def test_settings_are_checked(tiny_run_id: Path, tmp_path: Path) -> None:
    assert parse_ranker_config(["ranker.learning_rate=1e-3"]).learning_rate == 0.001
    with pytest.raises(ConfigError, match="did you mean 'candidates'"):
        parse_ranker_config(["ranker.candidate=5"])
    with pytest.raises(ConfigError, match=r"write ranker\.field=value"):
        parse_ranker_config(["training.seed=1"])
    with pytest.raises(UserError, match="must divide model.width of the run, 16"):
        train_ranker(copied(tiny_run_id, tmp_path), RankerConfig(num_heads=5))


def test_platt_scaling_mends_what_is_said_too_loudly() -> None:
    random = np.random.default_rng(0)
    honest = random.normal(-1, 1, 20_000)
    labels = (random.random(20_000) < 1 / (1 + np.exp(-honest))).astype(np.float64)
    found = calibrate(3 * honest + 1, labels, np.arange(20_000) // 4)
    assert found["slope"] == pytest.approx(1 / 3, rel=0.1)
    assert found["calibration_error_before"] > 0.05 > 0.02 > found["calibration_error"]
    parted = calibrate(np.repeat([-30.0, 30.0], 100), np.repeat([0.0, 1.0], 100), np.arange(200))
    sure = calibrated(torch.tensor([-30.0, 30.0]), parted["slope"], parted["intercept"])
    torch.testing.assert_close(sure, torch.tensor([1 / 102, 101 / 102]), atol=1e-3, rtol=0)
    assert refusal(labels) is None
    assert "20 of each are the least" in str(refusal(np.ones(100)))


@pytest.fixture(scope="module")
def shop_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two items shown, users take the one of their taste; the run has a head for it."""
    folder = tmp_path_factory.mktemp("ranked_shop")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    train(shop_config(max_epochs=6, evaluate_every=6), folder / "data", folder / "run")
    train_ranker(folder / "run", SMALL.model_copy(update={"max_epochs": 1}))
    return folder / "run"


def test_what_was_shown_is_told_from_what_was_taken(shop_run: Path) -> None:
    loaded = load_run(shop_run)
    examples = training_examples(loaded, most=10_000, seed=0)
    lists = lists_of(freeze(loaded), examples, k=4, shown=2)
    for row, each in enumerate(examples[:50]):
        labelled = lists.labels["click"][row]
        shown = set(lists.items[row][labelled == 0.0])
        assert shown == set(each.shown.tolist())
        assert lists.items[row][labelled == 1.0].tolist() == [each.item]
        if len(shown):  # what was shown competes, and what was met with it
            assert lists.items[row][lists.target[row]] == each.item
            assert lists.listed[row][labelled == 0.0].all()


def test_probabilities_are_told_where_something_was_shown(shop_run: Path) -> None:
    metrics = json.loads((shop_run / "ranker" / "metrics.json").read_text())
    head = metrics["heads"]["click"]
    assert head["ranker"]["auc"] > 0.8  # users of two tastes
    assert head["calibration"]["calibration_error"] < 0.15
    recommender = Recommender.load(shop_run)
    found = recommender.recommend("u0", k=12, calibrated=True)
    told = {each.item_id: each.heads["click"] for each in found}  # type: ignore[attr-defined]
    assert all(0 < each < 1 for each in told.values())
    mine = [value for item, value in told.items() if int(item[1:]) % 2 == 0]
    others = [value for item, value in told.items() if int(item[1:]) % 2 == 1]
    assert min(mine) > max(others)


def test_the_command_line_ranks(shop_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(shop_run), "--user", "u0", "--ranked", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert {"retrieval_rank", "heads"} <= set(items[0])
    assert main(["recommend", str(shop_run), "--user", "u0", "--calibrated"]) == 0
    assert "click" in capsys.readouterr().out.splitlines()[0]
    assert main(["train-ranker", str(shop_run)]) == 2
    assert "the run has a ranker" in capsys.readouterr().err


def write_interests(folder: Path, *, num_kinds: int, num_users: int) -> Path:
    """Users with six interests out of many: what is met next is of any one of them.

    One vector of eight numbers cannot point to six of forty kinds at once; a candidate that looks
    at the history finds whether its own kind is there.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    items = [
        {"id": f"i{number}", "title": f"thing {number}", "kind": f"k{number % num_kinds}"}
        for number in range(num_kinds * 6)
    ]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    log = []
    for user in range(num_users):
        kinds = random.choice(num_kinds, 6, replace=False)
        met = [kind + num_kinds * own for kind in kinds for own in random.permutation(6)[:4]]
        log += [(f"u{user}", f"i{item}", at) for at, item in enumerate(random.permutation(met))]
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_csv(folder / "log.csv")
    catalogue: dict[str, Any] = {
        "name": "interests",
        "kind": "shop",
        "repeats": "forbid",
        "items": {
            "table": "items.csv", "id": "id", "text": ["title"],
            "attributes": {"kind": {"type": "category"}},
        },
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "at"},
        "split": {"protocol": "leave_one_out"},
    }  # fmt: skip
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    return folder / "catalogue.yaml"


def test_it_finds_what_one_vector_cannot_say(tmp_path: Path) -> None:
    catalogue = write_interests(tmp_path / "source", num_kinds=40, num_users=300)
    prepare(catalogue, tmp_path / "source", tmp_path / "data", num_workers=1)
    config = parse_config(
        {
            "name": "interests",
            "data": {"max_history": 24},
            "encoders": {"attributes": {"kind": "fields"}},
            "model": {
                "item": "content", "width": 8, "temperature": 0.2,
                "fusion": {"kind": "mean", "num_heads": 2},
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0},
            },
            "training": {
                "max_epochs": 8, "batch_size": 32, "warmup_steps": 5, "learning_rate": 0.01,
                "precision": "fp32", "evaluate_every": 8,
            },
        }
    )  # fmt: skip
    train(config, tmp_path / "data", tmp_path / "run")
    settings = RankerConfig(
        candidates=100,
        lists=2000,
        num_blocks=1,
        num_heads=2,
        max_epochs=4,
        batch_size=32,
        learning_rate=0.005,
    )
    document = train_ranker(tmp_path / "run", settings)
    found = document["validation"]["all"]
    assert found["both"]["ndcg@10"] <= found["recall"]  # no ranker finds what retrieval missed
    assert found["both"]["ndcg@10"] > 1.2 * found["retrieval"]["ndcg@10"]
    assert found["interval"][0] > 0 and document["in_use"]
    ranked = Recommender.load(tmp_path / "run").recommend("u0", k=10)
    assert all(isinstance(each, RankedRecommendation) for each in ranked)
