"""A model described from its settings alone: the counts of the one that is built, and no memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from encoders.text import train_vocabulary
from mmrec.cli import app
from mmrec.config import Config, dump_config, parse_config
from mmrec.describe import describe
from mmrec.encoder_parts import make_encoder
from mmrec.errors import ConfigError
from mmrec.network import make_model

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS = 50


def write_bert(folder: Path, *, with_weights: bool, **sizes: int) -> Path:
    tokenizer = train_vocabulary(["a quiet river at night", "an old machine"], 200)
    config = BertConfig(vocab_size=200, **sizes)
    folder.mkdir()
    if with_weights:
        BertModel(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folder


def configure(encoders: dict[str, Any], **model: Any) -> Config:
    return parse_config(
        {
            "encoders": encoders,
            "model": {"width": 16, "fusion": {"num_latents": 2, "num_heads": 2}, **model},
        }
    )


def text(folder: Path, **settings: Any) -> dict[str, Any]:
    options = {"max_length": 32}
    return {"kind": "transformers", "weights": str(folder), "options": options, **settings}


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_blocks": 0},
        {"trainable_blocks": 1},
        {"trainable_blocks": "all"},
        {"trainable_blocks": 1, "method": "lora"},
        {"trainable_blocks": 2, "method": "prompt"},
        {"trainable_blocks": 2, "method": "adapter"},
    ],
    ids=str,
)
def test_counts_are_those_of_the_model_that_is_built(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    folder = write_bert(tmp_path / "bert", with_weights=True, intermediate_size=64, **sizes)
    config = configure(
        {
            "text": text(folder, **settings),
            "image": {"kind": "timm", "architecture": "resnet18", "trainable_blocks": 1},
            "audio": {"options": {"width": 16}},
        }
    )
    found = describe(config, num_items=NUM_ITEMS)
    parts = {
        name: make_encoder(name, encoder, texts=tuple, vector_width=lambda _: 0)
        for name, encoder in config.encoders.items()
    }
    model = make_model(config, parts, torch.zeros(NUM_ITEMS))
    assert found.parameters == model.parameter_counts() and not found.left_out
    assert found.parameters["encoders.text"]["frozen"] > 0 or settings["trainable_blocks"] == "all"
    # four numbers of four bytes for what trains, one for what does not, and the bank
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert found.held_bytes == 16 * sizes[True] + 4 * sizes[False] + 4 * NUM_ITEMS * 16
    assert found.held_bytes > found.shared_bytes[2] > found.shared_bytes[8]


def test_billions_of_parameters_take_no_memory(tmp_path: Path) -> None:
    folder = write_bert(
        tmp_path / "huge", with_weights=False, hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, intermediate_size=16_384,
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = describe(configure({"text": text(folder, trainable_blocks=8)}), num_items=10**6)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    counts = found.parameters["encoders.text"]
    assert counts["frozen"] + counts["trainable"] > 6e9
    assert counts["trainable"] == pytest.approx(8 / 32 * sum(counts.values()), rel=0.02)
    assert found.held_bytes > 4 * 6e9 and grown < 300 * 1024


def test_what_the_catalogue_decides_is_named(tmp_path: Path) -> None:
    encoders = {"audio": {"options": {"width": 16}}, "attributes": {"kind": "fields"}, "text": {}}
    found = describe(configure(encoders), num_items=NUM_ITEMS)
    assert set(found.left_out) == {"attributes", "text"}
    assert "encoders.audio" in found.parameters and "encoders.text" not in found.parameters
    with pytest.raises(ConfigError, match="encoders are attributes: the catalogue decides"):
        describe(configure({"attributes": {"kind": "fields"}}), num_items=NUM_ITEMS)
    ids = describe(configure({}, item="id"), num_items=NUM_ITEMS)
    assert ids.parameters["id"]["trainable"] == NUM_ITEMS * 16 and not ids.left_out


def test_the_command_prints_a_table_or_one_document(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(configure({}, item="id")), encoding="utf-8")
    told = CliRunner().invoke(app, ["describe", str(path), "--items", "1000"])
    assert told.exit_code == 0
    for words in ("history", "16,000", "in all", "with 1,000 items", "on each of 8"):
        assert words in told.stdout, words
    document = json.loads(
        CliRunner().invoke(app, ["describe", str(path), "model.width=32", "--json"]).stdout
    )
    assert document["num_items"] == 100_000 and document["parameters"]["id"]["trainable"] == 3.2e6


def test_encoders_of_several_windows_frames_or_pictures_are_measured_without_values() -> None:
    """A cut of theirs is measured on the meta device, where no mask can be looked at."""
    tower = {"kind": "timm", "architecture": "resnet10t", "trainable_blocks": 1, "num_tokens": 16}
    config = parse_config(
        {
            "encoders": {
                "video": tower,
                "image": {**tower, "options": {"pictures": 3}},
                "audio": {"kind": "musicnn", "trainable_blocks": 1},
            },
            "model": {"signals": {"events": True}, "heads": {"stars": {"kind": "value"}}},
        }
    )
    found = describe(config, num_items=10)
    assert found.left_out == ("model.signals", "model.heads")
    for name in ("video", "image", "audio"):
        assert 0 < found.parameters[f"encoders.{name}"]["trainable"]
