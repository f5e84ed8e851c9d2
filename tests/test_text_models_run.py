"""A run with a text model of transformers: BERT or GPT-2, by one line of the settings."""

from pathlib import Path

import numpy as np
import pytest
from encoder_families import TEXTS, make_bert, make_gpt

from encoders.text import train_vocabulary
from mmrec.config import change
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


@pytest.mark.parametrize(
    ("make", "blocks"), [(make_bert, 0), (make_bert, 1), (make_gpt, 0), (make_gpt, "all")]
)
def test_trains_and_serves(make, blocks, tiny_data: Path, tiny_source: Path, tmp_path) -> None:
    from tiny_run import tiny_config

    folder = tmp_path / "weights"
    make().model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_vocabulary(TEXTS, 200), encoding="utf-8")
    settings = {
        "encoders.text": {
            "kind": "transformers",
            "weights": str(folder),
            "num_tokens": 8,
            "trainable_blocks": blocks,
            "options": {"max_length": 48},
        }
    }
    train(change(tiny_config(), settings, "test"), tiny_data, tmp_path / "run")
    recommender = Recommender.load(tmp_path / "run")
    table = tiny_source / "items.csv"
    live = recommender.embed_items(recommender.new_items(table, tiny_source))
    stored = recommender.embed_items(live.item_ids)
    assert live.content is not None and stored.content is not None
    assert np.abs(live.content - stored.content).max() < 1e-5
