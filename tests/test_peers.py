"""The peers benchmark with a peer that needs no library: exchange, ranks, search, resume, table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from benchmarks.peers import arms, exchange, plan, run, tasks
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.data.ragged import Ragged
from mmrec.evaluation.baselines import fit_baselines
from mmrec.evaluation.evaluate import evaluate_scorers
from mmrec.evaluation.protocol import load_cases, training_histories, training_popularity

HERE = Path(plan.HERE)

# the items are a..f, in this order 0..5; the last event is the test target, the one before it the
# validation target
LOG = {"u": "abcd", "v": "bacde", "w": "cdabf", "x": "fedcb"}

CATALOGUE = """\
name: letters
kind: shop
repeats: forbid
items: {table: items.csv, id: item, text: [title]}
interactions: {table: log.csv, user: user, item: item, order: place}
"""

PEER = """\
import time
from pathlib import Path
import numpy as np
from exchange import Fitted, run_peer

def fit(task, settings):
    with open(settings["diary"], "a") as file:
        file.write(f"{settings.get('order', 'broken')} {len(task.fit[0])} {settings['seed']}\\n")
    if settings.get("meets"):
        # ends only once another arm has begun
        own = Path(settings["diary"]).with_name(f"begun-{settings['order']}")
        own.touch()
        until = time.monotonic() + 60
        while len(list(own.parent.glob("begun-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        if time.monotonic() >= until:
            raise RuntimeError("alone")
    if settings.get("broken"):
        raise RuntimeError("no such|thing")
    scores = np.array([settings["order"].find("abcdef"[item]) for item in task.candidates])
    scores = np.where(scores < 0, np.nan, -scores)
    return Fitted(lambda rows: np.tile(scores, (len(rows), 1)), {"epochs": 3, "best_epoch": 2})

run_peer(fit, lambda: {"fake": "1.0"})
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "letters"
    folder.mkdir(parents=True)
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{i},{i}\n" for i in "abcdef"))
    rows = [f"{u},{i},{place}" for u, items in LOG.items() for place, i in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(["user,item,place", *rows, ""]))
    (folder / "catalogue.yaml").write_text(CATALOGUE)
    return folder


@pytest.fixture
def data(source: Path, tmp_path: Path) -> PreparedData:
    prepare(source / "catalogue.yaml", source, tmp_path / "prepared", num_workers=1)
    return PreparedData.open(tmp_path / "prepared")


@pytest.fixture
def bench(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs a plan of the given arms; its exit status and results.json."""
    scripts = tmp_path / "scripts"
    (scripts / "requirements").mkdir(parents=True)
    (scripts / "requirements" / "fake.txt").write_text("fake==1.0\n")
    (scripts / "exchange.py").write_text((HERE / "exchange.py").read_text())
    (scripts / "peer_fake.py").write_text(PEER)
    monkeypatch.setattr(plan, "HERE", scripts)
    monkeypatch.setattr(arms, "HERE", scripts)
    monkeypatch.setattr(arms, "build_environment", lambda *_, **__: Path(sys.executable))

    def run_plan(*entries: dict[str, Any], options: tuple[str, ...] = ()) -> Any:
        document = {
            "title": "Letters",
            "catalogue": str(source / "catalogue.yaml"),
            "source": "letters",
            "weights": [],
            "encoders": {},
            "seeds": [0],
            "tables": {
                "warm": {
                    "title": "Leave one out",
                    "split": "leave_one_out",
                    "prepare": [],
                    "slices": ["warm"],
                    "select": ["warm"],
                }
            },
            "arms": [{"table": "warm", "peer": "fake", "origin": "a test"} | e for e in entries],
        }
        path = tmp_path / "letters.yaml"
        path.write_text(yaml.safe_dump(document))
        out = tmp_path / "out"
        status = run.main(
            ["--plan", str(path), "--data", str(source.parent), "--out", str(out), *options]
        )
        found = out / "results.json"
        return status, json.loads(found.read_text()) if found.is_file() else {}

    return run_plan


def fake(tmp_path: Path, order: str = "abcdef", **changes: Any) -> dict[str, Any]:
    settings = {"diary": str(tmp_path / "diary"), "order": order}
    return {"name": "fake", "settings": settings} | changes


def read(tmp_path: Path, name: str) -> dict[str, Any]:
    return arms.read_state(tmp_path / "out" / "arms" / "warm" / name / "seed-0")


def diary(tmp_path: Path) -> list[str]:
    return (tmp_path / "diary").read_text().splitlines()


def test_a_task_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [np.array([1, 2]), np.array([], dtype=np.int64), np.array([0])]
    task = exchange.Task(
        num_users=3,
        num_items=4,
        candidates=np.array([0, 1, 3]),
        train_user=np.arange(3),
        train=rows,
        fit_user=np.array([2, 0, 1]),
        fit=rows,
        stop_user=np.array([], dtype=np.int64),
        stop=[],
        stop_target=np.array([], dtype=np.int64),
        case_user=np.array([1, 2]),
        case=rows[:2],
        content=np.eye(4, dtype=np.float32),
    )
    exchange.write_task(task, tmp_path)
    again = exchange.read_task(tmp_path)
    assert (again.num_users, again.num_items) == (3, 4)
    for name in exchange.ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(task, name))
    for name in exchange.ROWS:
        for one, other in zip(getattr(again, name), getattr(task, name), strict=True):
            assert one.tolist() == other.tolist()
    assert again.content is not None and np.array_equal(again.content, np.eye(4))
    assert again.fitted_row().tolist() == [2, 0]


def test_a_peer_never_gets_a_test_target(data: PreparedData) -> None:
    split = data.split()
    task = tasks.make_task(data, split, "test", None)
    items = {name: index for index, name in enumerate(data.items.item_ids)}
    for row, user in enumerate(data.user_ids):
        told = [items[item] for item in LOG[user]]
        assert task.case_user[row] == task.fit_user[row] == task.stop_user[row] == row
        assert task.train[row].tolist() == told[:-2]
        assert task.stop[row].tolist() == told[:-2] and task.stop_target[row] == told[-2]
        assert task.case[row].tolist() == task.fit[row].tolist() == told[:-1]
    before = tasks.make_task(data, split, "validation", None)
    assert [row.tolist() for row in before.fit] == [row.tolist() for row in before.train]
    assert [row.tolist() for row in before.case] == [row.tolist() for row in before.train]


def test_rows_to_fit_end_before_the_earliest_target(data: PreparedData) -> None:
    """User 0 has two cases, user 1 one, user 2 none."""
    cases = load_cases(data, data.split(), "test").take(np.array([0, 0, 1]))
    cases = type(cases)(
        **{**cases.__dict__, "history": Ragged.from_rows([[1, 2, 3], [1, 2], [4, 5]])}
    )
    users, rows = tasks.shortest_inputs(
        cases, np.array([0, 1, 2]), Ragged.from_rows([[1], [4], [0, 1, 2]])
    )
    assert users.tolist() == [0, 1, 2]
    assert [rows[row].tolist() for row in range(3)] == [[1, 2], [4, 5], [0, 1, 2]]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (np.zeros((3, 6), np.float32), "wanted \\(4, 6\\)"),
        (np.zeros((4, 6)), "float64"),
        (np.full((4, 6), np.inf, np.float32), "infinite"),
    ],
    ids=["shape", "dtype", "infinite"],
)
def test_scores_of_another_form_are_refused(
    scores: np.ndarray, says: str, data: PreparedData, tmp_path: Path
) -> None:
    np.save(tmp_path / "scores.npy", scores)
    with pytest.raises(ValueError, match=says):
        tasks.read_scores(tmp_path / "scores.npy", load_cases(data, data.split(), "test"))


def test_what_a_peer_does_not_know_shares_the_last_place(
    data: PreparedData, tmp_path: Path
) -> None:
    scores = np.tile(np.array([np.nan, 2, 1, -7, np.nan, 3], np.float32), (4, 1))
    scores[3] = np.nan
    np.save(tmp_path / "scores.npy", scores)
    scorer = tasks.read_scores(tmp_path / "scores.npy", load_cases(data, data.split(), "test"))
    block = scorer.score(np.array([0, 3]), slice(0, 6)).numpy()
    assert block[0, [1, 2, 3, 5]].tolist() == [2, 1, -7, 3]
    assert block[0, 0] == block[0, 4] < -7
    assert len(set(block[1].tolist())) == 1


def test_ranks_are_those_of_our_protocol(bench: Any, tmp_path: Path) -> None:
    """Everyone is shown a b c d e f less what he has met; f is not known to the peer."""
    status, results = bench(fake(tmp_path, "abcde"))
    assert status == 0
    folder = tmp_path / "out" / "arms" / "warm" / "fake" / "seed-0"
    ranks = pl.read_parquet(folder / "ranks-test.parquet").sort("user_id")
    # u met abc, is left d e f: d first. v met bacd, left e f: e first. w met cdab, left e f: f
    # second. x met fedc, left a b: b second.
    assert ranks["rank"].to_list() == [1.0, 1.0, 2.0, 2.0]
    (row,) = results["tables"][0]["rows"]
    ndcg = row["slices"]["warm"]["ndcg@10"]
    assert ndcg["mean"] == pytest.approx((2 + 2 / np.log2(3)) / 4)
    assert ndcg["low"] <= ndcg["mean"] <= ndcg["high"] and ndcg["num_users"] == 4
    assert row["slices"]["warm"]["hr@10"]["mean"] == 1
    assert row["peak_gb"] > 0 and row["versions"] == {"fake": "1.0"}
    assert not (folder / "scores.npy").exists()
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| fake | 1.0000 (1.000–1.000) | .8155 (" in text
    assert "a test; `{" in text and "epochs trained: 3 (the best 2)" in text


def test_what_is_done_is_not_done_again(bench: Any, tmp_path: Path) -> None:
    assert bench(fake(tmp_path))[0] == 0
    assert bench(fake(tmp_path))[0] == 0
    assert diary(tmp_path) == ["abcdef 3 0"]
    assert bench(fake(tmp_path), options=("--seeds", "0,1"))[0] == 0
    assert diary(tmp_path) == ["abcdef 3 0", "abcdef 3 1"]
    assert bench(fake(tmp_path, "fedcba"))[0] == 0
    assert diary(tmp_path)[2:] == ["fedcba 3 0"]


def test_two_arms_run_at_a_time(bench: Any, tmp_path: Path) -> None:
    entries = [fake(tmp_path, order, name=order) for order in ("abcdef", "fedcba")]
    for entry in entries:
        entry["settings"]["meets"] = True
    status, results = bench(*entries, options=("--jobs", "2"))
    assert status == 0 and results["machine"]["jobs"] == 2
    assert sorted(diary(tmp_path)) == ["abcdef 3 0", "fedcba 3 0"]


def test_the_longest_begin_first(bench: Any, tmp_path: Path) -> None:
    times = {"abcdef": 1, "fedcba": 3, "cdbafe": 2}
    entries = [fake(tmp_path, order, name=order, minutes=m) for order, m in times.items()]
    _, results = bench(*entries, options=("--jobs", "2"))
    assert diary(tmp_path)[-1] == "abcdef 3 0"
    assert [row["name"] for row in results["tables"][0]["rows"]] == list(times), "as planned"


def test_an_interrupted_arm_goes_on_with_the_same_command(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first to end brings the interrupt, while another still waits for a third to begin."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    quick, slow = fake(tmp_path, name="quick"), fake(tmp_path, "fedcba", name="slow")
    slow["settings"]["meets"] = True
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.peers.table.write_results", interrupt)
        assert bench(slow, quick, options=("--jobs", "2"))[0] == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert read(tmp_path, "quick")["status"] == "done"
    assert read(tmp_path, "slow")["status"] == "running"
    (tmp_path / "begun-later").touch()
    assert bench(slow, quick, options=("--jobs", "2"))[0] == 0
    assert sum(line.startswith("abcdef") for line in diary(tmp_path)) == 1, "done is not done again"


def test_a_plan_is_run_in_parts(bench: Any, tmp_path: Path) -> None:
    """The table has what earlier parts left, but nothing of other settings than the plan's."""

    def shown(results: dict[str, Any]) -> list[str]:
        return [row["name"] for row in results["tables"][0]["rows"]]

    one, two, three = (fake(tmp_path, name=name) for name in ("one", "two", "three"))
    assert shown(bench(one, two, three, options=("--only", "two"))[1]) == ["two"]
    assert shown(bench(one, two, three, options=("--only", "one"))[1]) == ["one", "two"]
    two["settings"]["order"] = "fedcba"
    assert shown(bench(one, two, three, options=("--only", "three"))[1]) == ["one", "three"]


def test_a_broken_arm_is_told_and_tried_again(bench: Any, tmp_path: Path) -> None:
    entry = fake(tmp_path)
    entry["settings"]["broken"] = True
    status, results = bench(entry, fake(tmp_path, name="other"))
    broken, other = results["tables"][0]["rows"]
    assert status == 1 and broken["reason"] == "RuntimeError: no such|thing"
    assert not broken["slices"] and other["slices"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| fake | broken: RuntimeError: no such/thing |" in text
    bench(entry, fake(tmp_path, name="other"))
    assert len(diary(tmp_path)) == 3, "the broken one runs again, the other does not"


def test_a_search_takes_the_best_on_validation(bench: Any, tmp_path: Path) -> None:
    """Validation targets are c, d, b and c: cdb is right, fea wrong. The trials fit less."""
    entry = fake(tmp_path, search=[{"order": "feabdc"}, {"order": "cdbafe"}])
    status, results = bench(entry)
    assert status == 0
    assert results["tables"][0]["rows"][0]["settings"]["order"] == "cdbafe"
    assert diary(tmp_path) == ["feabdc 2 0", "cdbafe 2 0", "cdbafe 3 0"]


def test_a_deterministic_arm_runs_once(bench: Any, tmp_path: Path) -> None:
    entry = fake(tmp_path, deterministic=True)
    _, results = bench(entry, options=("--seeds", "3,4"))
    assert results["tables"][0]["rows"][0]["seeds"] == [3]


def test_floors_are_the_baselines_of_evaluate(bench: Any, tmp_path: Path) -> None:
    for name in ("exchange.py", "peer_floors.py"):
        (tmp_path / "scripts" / name).write_text((HERE / name).read_text())
    entry = {"name": "Markov", "peer": "floors", "settings": {"model": "markov"}}
    status, _ = bench(entry)
    assert status == 0
    prepared = PreparedData.open(tmp_path / "out" / "prepared")
    split = prepared.split()
    cases = load_cases(prepared, split, "test")
    scorers = fit_baselines(
        ["markov"],
        cases,
        train_users=split.train.user_index,
        train=training_histories(split),
    )
    wanted = evaluate_scorers(scorers, cases, popularity=training_popularity(split)).ranks
    folder = tmp_path / "out" / "arms" / "warm" / "markov" / "seed-0"
    ranks = pl.read_parquet(folder / "ranks-test.parquet")
    assert ranks["rank"].to_list() == wanted["rank"].to_list()


def test_the_budget_comes_before_the_start(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = bench(fake(tmp_path, minutes=90), options=("--dry-run", "--seeds", "0,1"))
    said = capsys.readouterr().out
    assert status == 0 and not (tmp_path / "out").exists()
    assert "2 x 1.500 h = 3.000 h" in said and "2 runs, 3.0 h" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--only", "nobody"), "nobody: no such arm; there are fake"), (("--data", "no"), "no data")],
    ids=["arm", "data"],
)
def test_a_wrong_option_is_one_line(
    options: tuple[str, ...],
    says: str,
    bench: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(fake(tmp_path), options=options)[0] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]
