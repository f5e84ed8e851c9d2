"""The table of shares and models: real settings, PureSVD as numpy has it, paired figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.sparsity import run as sparsity
from benchmarks.sparsity.run import (
    CONFIG,
    FACTORS,
    MODELS,
    ROWS,
    SHARES,
    VARIANTS,
    factor_scorer,
    factorise,
    folder_of_run,
    render,
    rows_of,
    run_one,
    settings_of,
)
from data_prep.shards import PreparedData
from mmrec.config import change, load_config
from mmrec.data.thinning import open_split
from mmrec.evaluation.protocol import load_cases

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> PreparedData:
    return PreparedData.open(tiny_data)


def test_every_run_has_settings_of_its_own_and_none_is_misspelt() -> None:
    base = load_config(CONFIG)
    configs = [
        change(base, {**settings_of(share, name), **changes}, name)
        for share in SHARES
        for name in MODELS
        for changes in VARIANTS.values()
    ]
    assert len({each.model_dump_json() for each in configs}) == 2 * len(SHARES) * len(MODELS)
    assert {each.model.item for each in configs} == {"both", "content", "id"}


def test_factors_are_those_of_the_singular_values(data: PreparedData) -> None:
    split = open_split(data, None, 0.8)
    cases = load_cases(data, split, "validation")
    scorer = factor_scorer(cases, split, num_factors=3)
    met = np.zeros((len(data.user_ids), len(data.items)))
    for row, user in enumerate(split.train.user_index):
        met[user, split.train.read(row).item_index] = 1
    for row, user in enumerate(cases.user_index):  # of each user the longest input counts
        own = cases.history[row]
        if len(own) > met[user].sum():
            met[user] = np.bincount(own, minlength=met.shape[1])
    right = np.linalg.svd(met)[2][:3].T
    histories = [cases.history[row] for row in range(len(cases))]
    asked = np.stack([np.bincount(each, minlength=len(right)) for each in histories])
    expected = (asked @ right @ right.T)[:, cases.candidates]
    found = scorer.score(np.arange(len(cases)), slice(0, len(cases.candidates)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    again = factor_scorer(cases, split, num_factors=3)
    assert torch.equal(scorer.item_vectors, again.item_vectors)


def write_ranks(
    data: PreparedData, out: Path, share: float, name: str, rank: float, *, variant: str = "run"
) -> None:
    folder = folder_of_run(out, share, name) / variant
    folder.mkdir(parents=True, exist_ok=True)
    model = "mmrec" if name in MODELS else name
    pairs = zip(data.user_ids[:12], data.items.item_ids[:12], strict=True)
    rows = [
        {"model": model, "user_id": user, "item_id": item, "slice": "warm", "rank": rank + row % 2}
        for row, (user, item) in enumerate(pairs)
    ]
    pl.DataFrame(rows).write_parquet(folder / "ranks-test.parquet")


def test_figures_are_paired_within_a_share(data: PreparedData, tmp_path: Path) -> None:
    for share, hybrid, factors in ((1.0, 2.0, 2.0), (0.5, 3.0, 7.0)):
        write_ranks(data, tmp_path, share, "hybrid", hybrid)
        write_ranks(data, tmp_path, share, FACTORS, factors)
    rows = [row for share in (1.0, 0.5) for row in rows_of(data, share, tmp_path)]
    assert [(row["share"], row["model"]) for row in rows] == [
        (share, name) for share in (1.0, 0.5) for name in ("hybrid", FACTORS)
    ]
    assert rows[0]["events"] > rows[2]["events"] > 0

    def gain(*ranks: float) -> float:
        return float(np.mean([1 / np.log2(1 + each) for each in ranks]))

    own, whole = rows[3]["all"], rows[2]["all"]
    assert own["mean"] == pytest.approx(gain(7, 8)) and whole["mean"] == pytest.approx(gain(3, 4))
    assert own["hybrid_gains"]["mean"] == pytest.approx(gain(3, 4) - gain(7, 8))
    assert own["low"] <= own["mean"] <= own["high"] and "hybrid_gains" not in whole
    assert own["num_users"] == rows[3]["few"]["num_users"] == 12  # nothing here has fifty events
    text = render(rows)
    assert f"| {FACTORS} | " in text and text.count("| – | – |") == 2 * (len(ROWS) - 2)
    kept = gain(7, 8) / gain(2, 3)
    assert f"| known training events | {rows[0]['events']} | {rows[2]['events']} |" in text
    assert f"{kept:.0%} |" in text and "100% | 50% |" in text


def test_what_is_done_is_not_done_again(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    looks = {"demo": (0.2, 0.1), "firm": (0.1, 0.3)}

    def run_process(command: list[Any], **options: Any) -> Any:
        asked.append(command[3])
        if command[3] == "evaluate":
            assert Path(command[4]).name == "firm"  # the better one on validation
            write_ranks(data, tmp_path, 0.5, "hybrid", 1.0, variant="firm")
        else:
            run = Path(command[command.index("--run") + 1])
            records = [{"loss": 1.0}]
            records += [{"validation": {"warm": {"ndcg@10": each}}} for each in looks[run.name]]
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
        return SimpleNamespace(reason=None)

    monkeypatch.setattr("benchmarks.runs.run_process", run_process)
    given = SimpleNamespace(out=tmp_path, threads=1)
    for _ in range(2):
        assert run_one(0.5, "hybrid", given, data) is None  # type: ignore[arg-type]
    assert asked == ["train", "train", "evaluate"]
    assert rows_of(data, 0.5, tmp_path)[0]["variant"] == "firm"
    monkeypatch.setitem(sparsity.SETTINGS, "training.seed", 1)  # other settings, another run
    assert run_one(0.5, "hybrid", given, data) is None  # type: ignore[arg-type]
    assert asked == ["train", "train", "evaluate"] * 2


def test_factorisation_ranks_once(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsity, "NUM_FACTORS", (1, 3))
    factorise(data, 0.5, tmp_path)
    file = folder_of_run(tmp_path, 0.5, FACTORS) / "run" / "ranks-test.parquet"
    ranks = pl.read_parquet(file)
    assert ranks["model"].unique().to_list() == [FACTORS] and "warm" in ranks["slice"]
    monkeypatch.delattr(sparsity, "load_cases")
    factorise(data, 0.5, tmp_path)
    assert pl.read_parquet(file).equals(ranks)
