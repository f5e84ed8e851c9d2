"""A run whose encoders train above a cut: what is cached, what moves, what is refused."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shards import PreparedData
from mmrec.build import LiveInputs, assemble
from mmrec.config import change
from mmrec.data.items import ItemInputs
from mmrec.errors import ConfigError
from mmrec.loaded import load_run, open_source
from mmrec.vectors import encode_content

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def test_states_below_outlast_training_and_are_not_computed_again(
    tiny_run_cut: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_run(tiny_run_cut)
    with caplog.at_level(logging.INFO, "mmrec.build"):
        source = open_source(loaded)
    assert source is not None and source.raw is None
    for name, cache in source.caches.items():
        assert cache.spec.cut == "1" and cache.spec.pooled_width == 0
        assert json.loads((cache.folder / "manifest.json").read_text())["cut"] == "1"
        assert any(
            line.startswith(f"{name}:") and " 0 computed" in line for line in caplog.messages
        )
    again = encode_content(loaded.model, source, np.arange(len(loaded.item_ids)))
    assert loaded.content is not None
    torch.testing.assert_close(again, loaded.content, atol=1e-6, rtol=0)


def test_a_new_item_gets_the_content_it_would_have_in_the_catalogue(
    tiny_run_cut: Path, tiny_data: Path
) -> None:
    loaded = load_run(tiny_run_cut)
    transforms = {name: each.transform for name, each in loaded.parts.items()}
    inputs = ItemInputs(PreparedData.open(tiny_data), transforms)
    live = LiveInputs(inputs, loaded.model, loaded.state["cache_dtypes"])
    content = encode_content(loaded.model, live, np.arange(len(loaded.item_ids)))
    assert loaded.content is not None
    torch.testing.assert_close(content, loaded.content, atol=1e-5, rtol=0)


def test_no_dropout_below_the_cut_while_what_lies_above_trains(tiny_data: Path) -> None:
    from tiny_run import tiny_config

    model = assemble(tiny_config(trainable_blocks=1), tiny_data).model.train()
    text = model.encoder("text")
    assert not text.dropout.training and text.blocks[-1].dropout.training
    inputs = {
        "token_ids": torch.ones(2, 5, dtype=torch.int64),
        "mask": torch.ones(2, 5, dtype=torch.bool),
        "present": torch.ones(2, dtype=torch.bool),
    }
    first, second = text.below(inputs), text.below(inputs)
    assert torch.equal(first.values, second.values)
    assert not torch.equal(text.above(first).values, text.above(first).values)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoders.text.trainable_blocks": 2}, ("encoders.text", "is 2", "1 blocks", "0 to 1")),
        ({"encoders.image.trainable_blocks": 9}, ("encoders.image", "is 9", "0 to 3 and all")),
    ],
)
def test_a_cut_that_is_not_there_is_refused(
    settings: dict[str, int], words: tuple[str, ...], tiny_data: Path
) -> None:
    from tiny_run import tiny_config

    config = change(tiny_config(), settings, "test")
    with pytest.raises(ConfigError) as caught:
        assemble(config, tiny_data)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
