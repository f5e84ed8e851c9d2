"""Taste = history x profile x context: each of the three is used, and a missing one is no cliff.

Items lie in cells of (taste, region, device), two in each. A user has one taste and one region,
which his profile names. What he views shows his taste alone: region and device of it are chance.
What he buys is asked for: it is of his taste, his region and the device of the request. Users who
are asked about have bought nothing before, so that no source tells what another does.

    known of (taste, region, device)   items in question   best NDCG@10
    all three                                          2            .82
    without the device, or the region                  6            .55
    without the taste                                  8            .49
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import polars as pl
import pytest
import yaml

from data_prep.prepare import prepare
from mmrec.config import Config, parse_config
from mmrec.data.ragged import Ragged
from mmrec.data.told import unknown_events
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.protocol import Cases, load_cases
from mmrec.loaded import LoadedRun, load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train
from mmrec.training.validate import case_vectors, rank

pytestmark = pytest.mark.usefixtures("restored_torch")

TASTES, REGIONS, DEVICES, CELL = 4, 3, 3, 2
VIEWS, BUYS = 3, 3  # of a user of training; of others, one purchase behind the views
START, DAY_S = 1_700_438_400, 86_400
VALIDATION_DAY, TEST_DAY = VIEWS + BUYS, VIEWS + BUYS + 1


def write_world(folder: Path, *, num_users: int, seed: int) -> Path:
    """A prepared log: of ten users seven train, one is for validation, two are for the test."""
    source = folder / "source"
    source.mkdir(parents=True)
    random = np.random.default_rng(seed)
    log, users = [], []
    for user in range(num_users):
        taste, region = int(random.integers(TASTES)), int(random.integers(REGIONS))
        users.append({"user": f"u{user}", "region": ("north", "south", "east")[region]})
        buys = random.permutation([False] * VIEWS + [True] * BUYS).tolist()
        days = list(range(VIEWS + BUYS))
        if user % 10 >= 7:
            buys = [False] * VIEWS + [True]
            days = [*range(VIEWS), VALIDATION_DAY if user % 10 == 7 else TEST_DAY]
        for is_bought, day in zip(buys, days, strict=True):
            device = int(random.integers(DEVICES))
            place = (region, device) if is_bought else random.integers(3, size=2).tolist()
            cell = (taste * REGIONS + place[0]) * DEVICES + place[1]
            item = cell * CELL + int(random.integers(CELL))
            what = "buy" if is_bought else "view"
            told = (what, ("phone", "desktop", "watch")[device])
            log.append((f"u{user}", item, START + DAY_S * day, *told))
    names = ["user", "item", "at", "what", "device"]
    pl.DataFrame(log, names, orient="row").write_csv(source / "log.csv")
    pl.DataFrame(users).write_csv(source / "users.csv")
    number = np.arange(TASTES * REGIONS * DEVICES * CELL)
    pl.DataFrame({"item": number, "title": [f"thing {each}" for each in number]}).write_csv(
        source / "items.csv"
    )
    catalogue = {
        "name": "three-sources",
        "kind": "shop",
        "repeats": "allow",
        "items": {"table": "items.csv", "id": "item", "text": ["title"]},
        "users": {
            "table": "users.csv", "id": "user", "attributes": {"region": {"type": "category"}},
        },
        "interactions": {
            "table": "log.csv", "user": "user", "item": "item", "time": "at", "context": ["device"],
            "event": "what", "targets": {"events": ["buy"]},
        },
        "split": {
            "protocol": "time", "min_events": 2,
            "validation_time": START + DAY_S * VALIDATION_DAY,
            "test_time": START + DAY_S * TEST_DAY,
        },
    }  # fmt: skip
    (source / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(source / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder / "data"


def configure(*, profile: bool = True, context: bool = True, seed: int, epochs: int) -> Config:
    """Ids under the user model, with the sources that are read."""
    return parse_config(
        {
            "name": "three-sources",
            "data": {"max_history": 8},
            "model": {
                "item": "id",
                "width": 32,
                "popularity": False,
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.1, "start": True},
                "signals": {"users": profile, "context": context},
            },
            "training": {
                "seed": seed,
                "max_epochs": epochs,
                "batch_size": 64,
                "learning_rate": 5e-3,
                "warmup_steps": 20,
                "precision": "fp32",
                "evaluate_every": epochs,
            },
        }
    )


def without_history(cases: Cases) -> Cases:
    assert cases.told is not None
    nothing = unknown_events(0, list(cases.told.events.context))
    told = replace(cases.told, events=nothing)
    return replace(cases, history=Ragged.from_rows([[]] * len(cases)), told=told)


def without_profile(cases: Cases) -> Cases:
    assert cases.told is not None
    return replace(cases, told=replace(cases.told, attributes=[{}] * len(cases)))


def without_context(cases: Cases) -> Cases:
    assert cases.told is not None
    silent = cases.told.requests.without(np.ones(len(cases), np.bool_))
    return replace(cases, told=replace(cases.told, requests=silent))


def ndcg(loaded: LoadedRun, cases: Cases) -> float:
    """Mean NDCG@10 over cases, of finite vectors."""
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    assert bool(users.isfinite().all())
    found = case_metrics(rank(cases, users, items).rank, cases.targets.offsets, ks=(10,))
    return float(found["ndcg@10"].mean())


def cases_of_test(loaded: LoadedRun) -> Cases:
    assert loaded.data is not None and loaded.split is not None
    return load_cases(loaded.data, loaded.split, "test")


def asked_without(run: Path) -> dict[str, float]:
    """NDCG@10 of a run that reads all three, told of all and of fewer."""
    loaded = load_run(run)
    cases = cases_of_test(loaded)
    return {
        "all": ndcg(loaded, cases),
        "history missing": ndcg(loaded, without_history(cases)),
        "profile missing": ndcg(loaded, without_profile(cases)),
        "context missing": ndcg(loaded, without_context(cases)),
        "nothing known": ndcg(loaded, without_history(without_profile(without_context(cases)))),
    }


def shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items())


def test_each_source_is_used_and_a_missing_one_is_no_cliff(tmp_path: Path) -> None:
    data = write_world(tmp_path, num_users=600, seed=0)
    train(configure(seed=0, epochs=12), data, tmp_path / "run")
    found = asked_without(tmp_path / "run")
    print(shown(found))
    for missing in ("history", "profile", "context"):
        assert found["nothing known"] < found[f"{missing} missing"] < found["all"] - 0.05, found
    recommender = Recommender.load(tmp_path / "run")
    context = {"device": "phone"}
    for attributes in ({"region": "north"}, {"region": "the moon"}, {}):
        for known in (context, {"device": "fridge"}, {}):
            listed = recommender.recommend(history=["3"], attributes=attributes, context=known)
            assert len(listed) == 10 and all(np.isfinite(each.score) for each in listed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_three_are_best_beyond_three_deviations(tmp_path: Path) -> None:
    """Of the paired differences over three seeds; what is missing lies between with and without.

    A run without profiles or context trains without. There is no user model without histories:
    what it is worth without is what the run says to users whose history it is not told, as it
    learnt from first events too.
    """
    found = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        data = write_world(folder, num_users=2000, seed=seed)
        train(configure(seed=seed, epochs=12), data, folder / "all")
        figures = asked_without(folder / "all")
        for source in ("profile", "context"):
            run = folder / source
            train(configure(seed=seed, epochs=12, **{source: False}), data, run)
            loaded = load_run(run)
            figures[f"no {source}"] = ndcg(loaded, cases_of_test(loaded))
        print(f"seed {seed}: {shown(figures)}")
        found.append(figures)
    for lacking in ("history missing", "no profile", "no context"):
        lost = [each["all"] - each[lacking] for each in found]
        print(f"{lacking} costs {mean(lost):.4f}, deviation {stdev(lost):.4f}")
        assert mean(lost) > 3 * stdev(lost), lost
    for source in ("profile", "context"):
        low, middle, high = (
            mean(each[name] for each in found)
            for name in (f"no {source}", f"{source} missing", "all")
        )
        print(f"{source}: without {low:.4f}, missing {middle:.4f}, with {high:.4f}")
        assert low <= middle < high, found
