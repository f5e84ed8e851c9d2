"""`mmrec stability` on tiny runs through the command line, and its section of the report."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.errors import BrokenMedium
from mmrec.cli import main
from mmrec.config import change
from mmrec.data import items as items_module
from mmrec.evaluation import stability_command
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.perturbations import PERTURBATIONS, add_noise, encode_jpeg_again, make_typos
from mmrec.evaluation.stability import read_stability
from mmrec.loaded import load_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]

SLICES = {"all", "warm", "cold", "cold_among_cold", "new_users"}


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """The commands set up logging and torch; give the suite its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("data_prep", "encoders", "fusion", "mmrec")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:], root.level = handlers, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def run_id_of_seed_1(tiny_run_id: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ids with another seed."""
    run = tmp_path_factory.mktemp("seed") / "run-1"
    loaded = load_run(tiny_run_id)
    assert loaded.data is not None
    train(change(loaded.config, {"training.seed": 1}, "test"), loaded.data.path, run)
    return run


def stability(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What the command prints, and its file holds."""
    assert main(["--quiet", "stability", *map(str, words), "--json"]) == 0
    captured = capsys.readouterr()
    document: dict[str, Any] = json.loads(captured.out)
    assert json.loads((Path(str(words[0])) / "stability.json").read_text()) == document
    return document


def changes(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Let these take the places of the perturbations."""
    others = {n: replace(PERTURBATIONS[n], change=change) for n, change in functions.items()}
    monkeypatch.setattr(stability_command, "PERTURBATIONS", others)


def overlaps(document: dict[str, Any]) -> dict[str, float]:
    return {each["name"]: each["overlap"]["mean"] for each in document["perturbations"]}


@pytest.mark.parametrize("kind", ["tiny_run", "tiny_run_cut", "tiny_run_all"])
def test_what_changes_nothing_leaves_every_list_as_it_is(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    changes(monkeypatch, **dict.fromkeys(PERTURBATIONS, lambda medium, random: medium))
    found = stability(capsys, run)
    assert [each["num_items"] for each in found["perturbations"]] == [12, 12, 12]
    for each in found["perturbations"]:
        assert each["overlap"] == {"mean": 1.0, "over_users": 0.0, "over_repetitions": 0.0}
        assert each["cosine"] == pytest.approx(1, abs=1e-6)
        assert each["ndcg_change"] == dict.fromkeys(SLICES, 0.0) | {"new_users": None}


def test_harsher_changes_move_lists_further(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes(
        monkeypatch,
        typos=partial(make_typos, share=0.01),
        jpeg=partial(encode_jpeg_again, quality=(95, 95)),
        noise=partial(add_noise, decibels=60.0),
    )
    mild = stability(capsys, run)
    changes(
        monkeypatch,
        typos=partial(make_typos, share=1.0),
        jpeg=partial(encode_jpeg_again, quality=(1, 1)),
        noise=partial(add_noise, decibels=-20.0),
    )
    harsh = stability(capsys, run)
    for one, other in zip(mild["perturbations"], harsh["perturbations"], strict=True):
        assert one["overlap"]["mean"] > other["overlap"]["mean"] > 0
        assert one["cosine"] > other["cosine"]


def test_the_same_seed_gives_the_same_file_and_another_seed_others(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = stability(capsys, run)
    written = (run / "stability.json").read_bytes()
    assert stability(capsys, run) == first
    assert (run / "stability.json").read_bytes() == written
    assert [each["name"] for each in first["perturbations"]] == ["typos", "jpeg", "noise"]
    assert first["num_candidates"] == first["num_items"] == 13 and first["num_draws"] == 5
    assert set(first["ndcg"]) == SLICES and first["seeds"] is None
    other = stability(capsys, run, "--seed", 1)
    cosines = [[each["cosine"] for each in found["perturbations"]] for found in (first, other)]
    assert cosines[0] != cosines[1]


def test_a_sample_of_users_and_items(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stability(capsys, run, "--users", 7, "--items", 4)
    assert (found["num_users"], found["num_items"], found["num_candidates"]) == (7, 4, 13)
    assert all(each["num_items"] <= 4 for each in found["perturbations"])
    whole = stability(capsys, run)
    # fewer items changed: lists stay nearer to what they were
    assert np.mean(list(overlaps(found).values())) > np.mean(list(overlaps(whole).values()))


def test_the_contents_before_are_those_of_the_run(run: Path) -> None:
    loaded = load_run(run)
    items = np.arange(len(loaded.item_ids))
    before, after = stability_command.perturbed_contents(loaded, items, PERTURBATIONS, seed=0)
    assert loaded.content is not None
    torch.testing.assert_close(before, loaded.content, atol=1e-5, rtol=0)
    for name, each in after.items():
        assert len(each.contents) == 5 and each.num_broken == 0, name
        for content in each.contents:
            # an item without the medium stays as it is, the others do not
            off = (content - before).abs().amax(1)
            assert (off[~each.has] < 1e-6).all() and (off[each.has] > 0).all(), name


def test_broken_media_are_counted_and_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = items_module._DECODERS["image"]
    seen: set[bytes] = set()

    def refuse(data: bytes) -> Any:
        """The first two pictures that are met are broken."""
        if data in seen or len(seen) < 2:
            seen.add(data)
            raise BrokenMedium("broken image: made so")
        return decode(data)

    monkeypatch.setitem(items_module._DECODERS, "image", refuse)
    rows = {each["name"]: each for each in stability(capsys, run)["perturbations"]}
    assert (rows["jpeg"]["num_items"], rows["jpeg"]["num_broken"]) == (10, 2)
    assert (rows["typos"]["num_items"], rows["typos"]["num_broken"]) == (12, 0)


def test_runs_that_differ_in_their_seed(
    tiny_run_id: Path,
    run_id_of_seed_1: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(tiny_run_id, tmp_path / "run-0")
    found = stability(capsys, run, run_id_of_seed_1)
    assert found["perturbations"] == [] and found["num_items"] == 0
    seeds = found["seeds"]
    assert [(each["run"], each["seed"]) for each in seeds["runs"]] == [("run-0", 0), ("run-1", 1)]
    assert 0 < seeds["overlap"]["mean"] < 1 and seeds["overlap"]["over_repetitions"] is None
    pair = [each["ndcg"]["warm"] for each in seeds["runs"]]
    assert seeds["ndcg"]["warm"] == pytest.approx(np.mean(pair))
    assert seeds["ndcg_deviation"]["warm"] == pytest.approx(np.std(pair, ddof=1))
    # all users are asked, so it is the figure of the evaluation
    metrics = evaluate_run(run)["models"]["mmrec"]
    assert found["ndcg"]["warm"] == pytest.approx(metrics["warm"]["ndcg@10"])
    assert json.loads((run / "report.json").read_text())["stability"] == found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["IDS"], "reads no media, and only text, image, audio can be perturbed; name runs of"),
        (["IDS", "IDS"], "training.seed is 0, as that of"),
        (["IDS", "RUN"], "differ in training.seed alone"),
        (["RUN", "--items", "0"], "--items"),
    ],
    ids=["nothing-to-do", "same-seed", "other-settings", "no-items"],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    words: list[str],
    says: str,
    tiny_run: Path,
    tiny_run_id: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"IDS": str(tiny_run_id), "RUN": str(tiny_run)}
    assert main(["--quiet", "stability", *(paths.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("mmrec: ") and says in captured.err


def test_the_table_and_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quiet", "stability", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["perturbation", "typos", "jpeg", "noise"]
    assert "±" in lines[1] and "13 of 13 candidates changed" in lines[-1]
    evaluate_run(run)
    document = json.loads((run / "report.json").read_text())
    assert document["stability"] == json.loads((run / "stability.json").read_text())
    page = (run / "report.html").read_text()
    assert "How stable its lists are" in page and "white noise 20 dB below the sound" in page


@pytest.mark.parametrize("fault", ["no-json", "of-another-model", "lacks-a-field"])
def test_a_file_of_another_model_is_left_out_with_a_warning(
    fault: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = stability(capsys, run)
    loaded = load_run(run)
    assert read_stability(loaded) is not None
    texts = {
        "no-json": "{",
        "of-another-model": json.dumps({**document, "model_hash": "0"}),
        "lacks-a-field": json.dumps({**document, "ndcg": None}),
    }
    (run / "stability.json").write_text(texts[fault])
    assert read_stability(loaded) is None
    line = capsys.readouterr().err
    assert "stability.json: " in line and "run `mmrec stability" in line and line.count("\n") == 1
    (run / "stability.json").unlink()
    assert read_stability(loaded) is None
