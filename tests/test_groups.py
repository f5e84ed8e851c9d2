"""Accuracy by attribute: groups equal to a slow loop, the worst one, and names that are none."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import yaml

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.errors import ConfigError
from mmrec.evaluation.groups import (
    MOST_GROUPS,
    OTHERS,
    UNKNOWN,
    attribute_breakdowns,
    worst_group,
)

NUM_USERS, NUM_ITEMS = 60, 20
GENDER = [("F", "M", None)[user % 3] for user in range(NUM_USERS)]
TAGS = [{0: "a", 1: "a|b", 2: ""}[item % 3] for item in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("groups")
    items = {"id": [f"i{k}" for k in range(NUM_ITEMS)], "title": ["thing"] * NUM_ITEMS}
    years = [1990 + k for k in range(NUM_ITEMS)]
    makers = [f"maker {k}" for k in range(NUM_ITEMS)]
    pl.DataFrame({**items, "tags": TAGS, "year": years, "maker": makers}).write_csv(
        folder / "items.csv"
    )
    users = pl.DataFrame({"id": [f"u{k:02}" for k in range(NUM_USERS)], "gender": GENDER})
    users.write_csv(folder / "users.csv")
    log = [(f"u{u:02}", f"i{(u + k) % NUM_ITEMS}", k) for u in range(NUM_USERS) for k in range(6)]
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_csv(folder / "log.csv")
    catalogue = {
        "name": "groups",
        "kind": "shop",
        "items": {
            "table": "items.csv", "id": "id", "text": ["title"],
            "attributes": {
                "tags": {"type": "set", "separator": "|"},
                "year": {"type": "number"},
                "maker": {"type": "category"},
            },
        },
        "users": {
            "table": "users.csv", "id": "id", "attributes": {"gender": {"type": "category"}},
        },
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "at"},
    }  # fmt: skip
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(folder / "catalogue.yaml", folder, folder.with_suffix(".data"), num_workers=1)
    return PreparedData.open(folder.with_suffix(".data"))


def make_ranks(data: PreparedData) -> pl.DataFrame:
    """A target a user; women find theirs at the first place, men at the fourth."""
    rows = []
    for user, user_id in enumerate(data.user_ids):
        gender = GENDER[int(user_id[1:])]
        rank = {"F": 1.0, "M": 4.0, None: 50.0}[gender]
        rows.append(("mmrec", user, user % NUM_ITEMS, "warm", rank))
        rows.append(("ease", user, user % NUM_ITEMS, "warm", 1.0 + user % 4))
        rows.append(("mmrec", user, user % NUM_ITEMS, "cold_among_cold", 1.0))
    names = ["model", "user_index", "item_index", "slice", "rank"]
    return pl.DataFrame(rows, names, orient="row")


def test_each_group_has_its_own_users(data: PreparedData) -> None:
    (found,) = attribute_breakdowns(make_ranks(data), data, ["users.gender"])
    assert found.by == "users.gender" and found.slice == "all"
    assert found.groups == {
        "F": "F: 20 users", "M": "M: 20 users", UNKNOWN: f"{UNKNOWN}: 20 users",
    }  # fmt: skip
    ours = found.models["mmrec"]
    assert ours["F"] == {"num_users": 20, "num_targets": 20, "hr@10": 1.0, "ndcg@10": 1.0}
    assert ours["M"]["ndcg@10"] == pytest.approx(1 / np.log2(5))
    assert ours[UNKNOWN]["ndcg@10"] == 0


def test_an_item_of_two_tags_is_in_both(data: PreparedData) -> None:
    ranks = make_ranks(data)
    (found,) = attribute_breakdowns(ranks, data, ["items.tags"])
    tags = {int(item_id[1:]): TAGS[int(item_id[1:])] for item_id in data.items.item_ids}
    of_row = [tags[int(item_id[1:])] for item_id in data.items.item_ids]
    for group, inside in {
        "a": [text.startswith("a") for text in of_row],
        "b": ["b" in text for text in of_row],
        UNKNOWN: [text == "" for text in of_row],
    }.items():
        own = ranks.filter(
            (pl.col("model") == "ease") & pl.Series([inside[k] for k in ranks["item_index"]])
        )
        gains = 1 / np.log2(1 + own["rank"].to_numpy())
        assert found.models["ease"][group]["num_targets"] == len(own)
        assert found.models["ease"][group]["ndcg@10"] == pytest.approx(gains.mean())


def test_rare_values_are_one_group(data: PreparedData) -> None:
    (found,) = attribute_breakdowns(make_ranks(data), data, ["items.maker"])
    assert len(found.groups) == MOST_GROUPS + 1
    assert found.groups[OTHERS] == f"{OTHERS}: {NUM_ITEMS - MOST_GROUPS} items"


def test_the_worst_is_not_one_that_chance_made() -> None:
    def group(users: int, ndcg: float) -> dict[str, float]:
        return {"num_users": users, "num_targets": users, "hr@10": ndcg, "ndcg@10": ndcg}

    models = {"mmrec": {"F": group(30, 0.2), "M": group(40, 0.1), "other": group(3, 0.0)}}
    assert worst_group({"models": models}, "mmrec") == "M"
    assert worst_group({"models": {"mmrec": {"F": group(30, 0.2)}}}, "mmrec") is None
    assert worst_group({"models": models}, "ease") is None


@pytest.mark.parametrize("name", ["users.gendr", "items.year", "gender"])
def test_what_is_no_group_is_refused(data: PreparedData, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attribute_breakdowns(make_ranks(data), data, [name])
    text = str(caught.value)
    assert f"'{name}'" in text and "items.maker, items.tags, users.gender" in text
