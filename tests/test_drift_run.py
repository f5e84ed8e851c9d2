"""`mmrec drift` on catalogues in which one thing has moved, and the line before a run starts."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.errors import BrokenMedium
from data_prep.prepare import prepare
from data_prep.shards import ItemTable, PreparedData
from encoders.vectors import VectorEncoder, VectorTransform
from mmrec import build
from mmrec.build import assemble
from mmrec.cli import main
from mmrec.config import Config, change, dump_config, parse_config
from mmrec.drift import sides
from mmrec.drift.compare import compare
from mmrec.drift.lines import large
from mmrec.drift.sides import Side
from mmrec.drift.states import pooled_states
from mmrec.drift.warn import cheap_lines
from mmrec.encoder_parts import EncoderParts
from mmrec.errors import UserError
from mmrec.retrieval.bundle import BUNDLE_FILE
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS = 240, 150
WORDS = ("quiet red river storm night garden old machine letter sea ship wind field stone bread "
         "house road fire snow glass").split()  # fmt: skip
SIGNS = "小狗大象河马山水火木金土日月天地人口手足"
CATALOGUE: dict[str, Any] = {
    "name": "made",
    "kind": "video",
    "items": {
        "table": "items.jsonl",
        "id": "id",
        "text": ["title"],
        "vectors": {"look": "look"},
        "attributes": {
            "genre": {"type": "category"},
            "tags": {"type": "set"},
            "year": {"type": "number"},
        },
    },
    "users": {"table": "users.csv", "id": "user", "attributes": {"country": {"type": "category"}}},
    "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "position"},
    "split": {"protocol": "leave_one_out"},
}


def make(folder: Path, seed: int, moved: str = "") -> Path:
    """A prepared catalogue; `moved` says what of it is not as in the others."""
    source = folder / "source"
    source.mkdir(parents=True)
    random = np.random.default_rng(seed)
    words = list(SIGNS) if moved == "texts" else WORDS[:10] if moved == "words" else WORDS
    items = []
    for number in range(NUM_ITEMS):
        item: dict[str, Any] = {"id": f"i{number}", "title": " ".join(random.choice(words, 5))}
        width = 9 if moved == "width" else 8
        item["look"] = [float(e) for e in random.standard_normal(width) + 2 * (moved == "looks")]
        if moved == "fewer looks" and number % 2:
            item["look"] = None
        chances = [0.05, 0.15, 0.8] if moved == "genre" else [0.5, 0.3, 0.2]
        item["genre"] = str(random.choice(["drama", "comedy", "news"], p=chances))
        item["tags"] = "|".join(f"tag{each}" for each in random.choice(9, 2, replace=False))
        item["year"] = float(random.integers(1990, 2010))
        items.append(json.dumps(item))
    (source / "items.jsonl").write_text("\n".join(items), encoding="utf-8")
    country = "no" if moved == "country" else "dk"
    users = [(f"u{user}", ["de", "fr", country][user % 3]) for user in range(NUM_USERS)]
    pl.DataFrame(users, ["user", "country"], orient="row").write_csv(source / "users.csv")
    liked = 1 / (1 + np.arange(NUM_ITEMS)) if moved == "popularity" else np.ones(NUM_ITEMS)
    more = 14 if moved == "histories" else 0
    log = [
        (f"u{user}", f"i{item}", position)
        for user in range(NUM_USERS)
        for position, item in enumerate(
            random.choice(
                NUM_ITEMS, 6 + more + int(random.integers(6)), replace=False, p=liked / liked.sum()
            )
        )
    ]
    pl.DataFrame(log, ["user", "item", "position"], orient="row").write_csv(source / "log.csv")
    (folder / "catalogue.yaml").write_text(json.dumps(CATALOGUE), encoding="utf-8")
    prepare(folder / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder / "data"


def configure(**settings: Any) -> Config:
    """A run of one step."""
    text = {"num_tokens": 4, "options": {"width": 16, "num_layers": 1, "num_heads": 2}}
    config = parse_config(
        {
            "name": "made",
            "encoders": {"text": text, "vector.look": {"kind": "vector", "num_tokens": 1}},
            "model": {
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2},
                "history": {"num_blocks": 1, "num_heads": 2},
            },
            "training": {"max_steps": 1, "batch_size": 32, "precision": "fp32"},
        }
    )
    return change(config, settings, "test")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("earlier"), 0)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts are in signs that the other catalogue has none of."""
    return make(tmp_path_factory.mktemp("foreign"), 1, "texts")


@pytest.fixture(scope="module")
def run(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    train(configure(), earlier, run)
    return run


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        ("", set()),
        ("words", {"states text"}),
        ("looks", {"states vector.look"}),
        ("fewer looks", {"media vector.look"}),
        ("genre", {"attributes genre"}),
        ("country", {"users country"}),
        ("popularity", {"events popularity of items"}),
        ("histories", {"events length of histories"}),
    ],
)
def test_what_has_moved_is_told_alone(
    earlier: Path, tmp_path: Path, moved: str, told: set[str]
) -> None:
    report = compare(make(tmp_path, 1, moved), earlier, config=configure())
    assert {f"{line.part} {line.name}" for line in large(report.lines)} == told
    assert all(line.gap is not None for line in report.lines)
    assert bool(report.advice) == bool(told)


def test_command_compares_with_the_catalogue_of_a_run(
    run: Path, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["drift", str(foreign), "--against", str(run)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {(line["of"], line["measure"]): line for line in found["lines"]}
    unknown = by_name["title", "unknown pieces"]
    assert unknown["gap"] == "large" and unknown["new"] > 0.9 and unknown["earlier"] == 0
    assert by_name["text", "two-sample AUC"]["gap"] == "too few"  # none that it can read
    looks = by_name["vector.look", "two-sample AUC"]
    assert looks["gap"] == "ok" and looks["interval"][0] < looks["figure"] < looks["interval"][1]
    assert by_name["vector.look", "MMD share"]["p_value"] > 0.001
    assert found["num_large"] == sum(line["gap"] == "large" for line in found["lines"])
    assert any("vocabulary=characters" in each for each in found["advice"])
    assert main([*words, "--items", "60", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "large: " in said and "text title" in said and "vocabulary=characters" in said


def test_a_folder_is_compared_with_another_without_encoders(
    earlier: Path, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drift", str(foreign), "--against", str(earlier)]) == 0
    said = capsys.readouterr().out
    assert "no gap is large" in said
    assert "not compared: states of text, vector.look" in said and "--config" in said


class HalfBroken(VectorTransform):
    """Cannot read what begins with a number below 0."""

    def __call__(self, medium: Any) -> Any:
        if medium[0] < 0:
            raise BrokenMedium("begins below 0")
        return super().__call__(medium)


def test_broken_media_are_named_and_left_out(
    earlier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side(PreparedData.open(earlier), max_items=100)
    parts = EncoderParts(HalfBroken(8), VectorEncoder(8), {})
    with caplog.at_level(logging.WARNING):
        rows = side.rows_with("vector.look")
        cpu = torch.device("cpu")
        states = pooled_states("vector.look", parts, side.data, rows, device=cpu)
    looks = [side.data.items.vector(int(row), "look") for row in rows]
    kept = [each for each in looks if each is not None and each[0] >= 0]
    np.testing.assert_allclose(states, np.stack(kept))
    assert f"{100 - len(kept)} of 100 media of vector.look cannot be read" in caplog.text
    assert "item i" in caplog.text and "begins below 0" in caplog.text


def test_shards_of_a_mirror_are_not_fetched_for_a_line(
    earlier: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "is_mirrored", lambda folder: folder == foreign)
    monkeypatch.setattr(ItemTable, "read", None)
    monkeypatch.setattr(ItemTable, "_read_named", None)
    pair = Side(PreparedData.open(earlier)), Side(PreparedData.open(foreign))
    parts = {line.part for line in cheap_lines(*pair, None, is_learnt=True)}
    assert parts == {"events", "media"}


def test_what_does_not_belong_together_is_refused_in_a_line(
    run: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, empty = tmp_path / "config.yaml", tmp_path / "empty"
    empty.mkdir()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / BUNDLE_FILE).write_text("{}", encoding="utf-8")
    config.write_text(dump_config(configure()), encoding="utf-8")
    words = ["drift", str(earlier), "--against"]
    for more, told in (
        ([str(run), "--config", str(config)], "has settings of its own"),
        ([str(earlier), "--data", str(earlier)], "is no run"),
        ([str(empty)], "manifest.json"),
        ([str(bundle)], "is a bundle"),
        ([str(tmp_path / "absent")], "does not exist"),
    ):
        assert main([*words, *more]) == 2
        fault = capsys.readouterr().err
        assert told in fault and fault.count("\n") == 1


def test_vectors_of_another_width_are_refused(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vector.look has 9 numbers, in .* it has 8"):
        compare(make(tmp_path, 1, "width"), earlier, config=configure())


def test_a_start_from_a_far_catalogue_is_told_in_a_line(
    run: Path, foreign: Path, earlier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mmrec.drift"):
        assemble(configure(**{"training.transfer_from": str(run)}), foreign)
        (record,) = [each for each in caplog.records if each.name == "mmrec.drift.warn"]
        said = record.getMessage()
        assert said.startswith(f"training.transfer_from is {run}: its catalogue is far from this")
        assert "text title, unknown pieces 1.000 (at most" in said
        assert f"mmrec drift {foreign} --against {run}" in said
        caplog.clear()
        assemble(configure(**{"training.start_from": str(run)}), earlier)  # the same catalogue
        assemble(configure(), foreign)  # from nothing
    assert not [each for each in caplog.records if each.name == "mmrec.drift.warn"]


def test_the_line_changes_no_result(
    run: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(**{"training.transfer_from": str(run)})
    told = assemble(config, foreign)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    monkeypatch.setattr(build, "warn_of_drift", lambda *_: None)
    silent = assemble(config, foreign)
    for name, tensor in silent.model.state_dict().items():
        assert torch.equal(tensor, told.model.state_dict()[name]), name
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]


def test_a_start_goes_on_without_the_other_catalogue(
    run: Path, foreign: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = shutil.copytree(run, tmp_path / "run")
    bound = json.loads((alone / "data.json").read_text()) | {"path": str(tmp_path / "gone")}
    (alone / "data.json").write_text(json.dumps(bound))
    with caplog.at_level(logging.INFO, "mmrec.drift"):
        assemble(configure(**{"training.transfer_from": str(alone)}), foreign)
    (record,) = [each for each in caplog.records if each.name == "mmrec.drift.warn"]
    assert record.levelno == logging.INFO and "not at hand" in record.getMessage()
