"""Two catalogues of different media in one run: each is evaluated, exported, scored, resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from several_ranks import finish, losses_of, start, train_here
from tiny_run import CATALOGUE, ENCODERS, NUM_ITEMS, write_media, write_source

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import Config, change, dump_config, parse_config
from mmrec.mix import assemble_mix
from mmrec.mixed_model import views_of
from mmrec.training.distributed import ALONE
from mmrec.training.optimiser import parameter_groups
from mmrec.training.step import train_step
from mmrec.training.train import Progress, train, wrap
from mmrec.vectors import encode_content

pytest_plugins = ["tiny_run", "several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch", "nobody_left")

VIDEO, SONGS = "video", "songs"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with text, sound and attributes, and no picture; repeats are allowed."""
    folder = tmp_path_factory.mktemp("songs")
    write_source(folder / "source")
    items = pl.read_csv(folder / "source" / "items.csv").drop("poster")
    genre = pl.Series("genre", ["rock" if number % 2 else "folk" for number in range(NUM_ITEMS)])
    items.with_columns(genre, pl.concat_str(pl.lit("song "), "title").alias("title")).write_csv(
        folder / "source" / "items.csv"
    )
    described: dict[str, Any] = {**CATALOGUE, "name": SONGS, "kind": "music", "repeats": "allow"}
    described["items"] = {
        **{key: value for key, value in CATALOGUE["items"].items() if key != "image"},
        "attributes": {"genre": {"type": "category"}},
    }
    (folder / "catalogue.yaml").write_text(json.dumps(described), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def configure(**training: Any) -> Config:
    """The video catalogue has text, image and audio; songs have text, audio and attributes."""
    return parse_config(
        {
            "name": "mixed",
            "catalogues": {VIDEO: {"weight": 1.0}, SONGS: {"weight": 1.0}},
            "encoders": {**ENCODERS, "attributes": {"kind": "fields"}},
            "data": {"max_history": 8},
            "model": {
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2},
                "history": {"num_blocks": 1, "num_heads": 2},
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 8,
                "warmup_steps": 1,
                "learning_rate": 0.01,
                "precision": "fp32",
                "log_every": 1,
                **training,
            },
        }
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, songs: Path) -> Path:
    run = tmp_path_factory.mktemp("mixed") / "run"
    path = run.parent / "config.yaml"
    path.write_text(dump_config(configure()), encoding="utf-8")
    folders = ["--data", f"{VIDEO}={tiny_data}", "--data", f"{SONGS}={songs}"]
    assert main(["train", str(path), *folders, "--run", str(run)]) == 0
    return run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final" / "model.safetensors")


def test_what_is_common_is_the_same_and_the_rest_is_not(mixed: Path) -> None:
    video, songs = (tensors(mixed / "catalogues" / name) for name in (VIDEO, SONGS))
    common = [name for name in video if name in songs and name.startswith(("history", "fusion"))]
    common.remove("fusion.out.mean")
    assert not torch.equal(video["fusion.out.mean"], songs["fusion.out.mean"])
    common += [name for name in video if name in songs and name.startswith("encoders.text")]
    common += [name for name in video if name in songs and name.startswith("encoders.audio")]
    assert len(common) > 20 and "log_temperature" in video
    assert all(torch.equal(video[name], songs[name]) for name in [*common, "log_temperature"])
    assert not torch.equal(video["domain"], songs["domain"])
    assert any(name.startswith("encoders.image") for name in video)
    assert not any(name.startswith("encoders.image") for name in songs)
    assert any(name.startswith("fusion.projections.attributes") for name in songs)
    assert not any(name.startswith("fusion.projections.attributes") for name in video)
    saved = load_file(next((mixed / "checkpoints").glob("step-*")) / "model.safetensors")
    parts = sum(each.numel() for each in saved.values())
    once = sum(each.numel() for each in video.values())
    once += sum(each.numel() for name, each in songs.items() if name not in [*common,
                "log_temperature"])  # fmt: skip
    assert parts == once  # no tensor is kept twice


def test_each_catalogue_is_a_run_of_its_own(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, modalities in ((VIDEO, "audio,image,text"), (SONGS, "attributes,audio,text")):
        run = mixed / "catalogues" / name
        assert main(["evaluate", str(run)]) == 0
        found = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
        assert found["models"]["mmrec"]["warm"]["num_users"] > 0
        assert (run / "report.html").is_file()
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        assert len(manifest["data"]) == len(manifest["starts"]) == 1
        out = tmp_path / name
        assert main(["export", str(run), "--out", str(out), "--bundle"]) == 0
        items = pl.read_parquet(out / "items.parquet")
        assert len(items) == NUM_ITEMS
        having = sorted({each for row in items["modalities"].to_list() for each in row})
        assert ",".join(having) == modalities
        for place in (run, out / "bundle"):
            assert main(["recommend", str(place), "--history", "i1,i2", "-k", "3", "--json"]) == 0
        capsys.readouterr()


def test_a_new_item_is_scored_in_each(mixed: Path, tmp_path: Path) -> None:
    source = tmp_path / "new"
    source.mkdir()
    row = {"id": "new", **write_media(source, 99, seed=99), "genre": "rock"}
    for name, absent in ((VIDEO, "genre"), (SONGS, "poster")):
        table = source / f"{name}.csv"
        pl.DataFrame([{key: value for key, value in row.items() if key != absent}]).write_csv(table)
        out = tmp_path / f"{name}.parquet"
        run = mixed / "catalogues" / name
        given = ["--items", str(table), "--source", str(source), "--out", str(out)]
        assert main(["score", str(run), *given, "--users", "all"]) == 0
        scores = pl.read_parquet(out)
        assert scores["item_id"].unique().to_list() == ["new"] and scores.height > 10


def test_metrics_are_kept_together_and_apart(mixed: Path) -> None:
    lines = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    looks = [each["validation"] for each in lines if "validation" in each]
    assert [sorted(look) for look in looks] == [[SONGS, VIDEO]] * 2
    for name in (VIDEO, SONGS):
        steps = [each for each in lines if each.get("catalogue") == name]
        own = (mixed / "catalogues" / name / "metrics.jsonl").read_text().splitlines()
        apart = [json.loads(line) for line in own]
        assert len(apart) == len(steps) + 2
        assert [each["validation"] for each in apart if "validation" in each] == [
            look[name] for look in looks
        ]


def test_losses_of_both_fall(tiny_data: Path, songs: Path, tmp_path: Path) -> None:
    config = configure(max_epochs=10, patience=99, evaluate_every=10, fresh_items=None)
    train(config, {VIDEO: tiny_data, SONGS: songs}, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [(each["catalogue"], each["loss"]) for each in lines if "loss" in each]
    for name in (VIDEO, SONGS):
        own = [loss for catalogue, loss in losses if catalogue == name]
        assert len(own) >= 40 and np.mean(own[-8:]) < 0.85 * np.mean(own[:8])


def test_the_domain_token_is_read_and_learns(tiny_data: Path, songs: Path) -> None:
    whole = assemble_mix(configure(), {VIDEO: tiny_data, SONGS: songs})
    model = views_of(whole.model)[0]
    offsets = torch.tensor([0, 3, 5])
    items = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    model.eval()
    assert model.domain is not None
    before = model.users(items, offsets)
    with torch.no_grad():
        model.domain.mul_(-1)
    after = model.users(items, offsets)
    assert before.shape == (5, 16) and not torch.allclose(before, after, atol=1e-3)
    after[:, 0].sum().backward()
    assert model.domain.grad is not None and float(model.domain.grad.norm()) > 0


@pytest.mark.parametrize("block", ["gated", "plain", "pointwise", "gru", "cnn"])
def test_a_token_in_front_is_one_more_event(block: Any) -> None:
    from fusion.history import HistoryEncoder

    torch.manual_seed(0)
    encoder = HistoryEncoder(
        16, max_length=4, num_blocks=2, num_heads=2, dropout=0.0, block=block, num_head_tokens=1
    ).eval()
    items = torch.nn.functional.normalize(torch.randn(6, 16), dim=-1)
    head = torch.nn.functional.normalize(torch.randn(1, 16), dim=-1)
    offsets = torch.tensor([0, 4, 4, 6])  # a full history, none, and a short one
    found = encoder(items, offsets, head)
    longer = torch.cat([head, items[:4], head, head, items[4:]])
    encoder.max_length = 5
    whole = encoder(longer, torch.tensor([0, 5, 6, 9]))
    torch.testing.assert_close(found, whole[[1, 2, 3, 4, 7, 8]])


def test_each_catalogue_starts_centred_and_apart(tiny_data: Path, songs: Path) -> None:
    from mmrec.training.start import start_content

    whole = assemble_mix(configure(), {VIDEO: tiny_data, SONGS: songs})
    start_content(list(whole.assemblies.values()))
    for assembly in whole.assemblies.values():
        out: Any = assembly.model.fusion.out  # type: ignore[union-attr]
        given: list[torch.Tensor] = []
        hook = out.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
        assert assembly.source is not None
        content = encode_content(assembly.model, assembly.source, assembly.item_index_of)
        hook.remove()
        centred = out.projection(torch.cat(given)).detach() - out.mean
        assert float(centred.mean(0).abs().max()) < 1e-5
        assert float((content @ content.T).mean()) < 0.2  # .9 and more without


def test_parameters_have_one_group_each(tiny_data: Path, songs: Path) -> None:
    whole = assemble_mix(configure(), {VIDEO: tiny_data, SONGS: songs})
    grouped = [p for group in parameter_groups(whole.model, whole.config) for p in group["params"]]
    assert len({id(each) for each in grouped}) == len(grouped)
    wanted = {id(each) for each in whole.model.parameters() if each.requires_grad}
    assert {id(each) for each in grouped} == wanted


def test_a_step_leaves_the_other_catalogue_alone(tiny_data: Path, songs: Path) -> None:
    whole = assemble_mix(configure(), {VIDEO: tiny_data, SONGS: songs})
    trained = wrap(whole, ALONE)
    video, song = views_of(whole.model)
    optimiser = torch.optim.SGD(whole.model.parameters(), lr=0.1)
    batch = next(each for each in whole.stream if each.catalogue == SONGS)
    bank = torch.nn.functional.normalize(torch.randn(song.counts.shape[0], 16), dim=-1)
    kept = {name: each.clone() for name, each in video.named_parameters()}
    means = [each.fusion.out.mean.clone() for each in (video, song)]  # type: ignore[union-attr]
    train_step(trained, batch, optimiser, bank, whole.config.training)
    moved = {name for name, each in video.named_parameters() if not torch.equal(each, kept[name])}
    assert any(name.startswith("history") for name in moved)
    assert not any(name.startswith(("id_part", "popularity", "domain")) for name in moved)
    assert song.domain is not None and song.domain.grad is not None
    assert torch.equal(video.fusion.out.mean, means[0])  # type: ignore[union-attr, arg-type]
    assert not torch.equal(song.fusion.out.mean, means[1])  # type: ignore[union-attr, arg-type]


class Killed(Exception):
    """Stands for a kill."""


def test_broken_and_resumed_equals_unbroken(tiny_data: Path, songs: Path, tmp_path: Path) -> None:
    config = configure(max_steps=12, max_epochs=9, checkpoint_every=5, fresh_items=4)
    folders = {VIDEO: tiny_data, SONGS: songs}
    train(config, folders, tmp_path / "whole")

    def stop(at: Progress) -> None:
        if at.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(config, folders, tmp_path / "broken", progress=stop)
    train(config, folders, tmp_path / "broken", resume=True)
    for name in (VIDEO, SONGS):
        whole, broken = (
            tensors(tmp_path / each / "catalogues" / name) for each in ("whole", "broken")
        )
        assert whole.keys() == broken.keys()
        assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (
        tmp_path / "broken/metrics.jsonl"
    ).read_bytes()


def test_two_ranks_compute_what_one_does(tiny_data: Path, songs: Path, tmp_path: Path) -> None:
    """With SGD, since AdamW makes whole steps of rounding."""
    still = {
        "model.history.dropout": 0.0,
        "model.fusion.dropout": 0.0,
        "model.fusion.feature_dropout": 0.0,
        "encoders.text.options.dropout": 0.0,
        "encoders.text.trainable_blocks": "all",
        "training.fresh_items": 5,
        "training.batch_size": 7,
        "training.optimiser": "sgd",
        "training.learning_rate": 0.02,
    }
    config = change(configure(), still, "test")
    folders = {VIDEO: tiny_data, SONGS: songs}
    runs = {world: tmp_path / f"of-{world}" for world in (1, 2)}
    train_here(config, folders, runs[1])
    finish(start(config, folders, runs[2], 2), runs[2])
    found, expected = losses_of(runs[2]), losses_of(runs[1])
    assert len(found) == len(expected) >= 16
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for name in (VIDEO, SONGS):
        one, two = (tensors(runs[world] / "catalogues" / name) for world in (1, 2))
        for key, each in one.items():
            torch.testing.assert_close(two[key], each, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("changes", "data", "line"),
    [
        ({}, {VIDEO: "tiny"}, "--data names video; the section `catalogues` asks for"),
        ({"catalogues": {}}, None, "the settings have no section `catalogues`"),
        ({"model.fusion.kind": "gated"}, None, "may share latents or mean"),
        ({"training.start_from": "x"}, None, "start_from is one run of one catalogue"),
        ({"encoders.vector.clip.kind": "vector"}, None, "encoders.vector.clip: no catalogue has"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tiny_data: Path,
    songs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    data: dict[str, str] | None,
    line: str,
) -> None:
    document = configure().model_dump(mode="json")
    for key, value in changes.items():
        if key == "catalogues":
            document[key] = value
        elif key.startswith("encoders.vector"):
            document["encoders"]["vector.clip"] = {"kind": value}
        else:
            section = document
            *parents, last = key.split(".")
            for parent in parents:
                section = section[parent]
            section[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    folders = [f"{VIDEO}={tiny_data}", f"{SONGS}={songs}"][: 1 if data else 2]
    given = [word for each in folders for word in ("--data", each)]
    assert main(["train", str(path), *given, "--run", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mixed_run_names_its_parts(
    mixed: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(mixed)]) == 2
    told = capsys.readouterr().err
    assert "holds several catalogues; name the run of one: " in told and SONGS in told
    for data in (str(tiny_data), f"{VIDEO}={tiny_data}"):
        given = ["--data", data, "--run", str(tmp_path / "x"), "--dry-run"]
        assert main(["train", str(mixed / "config.yaml"), *given]) == 2
        assert "--dry-run and --find-lr try one catalogue" in capsys.readouterr().err
    twice = ["--data", f"a={tiny_data}", "--data", str(tiny_data)]
    assert main(["train", str(mixed / "config.yaml"), *twice, "--run", str(tmp_path / "x")]) == 2
    assert "NAME=DATA once for each name" in capsys.readouterr().err
