"""Settings of a run: defaults, overrides, cross-field checks, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mmrec.config import (
    Config,
    change,
    dump_config,
    load_config,
    parse_config,
)
from mmrec.errors import ConfigError, UserError
from mmrec.run_config import load_trained_config

ID_RUN: dict[str, Any] = {"model": {"item": "id"}}
TEXT_RUN: dict[str, Any] = {"encoders": {"text": {"kind": "small"}}}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sections(model: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section of the settings by its path."""
    found = [(path, model)]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sections(field.annotation, f"{path}{name}.")
    return found


def test_sections_are_found() -> None:
    assert [path for path, _ in sections(Config)] == [
        "",
        "data.",
        "model.",
        "model.fusion.",
        "model.history.",
        "model.signals.",
        "training.",
        "evaluation.",
    ]


@pytest.mark.parametrize(
    ("path", "field"),
    [(path, name) for path, model in sections(Config) for name in model.model_fields],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, path: str, field: str) -> None:
    wrong = field[:-1] + "x" + field[-1]
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "model: {item: id}\n"), [f"{path}{wrong}=1"])
    message = str(caught.value)
    assert "\n" not in message
    assert f"{path}{wrong}" in message and field in message.replace(wrong, "")


def test_unknown_key_of_an_encoder_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"encoders\.text\.num_token\b.*num_tokens"):
        parse_config({"encoders": {"text": {"num_token": 3}}})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ("model.item is 'both'", "encoders is empty", "model.item=id")),
        ({**TEXT_RUN, **ID_RUN}, ("model.item is 'id'", "text", "model.item=both")),
        (
            {"model": {"item": "id", "width": 18, "history": {"num_heads": 4}}},
            ("model.width 18", "model.history.num_heads 4"),
        ),
        (
            {"model": {"item": "id", "width": 18, "history": {"num_heads": 1}}},
            ("model.width 18", "model.fusion.num_heads 4"),
        ),
        (
            {"encoders": {"text": {"trainable_blocks": -1}}},
            ("encoders.text.trainable_blocks", "-1", "0"),
        ),
        (
            {"encoders": {"text": {"trainable_blocks": "all", "components": 8}}},
            ("encoders.text.components is 8", "the encoder trains", "trainable_blocks=0"),
        ),
        ({"model": {"item": "ids"}}, ("model.item", "ids", "content")),
        ({**ID_RUN, "training": {"batch_size": 0}}, ("training.batch_size", "0")),
        ({**ID_RUN, "training": {"learning_rate": "fast"}}, ("training.learning_rate", "fast")),
        ({**ID_RUN, "training": [1]}, ("training",)),
        ({"encoders": {"text": {"kind": "bert"}}}, ("encoders.text.kind", "bert", "transformers")),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_setting_is_one_line(document: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(document, "run.yaml")
    message = str(caught.value)
    assert "\n" not in message and "run.yaml" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("block", ["gru", "cnn"])
def test_heads_need_not_fit_a_width_without_attention(block: str) -> None:
    history = {"num_heads": 3, "block": block}
    config = parse_config({"model": {"item": "id", "width": 20, "history": history}})
    assert config.model.width == 20
    with pytest.raises(ConfigError, match="model.width 20 .* model.history.num_heads 3"):
        parse_config({"model": {"item": "id", "width": 20, "history": {"num_heads": 3}}})


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "encoders: {text: {num_tokens: 4}}\ntraining: {seed: 1}\n")
    config = load_config(
        path,
        [
            "training.learning_rate=1e-3",  # a string to YAML 1.1
            "training.fresh_items=null",
            "model.history.num_blocks=3",
            "encoders.text.options.width=48",
            "encoders.vector.clip.num_tokens=1",
            "evaluation.baselines=[random]",
            "name=a=b",
        ],
    )
    assert config.training.learning_rate == 1e-3
    assert config.training.fresh_items is None and config.training.seed == 1
    assert config.model.history.num_blocks == 3
    assert config.encoders["text"].options == {"width": 48}
    assert config.encoders["text"].num_tokens == 4
    assert config.encoders["vector.clip"].num_tokens == 1
    assert config.evaluation.baselines == ("random",)
    assert config.name == "a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.seed", "section.field=value"),
        ("=3", "section.field=value"),
        ("name.first=3", "name is a value"),
        ("training.seed=[", "not YAML"),
        ("training.seed=two", "training.seed"),
    ],
)
def test_wrong_override_is_one_line(tmp_path: Path, override: str, words: str) -> None:
    path = write(tmp_path, "name: run\nmodel: {item: id}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "list"), ("", "NoneType"), ("a: [", "not YAML")],
    ids=["list", "empty", "broken"],
)
def test_file_that_is_no_mapping(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")


def test_dump_and_load_give_the_same(tmp_path: Path) -> None:
    config = parse_config(
        {
            "name": "Läufe",
            "encoders": {
                "text": {"trainable_blocks": "all", "options": {"width": 3, "deep": True}},
                "vector.clip": {"kind": "vector", "num_tokens": 1, "learning_rate": 1e-7},
            },
            "model": {"id_gate": 1 / 3},
            "training": {"max_steps": 7, "fresh_items": None},
        }
    )
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert dump_config(load_config(write(tmp_path, text))) == text


def test_settings_cannot_be_changed() -> None:
    config = parse_config(ID_RUN)
    with pytest.raises(ValidationError, match="frozen"):
        config.training.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("last", ["model", "training", "evaluation"])
def test_settings_of_a_run_that_were_cut_are_refused(last: str, tmp_path: Path) -> None:
    """At the end of a section what is left is valid YAML, and defaults would take the rest."""
    path = tmp_path / "config.yaml"
    whole = dump_config(parse_config({"model": {"item": "id"}}))
    path.write_text(whole.partition(f"\n{last}:")[0] + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"there is no section {last},.*copy the run again"):
        load_trained_config(path)
    path.write_text(whole, encoding="utf-8")
    assert load_trained_config(path).model.item == "id"


def test_change_leaves_the_values_it_is_given_as_they_are() -> None:
    encoders = {"text": {"kind": "small"}}
    changes = {"encoders": encoders, "encoders.text.components": 4}
    config = parse_config({"name": "run", "encoders": {"image": {"kind": "small"}}})
    changed = change(config, changes, "test")
    assert changed.encoders["text"].components == 4 and encoders == {"text": {"kind": "small"}}
