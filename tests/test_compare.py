"""`mmrec compare` through the command line: its figures by brute force, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmrec.cli import main
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.schemas import ComparisonDocument

pytest_plugins = ["tiny_run"]

NUM_USERS = 40
PROTOCOL = {"name": "leave_one_out", "split_hash": "a" * 64, "targets": "test", "hash": "b" * 64}


def write_run(
    run: Path, *, seed: int = 0, which: str = "test", shift: float = 0.0, width: int = 64
) -> Path:
    """An evaluated run of two slices; half of the users have a cold target too."""
    generator = np.random.default_rng(seed + 100)
    rows = []
    for user in range(NUM_USERS):
        for slice_name in ("warm", "cold") if user % 2 else ("warm",):
            item = f"{slice_name}{user % 7}"
            rank = float(generator.integers(1, 30)) + shift
            rows += [("mmrec", f"u{user}", item, slice_name, rank)]
            rows += [("popularity", f"u{user}", item, slice_name, 50.0)]
    columns = ["model", "user_id", "item_id", "slice", "rank"]
    run.mkdir()
    pl.DataFrame(rows, columns, orient="row").write_parquet(run / f"ranks-{which}.parquet")
    lists = {"coverage@10": 0.5 + seed / 100, "gini@10": 0.8, "novelty@10": 9.0 + shift}
    document = {
        "schema": 1,
        "split": "leave_one_out",
        "protocol": PROTOCOL | {"targets": which},
        "data_hash": "d" * 64,
        "checkpoint": "step 3",
        "seed": seed,
        "models": {"mmrec": {"all": lists}, "popularity": {"all": lists}},
    }
    (run / f"metrics-{which}.json").write_text(json.dumps(document))
    (run / "config.yaml").write_text(
        f"name: x\nmodel: {{item: id, width: {width}}}\ntraining: {{seed: {seed}}}\n"
    )
    return run


def document_of(words: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON document of a comparison, its shape checked."""
    assert main(["--quiet", "compare", *map(str, words), "--json"]) == 0
    text = capsys.readouterr().out
    ComparisonDocument.model_validate_json(text)
    found: dict[str, Any] = json.loads(text)
    return found


def slow_values(run: Path, slices: tuple[str, ...], metric: str) -> dict[str, float]:
    """Mean over a user's cases, each of one target, a rank at a time."""
    values: dict[str, list[float]] = {}
    table = pl.read_parquet(run / "ranks-test.parquet")
    for model, user, _, slice_name, rank in table.iter_rows():
        if model == "mmrec" and slice_name in slices:
            shown = rank <= 10
            value = {
                "hr@10": float(shown),
                "ndcg@10": shown / math.log2(1 + rank),
                "mrr": 1 / rank,
            }[metric]
            values.setdefault(user, []).append(value)
    return {user: sum(own) / len(own) for user, own in values.items()}


def test_figures_equal_a_slow_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [write_run(tmp_path / f"a{n}", seed=n) for n in range(3)]
    second = [write_run(tmp_path / f"b{n}", seed=n + 3, shift=4.0) for n in range(2)]
    found = document_of([*first, "vs", *second], capsys)
    of_slice = {"all": ("warm", "cold"), "warm": ("warm",), "cold": ("cold",)}
    assert [(row["slice"], row["metric"]) for row in found["rows"]] == [
        (name, metric) for name in of_slice for metric in ("hr@10", "ndcg@10", "mrr")
    ]
    for row in found["rows"]:
        parts = of_slice[row["slice"]]
        by_run = [
            [slow_values(run, parts, row["metric"]) for run in side] for side in (first, second)
        ]
        users = sorted(by_run[0][0])
        differences = np.array(
            [
                np.mean([own[user] for own in by_run[0]])
                - np.mean([own[user] for own in by_run[1]])
                for user in users
            ]
        )
        means = [np.mean([list(own.values()) for own in side]) for side in by_run]
        assert row["num_users"] == len(users) and row["num_targets"] >= len(users)
        assert row["first_mean"] == pytest.approx(means[0])
        assert row["second_mean"] == pytest.approx(means[1])
        for run, mean in zip(by_run[0], row["first_by_run"], strict=True):
            assert mean == pytest.approx(np.mean(list(run.values())))
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["relative"] == pytest.approx(differences.mean() / means[1])
        generator = np.random.default_rng(0)
        drawn = [
            differences[generator.integers(len(users), size=len(users))].mean() for _ in range(1000)
        ]
        assert row["interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
        generator = np.random.default_rng(0)
        extreme = 0
        for _ in range(2000):
            signs = generator.integers(2, size=len(users), dtype=np.int8) * 2.0 - 1.0
            extreme += abs((signs * differences).sum()) >= abs(differences.sum()) - 1e-12
        assert row["p_value"] == pytest.approx((extreme + 1) / 2001)
    lists = {each["name"]: each["values"] for each in found["lists"]}
    assert lists["coverage@10"] == {"A": pytest.approx(0.51), "B": pytest.approx(0.535)}
    assert lists["novelty@10"] == {"A": 9.0, "B": 13.0} and "diversity@10" not in lists
    assert found["settings"] == [{"name": "training.seed", "values": {"A": [0, 1, 2], "B": [3, 4]}}]


def test_runs_without_a_word_between_are_a_side_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(tmp_path / f"r{n}", seed=0, shift=float(n), width=64 + 4 * n) for n in range(3)
    ]
    found = document_of(runs, capsys)
    assert {name: len(own) for name, own in found["sides"].items()} == {"A": 1, "B": 1, "C": 1}
    assert [(r["first"], r["second"]) for r in found["rows"][::9]] == [("A", "B"), ("A", "C")]
    # the same draws, each rank later by one: the first is better of every user, or level
    assert all(row["difference"] > 0 for row in found["rows"] if row["metric"] == "mrr")
    assert found["settings"] == [
        {"name": "model.width", "values": {"A": [64], "B": [68], "C": [72]}}
    ]


def test_costs_stand_beside_each_other_where_all_runs_know_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name) for name in ("a0", "a1", "b")]
    words = [runs[0], runs[1], "vs", runs[2]]
    parts = {"id": {"trainable": 100, "frozen": 7}, "history": {"trainable": 20, "frozen": 0}}
    for run, seconds, latency in zip(runs, (30.0, 50.0, 10.0), (2.0, 4.0, None), strict=True):
        assert document_of(words, capsys)["costs"] == []
        measured = None if latency is None else {"p50_ms": latency}
        costs = {"training_s": seconds, "parameters": parts, "latency": measured}
        (run / "report.json").write_text(json.dumps({"costs": costs}))
    assert document_of(words, capsys)["costs"] == [
        {"name": "training_s", "values": {"A": 40.0, "B": 10.0}},
        {"name": "trained_parameters", "values": {"A": 120.0, "B": 120.0}},
    ]


def test_a_person_reads_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_run(tmp_path / name, seed=n) for n, name in enumerate("ab"))
    third = write_run(tmp_path / "c", seed=2)
    assert main(["compare", str(first), str(second), "vs", str(third)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: {first} (seed 0), {second} (seed 1)"
    assert lines[2].startswith("test targets, protocol leave_one_out (bbbb")
    (row,) = [line.split() for line in lines if line.startswith("warm") and " ndcg@10 " in line]
    assert row[2:6] == ["40", "A", "-", "B"] and row[7].startswith("±") and row[10].endswith("%")
    assert any(line.split() == ["training.seed", "0", "|", "1", "2"] for line in lines)
    assert "9 tests, none corrected" in "\n".join(lines)
    twins = [write_run(tmp_path / name) for name in ("x", "y")]
    assert main(["compare", *map(str, twins)]) == 0
    assert capsys.readouterr().out.endswith("no setting differs\n")


def test_validation_is_compared_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, which="validation") for name in ("a", "b")]
    assert document_of([*runs, "--split", "validation"], capsys)["targets"] == "validation"
    assert main(["compare", *map(str, runs)]) == 2
    assert "no metrics-test.json, it was not evaluated; run `mmrec evaluate" in (
        capsys.readouterr().err
    )


def without(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        document = json.loads((run / "metrics-test.json").read_text())
        change(document)
        (run / "metrics-test.json").write_text(json.dumps(document))

    return edit


def other_targets(run: Path) -> None:
    path = run / "ranks-test.parquet"
    pl.read_parquet(path).with_columns(item_id=pl.lit("elsewhere")).write_parquet(path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(without("metrics-test.json"), "it was not evaluated; run `mmrec", id="never"),
        pytest.param(without("ranks-test.parquet"), "no ranks-test.parquet", id="no-ranks"),
        pytest.param(without("config.yaml"), "config.yaml", id="no-config"),
        pytest.param(
            lambda run: (run / "metrics-test.json").write_text("{"), "is no JSON", id="half-json"
        ),
        pytest.param(
            lambda run: (run / "ranks-test.parquet").write_bytes(b"no"),
            "cannot be read",
            id="no-parquet",
        ),
        pytest.param(edited(lambda d: d.update(schema=7)), "schema 7 is not 1", id="schema"),
        pytest.param(edited(lambda d: d["models"].pop("mmrec")), "no model 'mmrec'", id="not-ours"),
        pytest.param(
            edited(lambda d: d["protocol"].update(name="by_time", hash="c" * 64)),
            "different protocols: name is 'leave_one_out' and 'by_time'",
            id="split",
        ),
        pytest.param(
            edited(lambda d: d["protocol"].update(split_hash="e" * 64, hash="c" * 64)),
            "split_hash is aaaaaaaaaaaa… and eeeeeeeeeeee…",
            id="other-draw",
        ),
        pytest.param(other_targets, "hold other targets", id="targets"),
    ],
)
def test_what_is_refused_in_one_line(
    spoil: Callable[[Path], Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    spoil(second)
    assert main(["compare", str(first), str(second), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    assert says in captured.err and str(second) in captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["a"], "1 run given, two are the least", id="one"),
        pytest.param(["a", "vs"], "a side of 'vs' names no run", id="empty-side"),
        pytest.param(["vs", "a"], "a side of 'vs' names no run", id="empty-first"),
        pytest.param(["a", "nowhere"], "'nowhere' does not exist", id="absent"),
        pytest.param(["a", "b", "vs", "./a"], "named twice", id="twice"),
        pytest.param(["a", "b", "--item-events-below", "1"], "--item-events-below", id="bound"),
        pytest.param(["a", "b", "--item-events-below", "5"], "data.json", id="no-data"),
    ],
)
def test_wrong_words(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err


def test_real_runs_and_items_of_few_events(
    tiny_run: Path, tiny_run_id: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are evaluated on one prepared folder; counts of events come from there."""
    runs = []
    for place, run in enumerate((tiny_run, tiny_run_id)):
        runs.append(Path(shutil.copytree(run, tmp_path / f"run{place}")))
        evaluate_run(runs[-1], split="validation")  # no report: that takes the most time
    words = [*runs, "--split", "validation", "--item-events-below", "16"]
    found = document_of(words, capsys)
    rows = {(row["slice"], row["metric"]): row for row in found["rows"]}
    document = json.loads((runs[0] / "metrics-validation.json").read_text())["models"]["mmrec"]
    for name in ("all", "warm", "cold", "cold_among_cold"):
        for metric in ("hr@10", "ndcg@10", "mrr"):
            assert rows[name, metric]["first_mean"] == pytest.approx(document[name][metric])
        assert rows[name, "mrr"]["num_targets"] == document[name]["num_targets"]
    parts = [rows[name, "mrr"]["num_targets"] for name in ("events<16", "events>=16")]
    assert min(parts) > 0 and sum(parts) == document["warm"]["num_targets"]
    assert {"name": "model.item", "values": {"A": ["both"], "B": ["id"]}} in found["settings"]
