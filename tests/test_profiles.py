"""Profiles of users (age, gender, occupation, zip): read, absent, of words never seen, and off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from made_tables import things, write_tables

from data_prep.catalogue import Catalogue, load_catalogue
from data_prep.interactions import read_interactions, read_users
from data_prep.prepare import prepare
from encoders.attributes import describe_fields
from fusion.signals import Facts
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.signals import SignalReader, SignalSpec
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "catalogues"
NUM_ITEMS, NUM_USERS = 12, 24
WITHOUT_ROW = "u23"  # in the log, not in the table of users
# as GroupLens has them in MovieLens-100K's u.user
ATTRIBUTES: dict[str, Any] = {
    "age": {"type": "number"},
    "gender": {"type": "category"},
    "occupation": {"type": "category"},
    "zip": {"type": "category"},
}
OTHER: dict[str, Any] = {"age": 71, "gender": "F", "occupation": "poet", "zip": "00000"}


def write_data(folder: Path, changed: str | None = None) -> Path:
    """A prepared log with profiles, of which one attribute may be another for everybody."""
    source = folder / "source"
    random = np.random.default_rng(0)
    log = [
        (f"u{user}", f"i{item}", step)
        for user in range(NUM_USERS)
        for step, item in enumerate(random.permutation(NUM_ITEMS)[: 5 + user % 4])
    ]
    users = []
    for user in range(NUM_USERS - 1):
        profile = {
            "age": 20 + user,
            "gender": "MF"[user % 2],
            "occupation": ["student", "lawyer", "writer"][user % 3],
            "zip": ["02136", "85711"][user % 2],
        }
        if changed is not None and user % 4 == 0:
            profile[changed] = OTHER[changed]
        users.append({"user": f"u{user}", **profile})
    catalogue = write_tables(
        source,
        items=things(NUM_ITEMS),
        log=pl.DataFrame(log, ["user", "item", "at"], orient="row"),
        users=pl.DataFrame(users),
        catalogue={
            "name": "profiles",
            "kind": "video",
            "repeats": "forbid",
            "users": {"attributes": ATTRIBUTES},
            "interactions": {"order": "at"},
        },
    )
    prepare(catalogue, source, folder / "data", num_workers=1)
    return folder / "data"


def profile_config(read: bool | list[str]) -> Config:
    return parse_config(
        {
            "name": "profiles",
            "data": {"max_history": 8},
            "model": {
                "item": "id",
                "width": 16,
                "history": {"num_blocks": 1, "num_heads": 2, "start": True},
                "signals": {"users": read},
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 8,
                "warmup_steps": 1,
                "learning_rate": 0.02,
                "precision": "fp32",
                "evaluate_every": 2,
            },
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By attribute, the same data in which every fourth user has another value of it."""
    return {
        name: write_data(tmp_path_factory.mktemp(f"profiles_{name}"), name) for name in ATTRIBUTES
    }


@pytest.fixture(scope="module")
def recommender(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    run = tmp_path_factory.mktemp("profiles_run") / "run"
    train(profile_config(True), data, run)
    return Recommender.load(run)


def vector_of(recommender: Recommender, attributes: dict[str, Any] | None) -> torch.Tensor:
    """The unit vector of a user with two events and this profile."""
    asked = recommender.retriever.given_user(["i1", "i2"], attributes=attributes)
    return recommender.retriever.user_vectors([asked])[0]


@pytest.mark.parametrize("name", ["gender", "occupation", "zip"])
def test_words_never_seen_share_a_place_that_is_not_that_of_none(
    recommender: Recommender, name: str
) -> None:
    known = {"age": 30, "gender": "M", "occupation": "writer", "zip": "85711"}
    one, other = (vector_of(recommender, {**known, name: word}) for word in ("astronaut", "00000"))
    none = vector_of(recommender, {key: value for key, value in known.items() if key != name})
    assert torch.equal(one, other)
    for vector in (none, vector_of(recommender, known)):
        assert not torch.equal(one, vector)
    for vector in (one, none):
        assert float(vector.norm()) == pytest.approx(1, abs=1e-5)


def test_a_user_without_a_profile_is_one_of_whom_nothing_is_known(
    recommender: Recommender,
) -> None:
    retriever = recommender.retriever
    rows, _ = retriever.stored_users([WITHOUT_ROW, "u22"])
    without, having = (retriever.users.attributes(row) for row in rows)
    assert {key: value for key, value in without.items() if value is not None} == {}
    assert set(having) == set(ATTRIBUTES)
    nothing = vector_of(recommender, None)
    assert bool(nothing.isfinite().all()) and float(nothing.norm()) == pytest.approx(1, abs=1e-5)
    for profile in ({}, dict.fromkeys(ATTRIBUTES), dict(without)):
        assert torch.equal(vector_of(recommender, profile), nothing)
    assert not torch.equal(vector_of(recommender, dict(having)), nothing)
    assert len(recommender.recommend(WITHOUT_ROW, k=3)) == 3


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_an_attribute_that_is_switched_off_changes_nothing(
    data: Path, changed: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Bit for bit, in training and in use; one that is read changes what is learnt."""
    others = [each for each in ATTRIBUTES if each != name]
    states = {}
    for read in (others, [*ATTRIBUTES]):
        found = []
        for place, folder in enumerate((data, changed[name])):
            run = tmp_path / f"{len(read)}-{place}"
            train(profile_config(read), folder, run)
            found.append(load_run(run).model.state_dict())
        states[len(read)] = all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert states == {len(others): True, len(ATTRIBUTES): False}
    loaded = Recommender.load(tmp_path / f"{len(others)}-0")
    known = {"age": 30, "gender": "M", "occupation": "writer", "zip": "85711"}
    vectors = [vector_of(loaded, each) for each in (known, {**known, name: OTHER[name]})]
    assert torch.equal(*vectors)
    assert not torch.equal(vectors[0], vector_of(loaded, {}))


def test_all_profiles_can_be_switched_off(data: Path) -> None:
    assembly = assemble(profile_config(False), data)
    assert assembly.model.reader is None
    (batch, *_) = batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)
    assert batch.signals is None


# --- real data ---------------------------------------------------------------------------------


def facts_of(users: pl.DataFrame, spec: Catalogue) -> tuple[SignalSpec, Facts]:
    """What a model is told of everybody: a row a user and attribute."""
    assert spec.users is not None
    types = {name: each.type for name, each in spec.users.attributes.items()}
    records = users.drop("user_id").to_dicts()
    signals = SignalSpec(users=tuple(describe_fields(types, records)))
    return signals, SignalReader(signals).users(records)


def shares(facts: Facts, num_users: int) -> np.ndarray:
    """(U, F) weight of everything told of a field, 1 where it is whole."""
    return facts.weights.sum(1).view(num_users, -1).numpy()


@pytest.mark.realdata
def test_profiles_of_movielens_1m(shared_data: Path) -> None:
    spec = load_catalogue(CONFIGS / "movielens-1m.yaml")
    users = read_users(spec, shared_data / "ml-1m")
    assert users is not None and len(users) == 6040 and users.null_count().row(0) == (0,) * 5
    assert users.row(0) == ("1", "F", "1", "10", "48067")
    assert dict(users["gender"].value_counts().iter_rows()) == {"F": 1709, "M": 4331}
    assert (users["age"].n_unique(), users["occupation"].n_unique()) == (7, 21)
    signals, facts = facts_of(users, spec)
    assert [field.num_columns for field in signals.users] == [3, 8, 22, 257]
    np.testing.assert_allclose(shares(facts, len(users)), 1)
    # zip codes are many: what is beyond the commonest 256 shares one place
    first = sum(field.num_columns + 1 for field in signals.users[:3])
    zips = facts.columns.view(len(users), 4, -1)[:, 3, 0] - first
    common = users["zip"].is_in(list(signals.users[3].values)).to_numpy()
    assert 0 < common.sum() < len(users)
    assert (zips.numpy()[~common] == 256).all() and (zips.numpy()[common] < 256).all()


def read_u_user(raw: Path, folder: Path) -> pl.DataFrame:
    """GroupLens's table (no header, bars) as the catalogue file says it is made a users.csv."""
    header = "user_id|age|gender|occupation|zip\n"
    table = (header + raw.read_text(encoding="latin-1")).replace("|", ",")
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k" / "users.csv").write_text(table, encoding="utf-8")
    section = yaml.safe_dump(
        {"table": "ml-100k/users.csv", "id": "user_id", "attributes": ATTRIBUTES},
        default_flow_style=True,
        width=1000,
    )
    spec = load_catalogue(CONFIGS / "movielens-100k.yaml", [f"users={section}"])
    users = read_users(spec, folder)
    assert users is not None
    signals, facts = facts_of(users, spec)
    assert [field.name for field in signals.users] == [*ATTRIBUTES]
    np.testing.assert_allclose(shares(facts, len(users)), 1)
    return users


def test_a_table_like_that_of_movielens_100k_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "u.user"
    raw.write_text("1|24|M|technician|85711\n2|53|F|other|02136\n3|23|M|writer|T8H1N\n")
    assert read_u_user(raw, tmp_path).rows() == [
        ("1", 24.0, "M", "technician", "85711"),
        ("2", 53.0, "F", "other", "02136"),
        ("3", 23.0, "M", "writer", "T8H1N"),
    ]


@pytest.mark.realdata
def test_profiles_of_movielens_100k(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "ml-100k" / "u.user"
    if not raw.is_file():
        pytest.skip("ml-100k lies there without its table of users, u.user")
    log = read_interactions(load_catalogue(CONFIGS / "movielens-100k.yaml"), shared_data)
    users = read_u_user(raw, tmp_path)
    assert len(users) == 943 and set(users["user_id"]) == set(log["user_id"])
    assert users.row(0) == ("1", 24.0, "M", "technician", "85711")
    assert dict(users["gender"].value_counts().iter_rows()) == {"F": 273, "M": 670}
    assert users["occupation"].n_unique() == 21 and (users["occupation"] == "student").sum() == 196
    assert (users["age"].min(), users["age"].max()) == (7, 73)
