"""The ablation: plans that name real settings, differences paired by user and seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.ablation.grid import Cell, Grid, gains, render_gains
from benchmarks.ablation.left_out import LEFT_OUT, losses, render_losses
from benchmarks.ablation.plan import COMPLETE, FIGURES, HERE, ROOT, Part, load_plan
from benchmarks.ablation.run import parse
from benchmarks.ablation.table import (
    item_groups,
    render,
    row_of,
    run_folder,
    values_of,
    write_results,
)
from benchmarks.simulated.source import FEWEST_EVENTS, WORLDS, draw_log, write_source
from data_prep.catalogue import load_catalogue
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import FusionConfig, change, load_config


@pytest.mark.parametrize("name", ["movielens-1m", "fusion"])
def test_every_part_changes_the_run_and_nothing_is_misspelt(name: str) -> None:
    plan = load_plan(HERE / f"{name}.yaml")
    base = load_config(ROOT / plan.config)
    whole, *parts = plan.parts
    assert whole.name == COMPLETE and not whole.settings
    complete = change(base, plan.settings_of(whole, 0), "complete")
    assert len(parts) > 10 and len({part.slug for part in parts}) == len(parts)
    for part in parts:
        assert change(base, plan.settings_of(part, 0), part.name) != complete


def write_ranks(out: Path, part: Part, seed: int, rank: dict[str, list[float]]) -> None:
    folder = run_folder(out, part, seed) / "run"
    folder.mkdir(parents=True)
    rows = [
        {"model": "mmrec", "user_id": f"u{user}", "item_id": "i", "slice": name, "rank": value}
        for name, values in rank.items()
        for user, value in enumerate(values)
    ]
    pl.DataFrame(rows).write_parquet(folder / "ranks-validation.parquet")


def test_differences_are_paired_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    whole, part = Part(COMPLETE, {}), Part("id part", {"model.item": "content"})
    slices = ("warm", "cold", "cold_among_cold")
    for seed in (0, 1, 2):
        write_ranks(tmp_path, whole, seed, dict.fromkeys(slices, [1.0, 3.0, 50.0]))
    for seed in (0, 2):
        write_ranks(tmp_path, part, seed, dict.fromkeys(slices, [1.0, 7.0 + seed, 50.0]))
    row = row_of(part, (0, 1, 2), tmp_path)
    assert row is not None and row["seeds"] == [0, 2]
    figure = row["figures"]["warm ndcg@10"]
    gain = [1 / np.log2(rank + 1) for rank in (3.0, 7.0, 9.0)]
    less = [(gain[1] - gain[0]) / 3, (gain[2] - gain[0]) / 3]
    assert figure["by_seed"] == pytest.approx(less)
    assert figure["difference"] == pytest.approx(np.mean(less))
    assert figure["low"] <= figure["difference"] <= figure["high"]
    assert row["figures"]["cold hr@10"]["difference"] == pytest.approx(0.0)
    assert row_of(Part("never run", {}), (0,), tmp_path) is None

    complete = row_of(whole, (0, 1, 2), tmp_path)
    assert complete is not None
    lines = render([complete, row]).splitlines()
    assert lines[0].count("|") == len(FIGURES) + 3
    assert "± .0000" in lines[2] and lines[3].startswith("| id part | 2 | .")
    assert f"(-{abs(np.mean(less)):.4f}".replace("0.", ".") in lines[3]


def test_the_grid_has_every_subset_of_the_media_under_every_fusion() -> None:
    plan = load_plan(HERE / "fusion.yaml")
    grid, base = plan.grid, load_config(ROOT / plan.config)
    assert grid is not None
    kinds = FusionConfig.model_fields["kind"].annotation
    assert set(grid.fusions) == set(kinds.__args__)  # type: ignore[union-attr]
    assert set(grid.modalities) == set(base.encoders)
    first, *others = grid.cells()
    # the complete model is the first cell, as it stands in the config
    assert first.modalities == grid.modalities and first.fusion == base.model.fusion.kind
    assert len(others) + 1 == 4 * len(grid.fusions) + 3 * len(grid.alone)
    parts = {part.name: part for part in plan.parts}
    for cell in others:
        config = change(base, plan.settings_of(parts[cell.name], 0), cell.name)
        assert set(config.encoders) == set(cell.modalities)
        assert config.model.fusion.kind == cell.fusion
        # encoders with random weights come first: what they draw must not depend on the others
        order = [name for name in base.encoders if name in cell.modalities]
        assert list(config.encoders) == order
    assert next(iter(base.encoders)) == "audio"


GRID = Grid(modalities=("text", "image"), fusions=("latents", "mean"), alone=("mean",))
WARM = (("warm", "ndcg@10", "warm NDCG@10"),)


def test_gains_are_over_the_best_modality_alone_paired_by_user_and_seed() -> None:
    random = np.random.default_rng(0)
    users = random.normal(0, 1, (2, 400))  # what seeds and users have in common
    shift = {"text, mean": 0.0, "image, mean": 0.1, "text + image, latents": 0.15,
             "text + image, mean": 0.05}  # fmt: skip
    noise = {name: 0.02 * random.normal(size=(2, 400)) for name in shift}

    def values(cell: Cell, slice_name: str, metric: str) -> np.ndarray:
        assert (slice_name, metric) == WARM[0][:2]
        return users + shift[cell.name] + noise[cell.name]

    found = gains(GRID, GRID.compared(), WARM, values)
    assert [(gain.fusion, gain.best_alone) for gain in found] == [
        ("latents", "image, mean"), ("mean", "image, mean"),
    ]  # fmt: skip
    latents, mean = found
    assert latents.difference == pytest.approx(0.05, abs=0.005)
    assert latents.low < latents.difference < latents.high < latents.low + 0.01
    assert latents.verdict == "improves" and mean.verdict == "harms"
    assert latents.document()["verdict"] == "improves" and len(latents.by_seed) == 2
    lines = render_gains(found, GRID, WARM).splitlines()
    assert lines[-1].startswith("| warm NDCG@10 | image, mean | +.05") and "harms" in lines[-1]
    # nothing is said before each modality has a run alone
    without = [cell for cell in GRID.compared() if cell.modalities != ("image",)]
    assert gains(GRID, without, WARM, values) == []


def test_a_gain_that_one_seed_denies_is_not_shown() -> None:
    by_seed = {"text + image, latents": (0.3, -0.01), "text + image, mean": (0.0, 0.0)}

    def values(cell: Cell, *_: str) -> np.ndarray:
        return np.repeat(np.array(by_seed.get(cell.name, (0.0, 0.0)))[:, None], 50, axis=1)

    latents, mean = gains(GRID, GRID.compared(), WARM, values)
    assert latents.low > 0 and latents.verdict == "not shown" and mean.verdict == "not shown"


def test_head_middle_and_tail_are_warm_targets_of_their_items(tmp_path: Path) -> None:
    part = Part(COMPLETE, {})
    folder = run_folder(tmp_path, part, 0) / "run"
    folder.mkdir(parents=True)
    rows = [("u0", "a", "warm", 1.0), ("u1", "b", "warm", 3.0), ("u2", "a", "warm", 30.0),
            ("u0", "c", "cold", 1.0)]  # fmt: skip
    pl.DataFrame(
        [("mmrec", *row) for row in rows],
        ["model", "user_id", "item_id", "slice", "rank"],
        orient="row",
    ).write_parquet(folder / "ranks-validation.parquet")
    groups = {"head": ["a", "c"], "tail": ["b"]}
    assert values_of(tmp_path, part, [0], "head", "hr@10", groups).tolist() == [[1.0, 0.0]]
    assert values_of(tmp_path, part, [0], "tail", "hr@10", groups).tolist() == [[1.0]]
    assert values_of(tmp_path, part, [0], "warm", "hr@10", groups).tolist() == [[1.0, 1.0, 0.0]]


def test_results_of_a_grid_have_deviations_and_the_test(tmp_path: Path) -> None:
    plan = load_plan(HERE / "fusion.yaml")
    plan = replace(plan, figures=plan.figures[3:])
    names = (COMPLETE, "image, mean", "text, mean", "audio, mean")
    parts = [part for part in plan.parts if part.name in names]
    for seed in (0, 1):
        for part in parts:
            rank = 1.0 + seed if part.name == COMPLETE else 4.0
            write_ranks(tmp_path, part, seed, {
                name: [rank, rank + 1, rank + 2] for name in ("warm", "cold", "cold_among_cold")
            })  # fmt: skip
    write_results(plan, parts, (0, 1, 2), tmp_path, {"tail": ["i"]})
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| text + image + audio, latents | 2 | ." in text and "±" in text
    assert "| tail NDCG@10 | text, mean | +" in text and text.count(": improves |") == 2
    # all are hits among ten
    assert "| cold among all HR@10 | text, mean | +.0000 (+.0000 to +.0000): not shown |" in text


def test_another_plan_has_results_of_its_own() -> None:
    assert parse([]).out == ROOT / "runs" / "ablation"
    assert parse(["--plan", str(HERE / "fusion.yaml")]).out == ROOT / "runs" / "ablation-fusion"


def make_stamps(folder: Path, num_items: int = 60) -> pl.DataFrame:
    """A table like that of the stamps, with a picture and a sound for everything."""
    for name in ("images", "sounds"):
        (folder / name).mkdir(parents=True)
    rows = [
        {
            "item_id": f"s{k}",
            "subcategory": f"{'abc'[k % 3]}/{'xy'[k // 3 % 2]}{'/cartoon' * (k % 4 == 0)}",
            "name_en": f"Thing {k}.",
            "image": f"images/{k}.jpg",
            "sound": f"sounds/{k}.ogg" if k % 10 else None,
            "sound_kind": ("effect" if k % 5 else "spoken-fr") if k % 10 else None,
        }
        for k in range(num_items)
    ]
    items = pl.DataFrame(rows)
    items.write_csv(folder / "items.csv")
    return items


def test_simulated_users_follow_their_tastes(tmp_path: Path) -> None:
    items = make_stamps(tmp_path)
    log = draw_log(items, WORLDS["stamps"].liking, num_users=300, events_per_user=12, seed=0)
    assert log.equals(
        draw_log(items, WORLDS["stamps"].liking, num_users=300, events_per_user=12, seed=0)
    )
    assert not log.equals(
        draw_log(items, WORLDS["stamps"].liking, num_users=300, events_per_user=12, seed=1)
    )
    assert log.select("user_id", "item_id").is_unique().all()
    lengths = log.group_by("user_id").len()["len"]
    assert lengths.min() >= FEWEST_EVENTS and lengths.mean() == pytest.approx(12, abs=0.5)
    topic = items.select("item_id", pl.col("subcategory").str.replace("/cartoon", ""))
    drawing = items.select("item_id", drawing=pl.col("subcategory").str.contains("cartoon"))
    events = log.join(topic, on="item_id").join(drawing, on="item_id")
    of_two = (
        events.group_by("user_id", "subcategory").len()
        .group_by("user_id").agg(pl.col("len").top_k(2).sum() / pl.col("len").sum())
    )["len"].mean()  # fmt: skip
    assert of_two > 0.7  # of six topics; by chance two hold about half
    share = events.group_by("user_id").agg(pl.col("drawing").mean())["drawing"]
    assert share.std() > 0.15  # by chance .12


def test_source_holds_media_and_log_and_is_written_once(tmp_path: Path) -> None:
    make_stamps(tmp_path / "stamps")
    (tmp_path / "stamps" / "images" / "0.jpg").write_bytes(b"picture")
    sizes = {"num_users": 20, "events_per_user": 10}
    out = write_source(tmp_path / "stamps", tmp_path / "out", **sizes)
    assert (out / "images" / "0.jpg").read_bytes() == b"picture"
    written = (out / "interactions.parquet").stat().st_mtime_ns
    write_source(tmp_path / "stamps", out, **sizes)
    assert (out / "interactions.parquet").stat().st_mtime_ns == written
    write_source(tmp_path / "stamps", out, **sizes, seed=1)
    assert (out / "interactions.parquet").stat().st_mtime_ns > written
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_plan_fits_the_real_stamps(shared_data: Path, tmp_path: Path) -> None:
    plan = load_plan(HERE / "fusion.yaml")
    assert plan.users is not None and plan.grid is not None
    stamps = shared_data / plan.source
    items = pl.read_csv(stamps / "items.csv", infer_schema=False)
    for path in [*items["image"], *items["sound"].drop_nulls()]:
        assert (stamps / path).is_file()
    items.write_csv(tmp_path / "items.csv")
    log = draw_log(items, WORLDS["stamps"].liking, **{**plan.users, "num_users": 100})
    log.write_parquet(tmp_path / "interactions.parquet")
    assert set(plan.grid.modalities) == set(load_catalogue(ROOT / plan.catalogue).modalities)
    names_only = ["items.image=[]", "items.audio=[]"]  # decoding all of them takes long
    prepare(ROOT / plan.catalogue, tmp_path, tmp_path / "data", overrides=names_only, num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    groups = item_groups(data, None)
    assert set(groups) == {"head", "middle", "tail"} and all(groups.values())
    assert len(groups["tail"]) > len(groups["head"])
    assert {"warm", "cold"} <= set(data.split(None).targets("validation")["slice"])


def write_left_out(out: Path, seed: int, asked: dict[str, float], trained: float) -> None:
    """A run asked without each modality, and one a pair of modalities trained alone."""
    whole = run_folder(out, Part(COMPLETE, {}), seed)
    whole.mkdir(parents=True)
    slices = ("warm", "cold_among_cold")
    document = {name: dict.fromkeys(slices, value) for name, value in asked.items()}
    (whole / LEFT_OUT).write_text(json.dumps(document), encoding="utf-8")
    for rest in ("image", "text"):
        folder = run_folder(out, Part(f"{rest}, latents", {}), seed) / "run"
        folder.mkdir(parents=True)
        ours = {"models": {"mmrec": {name: {"ndcg@10": trained} for name in slices}}}
        (folder / "metrics-validation.json").write_text(json.dumps(ours), encoding="utf-8")


def test_a_loss_is_what_is_short_of_a_model_that_never_had_the_modality(tmp_path: Path) -> None:
    grid = Grid(("text", "image"), ("latents",), ("latents",))
    assert losses(grid, (0, 1), tmp_path) == []
    for seed in (0, 1):
        asked = {"all media": 0.4, "without text": 0.18 + 0.01 * seed, "without image": 0.22}
        write_left_out(tmp_path, seed, asked, trained=0.2)
    found = losses(grid, (0, 1, 2), tmp_path)
    assert [(loss.modality, loss.slice) for loss in found] == [
        ("text", "warm"), ("text", "cold_among_cold"),
        ("image", "warm"), ("image", "cold_among_cold"),
    ]  # fmt: skip
    text, image = found[0], found[2]
    assert text.cost == pytest.approx(0.075) and text.by_seed == pytest.approx((0.1, 0.05))
    assert image.cost == pytest.approx(-0.1) and image.whole == pytest.approx(0.4)
    line = render_losses(found).splitlines()[4]
    assert line == "| text | warm | .4000 | .1850 | .2000 | +7.5% (+5.0% to +10.0%) |"
