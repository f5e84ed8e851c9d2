"""Simulated users of real catalogues: tastes follow the columns, the log follows the tastes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.ablation.plan import HERE, ROOT, load_plan
from benchmarks.simulated import tastes
from benchmarks.simulated.source import GAP_S, WORLDS, draw_log, main, write_source
from data_prep.prepare import prepare
from data_prep.shards import PreparedData


def made_items(num_items: int = 120) -> pl.DataFrame:
    """A table with what every world reads."""
    k = np.arange(num_items)
    return pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in k],
            "style": [f"style {n % 5}" for n in k],
            "package": [f"package {n % 7}" for n in k],
            "track_length_s": [str(20 + n) for n in k],
            "body_part": [f"part {n % 5}" for n in k],
            "equipment": [f"tool {n % 7}" for n in k],
            "secondary": [f"muscle {n % 4}|other" if n % 9 else None for n in k],
            "articleType": [f"kind {n % 5}" for n in k],
            "baseColour": [f"colour {n % 7}" for n in k],
        }
    )


@pytest.mark.parametrize(
    ("world", "column", "favourites"),
    [("music", "style", 2), ("video", "body_part", 2), ("shop", "articleType", 2),
     ("music", "package", 1), ("video", "equipment", 1), ("shop", "baseColour", 1)],
)  # fmt: skip
def test_users_like_what_their_tastes_say(world: str, column: str, favourites: int) -> None:
    items = tastes.with_prices(made_items(), np.random.default_rng(1))
    sizes = {"num_users": 200, "events_per_user": 12, "seed": 0}
    log = draw_log(items, WORLDS[world].liking, **sizes)
    assert log.equals(draw_log(items, WORLDS[world].liking, **sizes))
    assert log.select("user_id", "item_id").is_unique().all()
    met = log.join(items.select("item_id", column), on="item_id")
    share, by_chance = (
        events.group_by("user_id", column).len().group_by("user_id")
        .agg(pl.col("len").top_k(favourites).sum() / pl.col("len").sum())["len"].mean()
        for events in (met, met.with_columns(pl.col(column).shuffle(seed=0)))
    )  # fmt: skip
    assert share > by_chance + 0.05


def test_a_favourite_is_as_common_as_its_value() -> None:
    values = ["common"] * 90 + ["rare"] * 10
    found = tastes.favourites(values, np.random.default_rng(0), 2000, 1)
    assert found.shape == (2000, 100)
    assert found[:, 0].mean() == pytest.approx(0.9, abs=0.03)
    assert (found[:, 0] != found[:, -1]).all()


def test_each_user_starts_at_a_time_of_his_own_and_time_goes_on() -> None:
    log = draw_log(made_items(), tastes.music, num_users=50, events_per_user=12, seed=0)
    gaps = log.with_columns(pl.col("time").diff().over("user_id"))["time"].drop_nulls()
    assert gaps.min() >= 0 and gaps.mean() == pytest.approx(GAP_S, rel=0.2)
    assert log.group_by("user_id").agg(pl.col("time").min())["time"].n_unique() > 45


def test_what_is_liked_best_is_bought() -> None:
    items = tastes.with_prices(made_items(), np.random.default_rng(1))
    sizes = {"num_users": 300, "events_per_user": 12, "seed": 0}
    log = draw_log(items, tastes.shop, buys=True, **sizes)
    plain = draw_log(items, tastes.shop, **sizes)
    assert log.drop("action").equals(plain)
    likes = tastes.shop(items, np.random.default_rng(0), 300)  # the first that is drawn
    row = {name: k for k, name in enumerate(items["item_id"])}
    user = log["user_id"].str.strip_prefix("u").cast(pl.Int64).to_numpy()
    liked = likes[user, [row[name] for name in log["item_id"]]]
    bought = (log["action"] == "purchase").to_numpy()
    assert bought[liked >= 7].mean() > 0.9 and bought[liked <= 2].mean() < 0.2
    assert set(log["action"]) == {"view", "purchase"}


def test_prices_have_a_level_for_each_kind() -> None:
    items = tastes.with_prices(made_items(), np.random.default_rng(0))
    assert items["price"].min() > 0
    by_kind = items.group_by("articleType").agg(pl.col("price").log().mean())["price"]
    within = items.select(pl.col("price").log().std().over("articleType"))["price"]
    assert by_kind.std() > 0.2 and within.mean() == pytest.approx(tastes.PRICE_SPREAD, rel=0.3)


def test_another_world_is_written_anew_and_only_rows_that_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real" / "audio").mkdir(parents=True)
    items = made_items().rename({"item_id": "track_id"})
    parts = pl.Series("part", ["0", "1"] * (len(items) // 2))
    items.with_columns(parts).write_csv(tmp_path / "real" / "clips.csv")
    sizes = ["--users", "20", "--events", "10"]
    folders = ["--source", str(tmp_path / "real"), "--out", str(tmp_path / "out")]
    assert main(["music", *folders, *sizes]) == 0
    assert "20 simulated users" in capsys.readouterr().out
    table = pl.read_csv(tmp_path / "out" / "clips.csv", infer_schema=False)
    log = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    new = pl.read_csv(tmp_path / "out" / "new.csv", infer_schema=False)
    assert new["track_id"].to_list() == [f"i{k}" for k in range(100, 120, 2)]
    assert len(table) == 50 and not table["track_id"].is_in(new["track_id"].to_list()).any()
    assert table["part"].unique().to_list() == ["0"]
    assert log["item_id"].is_in(table["track_id"].to_list()).all()
    assert main(["shop", *folders, *sizes]) == 2
    assert "no items.parquet there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["music", "video", "shop"])
def test_plan_fits_the_real_folder(name: str, shared_data: Path, tmp_path: Path) -> None:
    plan = load_plan(HERE / f"{name}.yaml")
    assert plan.users is not None and plan.grid is not None and plan.left_out
    source = write_source(
        shared_data / plan.source, tmp_path / "source", **{**plan.users, "num_users": 100}
    )
    no_media = ["items.image=[]", "items.audio=[]", "items.video=[]"]  # decoding takes long
    prepare(ROOT / plan.catalogue, source, tmp_path / "data", overrides=no_media, num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    assert {"text", "attributes"} <= set(plan.grid.modalities)
    assert {"warm", "cold"} <= set(data.split(None).targets("validation")["slice"])
