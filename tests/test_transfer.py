"""A run on one catalogue that starts from a run on another: what it takes, what stays its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import CATALOGUE, ENCODERS, NUM_ITEMS, tiny_config, write_source

from data_prep.prepare import prepare
from mmrec.build import assemble
from mmrec.cli import main
from mmrec.config import Config, change, dump_config
from mmrec.errors import CheckpointMismatch, ConfigError
from mmrec.training.start import start_content

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


@pytest.fixture(scope="module")
def podcasts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another kind of catalogue: text, sound and attributes, no picture; other items and users."""
    folder = tmp_path_factory.mktemp("podcasts")
    write_source(folder / "source")
    items = pl.read_csv(folder / "source" / "items.csv").drop("poster")
    host = pl.Series("host", ["Ada" if number % 2 else "Max" for number in range(NUM_ITEMS)])
    said = pl.concat_str(pl.lit("unheard of: "), "title").alias("title")
    items.with_columns(host, said, pl.concat_str(pl.lit("p"), "id").alias("id")).write_csv(
        folder / "source" / "items.csv"
    )
    log = pl.read_csv(folder / "source" / "log.csv")
    log.with_columns(pl.concat_str(pl.lit("p"), "item").alias("item")).write_csv(
        folder / "source" / "log.csv"
    )
    described: dict[str, Any] = {**CATALOGUE, "name": "podcasts", "kind": "podcasts"}
    described["items"] = {key: v for key, v in CATALOGUE["items"].items() if key != "image"}
    described["items"]["attributes"] = {"host": {"type": "category"}}
    (folder / "catalogue.yaml").write_text(json.dumps(described), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def configure(run: Path, **settings: Any) -> Config:
    """Settings of the podcasts' run: those of the other, with attributes in place of pictures."""
    encoders = {name: each for name, each in ENCODERS.items() if name != "image"}
    encoders["attributes"] = {"kind": "fields"}
    changes = {"encoders": encoders, "training.transfer_from": str(run), **settings}
    return change(tiny_config(), changes, "test")


def test_what_means_the_same_everywhere_is_taken_and_the_rest_is_fresh(
    tiny_run: Path, podcasts: Path
) -> None:
    there = load_file(tiny_run / "checkpoints" / "final" / "model.safetensors")
    taken = assemble(configure(tiny_run), podcasts)
    fresh = assemble(change(taken.config, {"training.transfer_from": None}, "test"), podcasts)
    here, other = taken.model.state_dict(), fresh.model.state_dict()

    own = ("fusion.out.mean", "fusion.projections.attributes", "encoders.attributes", "id_part",
           "popularity", "counts", "offset", "expectation", "completion", "domain")  # fmt: skip
    for name, tensor in here.items():
        expected = other if name.startswith(own) else there
        assert torch.equal(tensor, expected[name]), name
    assert any(not torch.equal(other[name], there[name]) for name in here if "history" in name)
    text: Any = taken.encoder_documents["text"]
    state = json.loads((tiny_run / "checkpoints" / "final" / "state.json").read_text())
    assert text["tokenizer"] == state["encoders"]["text"]["tokenizer"]  # its words keep their rows


def test_contents_are_centred_on_the_items_of_the_new_catalogue(
    tiny_run: Path, podcasts: Path
) -> None:
    assembly = assemble(configure(tiny_run), podcasts)
    fusion: Any = assembly.model.fusion
    weight = fusion.out.projection.weight.clone()
    outputs: list[torch.Tensor] = []
    hook = fusion.out.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
    start_content([assembly])
    hook.remove()
    assert torch.equal(fusion.out.projection.weight, weight)  # the space is the other's
    torch.testing.assert_close(fusion.out.mean, (torch.cat(outputs) @ weight.T).mean(0))


def test_components_that_were_taken_stay(tiny_data: Path, podcasts: Path, tmp_path: Path) -> None:
    few = {"encoders.text.components": 4, "training.max_steps": 1}
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(change(tiny_config(), few, "test")), encoding="utf-8")
    run = tmp_path / "run"
    words = [str(path), "--data", str(tiny_data), "--run", str(run), "--no-summary"]
    assert main(["train", *words]) == 0
    assembly = assemble(configure(run, **few), podcasts)
    start_content([assembly])
    basis = load_file(run / "checkpoints" / "final" / "model.safetensors")
    name = "fusion.projections.text.basis"
    assert torch.equal(assembly.model.state_dict()[name], basis[name])


def test_started_run_trains_and_is_used_like_any_other(
    tiny_run: Path, podcasts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    config = change(configure(tiny_run), {"training.transfer_from": None}, "test")
    path.write_text(dump_config(config), encoding="utf-8")
    words = ["train", str(path), "--data", str(podcasts), "--run", str(run)]
    assert main([*words, f"training.transfer_from={tiny_run}", "training.max_epochs=1"]) == 0
    said = capsys.readouterr().err
    assert "text, audio, fusion, user model" in said and "fresh: attributes, ids" in said
    assert main(["recommend", str(run), "--history", "pi1,pi2", "-k", "3", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert len(items) == 3 and all(each["item_id"].startswith("pi") for each in items)


def test_what_gives_no_common_space_is_refused(
    tiny_run: Path, tiny_run_id: Path, podcasts: Path, tmp_path: Path
) -> None:
    def refused(run: Path, **settings: Any) -> str:
        with pytest.raises((CheckpointMismatch, ConfigError)) as caught:
            assemble(configure(run, **settings), podcasts)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "holds no finished model" in refused(tmp_path)
    assert "model.item of that run is 'id'" in refused(tiny_run_id)
    assert "model.fusion.kind is 'mean', there it is 'latents'" in refused(
        tiny_run, **{"model.fusion.kind": "mean"}
    )
    assert "encoders.text.num_tokens is 4, there it is 8" in refused(
        tiny_run, **{"encoders.text.num_tokens": 4}
    )
    assert "nothing but attributes" in refused(
        tiny_run, encoders={"attributes": {"kind": "fields"}}
    )
    assert "here it is" in refused(tiny_run, **{"model.width": 32})
    assert "lacks history.blocks.1" in refused(tiny_run, **{"model.history.num_blocks": 2})
    assert "both set" in refused(tiny_run, **{"training.start_from": str(tiny_run)})
