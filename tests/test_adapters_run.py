"""Runs whose encoders train by LoRA and its like: kept, resumed, exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrec.config import Config, change, parse_config
from mmrec.errors import ConfigError
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def configure(text: str, image: str, audio: str) -> Config:
    from tiny_run import tiny_config

    methods = {"text": text, "image": image, "audio": audio}
    settings = {f"encoders.{name}.method": each for name, each in methods.items()}
    ranks = {f"encoders.{name}.rank": 2 for name in methods}
    return change(tiny_config(trainable_blocks=1), settings | ranks, "test")


@pytest.mark.parametrize(
    "methods",
    [("lora", "lora", "full"), ("adalora", "ia3", "lora"), ("prompt", "adapter", "adapter")],
    ids="-".join,
)
def test_kept_small_and_exported_whole(
    methods: tuple[str, str, str], tiny_data: Path, tiny_source: Path, tmp_path: Path
) -> None:
    config = configure(*methods)
    train(config, tiny_data, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    final = tmp_path / "run" / "checkpoints" / "final"
    added, model = load_file(final / "added.safetensors"), load_file(final / "model.safetensors")
    kept = {name for name, method in zip(("text", "image", "audio"), methods, strict=True)
            if method != "full"}  # fmt: skip
    assert {name.split(".")[0] for name in added} == kept
    for name, each in added.items():
        assert torch.equal(model[f"encoders.{name}"], each)
    for name in kept:
        counts = loaded.state["parameters"][f"encoders.{name}"]
        assert 0 < counts["trainable"] < 0.2 * counts["frozen"]

    export_run(tmp_path / "run", tmp_path / "out", bundle=True)
    bundle = tmp_path / "out" / "bundle"
    told = (bundle / "config.yaml").read_text(encoding="utf-8")
    assert not any(f"method: {each}\n" in told for each in ("lora", "adalora", "ia3"))
    assert not any("lora" in name for name in load_file(bundle / "model.safetensors"))
    run, served = Recommender.load(tmp_path / "run"), Recommender.load(bundle)
    table = tiny_source / "items.csv"
    one = run.embed_items(run.new_items(table, tiny_source))
    other = served.embed_items(served.new_items(table, tiny_source))
    assert one.content is not None and other.content is not None
    assert np.abs(one.content - other.content).max() < 1e-5
    assert json.loads((bundle / "bundle.json").read_text())["files"]["model.safetensors"]


@pytest.mark.parametrize("text", ["adalora", "prompt"])
def test_resumed_equals_the_unbroken(text: str, tiny_data: Path, tmp_path: Path) -> None:
    config = change(configure(text, "lora", "adapter"), {"training.max_epochs": 4}, "test")
    train(config, tiny_data, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(epoch: int, _: float) -> bool:
        if epoch == 3:
            raise StoppedError
        return False

    with pytest.raises(StoppedError):
        train(config, tiny_data, tmp_path / "broken", after_look=stop)
    step = next((tmp_path / "broken" / "checkpoints").glob("step-*"))
    assert (step / "budget.safetensors").exists() == (text == "adalora")
    train(config, tiny_data, tmp_path / "broken", resume=True)
    final = "checkpoints/final/model.safetensors"
    one, other = load_file(tmp_path / "whole" / final), load_file(tmp_path / "broken" / final)
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_a_method_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"encoders": {"text": {"method": "lora"}}})
    said = str(caught.value)
    assert "encoders.text.method is 'lora'" in said and "set trainable_blocks" in said
