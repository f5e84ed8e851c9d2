"""Whole numbers of eight bits: parity with a slow reference, in a run, and on real texts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_families import TEXTS, bert, make_bert
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders.int8 import (
    ROWS_AT_ONCE,
    Int8Embedding,
    Int8Linear,
    quantise,
    quantise_rows,
    size_bytes,
)
from encoders.text import train_vocabulary
from encoders.tokens import Tokens
from mmrec.config import EncoderConfig, change
from mmrec.encoder_parts import EncoderParts, make_encoder
from mmrec.errors import ConfigError
from mmrec.recommender import Recommender
from mmrec.training.train import train
from mmrec.weights import folder_of

pytest_plugins = ["tiny_run"]


def slow_product(values: Tensor, linear: nn.Linear) -> np.ndarray:
    """The layer in whole numbers of 64 bits and scales of fp64."""

    def rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        whole = np.round(rows / np.where(scale > 0, scale, 1)).astype(np.int64)
        return whole, scale.astype(np.float64)

    rows, row_scale = rounded(values.numpy())
    weight, weight_scale = rounded(linear.weight.detach().numpy())
    product = (rows @ weight.T) * row_scale * weight_scale.T
    return product if linear.bias is None else product + linear.bias.detach().numpy()


@pytest.mark.parametrize("num_rows", [1, 7, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_is_its_product_in_whole_numbers(num_rows: int, bias: bool) -> None:
    torch.manual_seed(num_rows)
    linear = nn.Linear(48, 20, bias=bias)
    values = torch.randn(num_rows, 48) * torch.logspace(-3, 3, num_rows)[:, None]
    values[0] = 0  # a row of zeros has no scale
    found = Int8Linear(linear)(values)
    assert np.allclose(found.numpy(), slow_product(values, linear), rtol=1e-5, atol=1e-5)
    shaped = Int8Linear(linear)(values[None, :, None])
    assert shaped.shape == (1, num_rows, 1, 20) and torch.equal(shaped.view(-1, 20), found)


def test_a_row_is_off_by_half_a_step_at_most() -> None:
    table = nn.Embedding(9, 16)
    rows = torch.randint(0, 9, (3, 4))
    exact = table(rows).detach()
    step = exact.abs().amax(-1, keepdim=True) / 127
    assert ((Int8Embedding(table)(rows) - exact).abs() <= step / 2 * 1.001).all()
    whole, _ = quantise_rows(table.weight.detach())
    assert whole.dtype == torch.int8 and whole.abs().amax(1).eq(127).all()


def test_states_of_int8_are_near_and_never_taken_for_others(tmp_path: Path) -> None:
    encoder, inputs = bert()
    encoder.cut_at(0)
    exact, before = encoder.below(inputs).values, encoder.fingerprint_below()
    size = size_bytes(encoder)
    quantise(encoder.model)
    found = encoder.below(inputs).values
    assert encoder.fingerprint_below() != before  # so a cache of the one is none of the other's
    assert size_bytes(encoder) < 0.4 * size
    assert not torch.equal(found, exact)
    cosine = nn.functional.cosine_similarity(found[:, 0], exact[:, 0], dim=-1)
    assert cosine[[0, 2]].min() > 0.99
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = make_bert()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    quantise(other.model)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.below(inputs).values, found)


@pytest.mark.usefixtures("restored_torch")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("max_length", [300, 16], ids=["whole", "in chunks"])
def test_states_are_the_same_bits_whatever_stands_beside(threads: int, max_length: int) -> None:
    encoder = make_bert()
    encoder.max_length, encoder.max_chunks = max_length, 8
    encoder.cut_at(0)
    quantise(encoder.model)
    random = np.random.default_rng(0)
    lengths = [0, 1, 1, 7, 16, 17, 40, 40, 40, 63, 64, 100, 128, 3]
    texts = [torch.from_numpy(random.integers(3, 200, length)) for length in lengths]

    def states(rows: list[int]) -> Tokens:
        longest = max(1, *(lengths[row] for row in rows))
        token_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, row in enumerate(rows):
            token_ids[place, : lengths[row]] = texts[row]
            mask[place, : lengths[row]] = True
        return encoder.below({"token_ids": token_ids, "mask": mask, "present": mask.any(1)})

    torch.set_num_threads(threads)
    together = states(list(range(len(texts))))
    assert not together.mask[0].any() and together.mask[1:].any(1).all()
    for row in range(1, len(texts)):
        assert torch.equal(states([row]).mask[0], together.mask[row])
        assert torch.equal(states([row]).values[0], together.values[row]), lengths[row]
    for batch in random.permutation(len(texts)).reshape(2, -1):
        assert torch.equal(states(batch.tolist()).values, together.values[batch])


def int8_text(
    folder: Path, *, int8: bool | str = True, trainable_blocks: int | str = 0
) -> dict[str, Any]:
    """The section of a small text model, whose weights are written into a folder."""
    make_bert().model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_vocabulary(TEXTS, 200), encoding="utf-8")
    return {
        "text": {
            "kind": "transformers",
            "weights": str(folder),
            "num_tokens": 8,
            "trainable_blocks": trainable_blocks,
            "options": {"max_length": 48, "int8": int8},
        }
    }


def test_a_run_of_int8_serves_what_it_was_trained_on(
    tiny_data: Path, tiny_source: Path, tmp_path: Path
) -> None:
    from tiny_run import tiny_config

    settings = {"encoders": int8_text(tmp_path / "weights")}
    config = change(tiny_config(), settings, "test")
    train(config, tiny_data, tmp_path / "run")
    file = next((tmp_path / "run").rglob("model.safetensors"))
    tensors = load_file(file)
    assert tensors["encoders.text.model.embeddings.word_embeddings.weight_int8"].dtype == torch.int8
    recommender = Recommender.load(tmp_path / "run")
    live = recommender.embed_items(recommender.new_items(tiny_source / "items.csv", tiny_source))
    stored = recommender.embed_items(live.item_ids)
    assert live.content is not None and stored.content is not None
    assert np.abs(live.content - stored.content).max() < 1e-5


@pytest.mark.parametrize("blocks", [1, "all"])
def test_what_trains_is_refused(blocks: int | str, tiny_data: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_config

    settings = {"encoders": int8_text(tmp_path / "weights", trainable_blocks=blocks)}
    config = change(tiny_config(), settings, "test")
    with pytest.raises(ConfigError, match="but whole numbers have no gradient"):
        train(config, tiny_data, tmp_path / "run")


def test_int8_is_true_or_false(tiny_data: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_config

    settings = {"encoders": int8_text(tmp_path / "weights", int8="yes")}
    with pytest.raises(ConfigError, match="options.int8 is 'yes': allowed are true and false"):
        train(change(tiny_config(), settings, "test"), tiny_data, tmp_path / "run")


def minilm(**options: bool) -> EncoderParts:
    config = EncoderConfig(kind="transformers", weights="minilm", num_tokens=32, options=options)
    return make_encoder("text", config, texts=list, vector_width=lambda _: 0)


@pytest.mark.realdata
def test_minilm_keeps_its_meaning_on_real_texts(shared_data: Path) -> None:
    if folder_of("minilm") is None:
        pytest.skip("weights minilm are not installed: mmrec weights install minilm")
    with open(shared_data / "stamps" / "items.csv", encoding="utf-8", newline="") as file:
        texts = [row["name_en"] for row in csv.DictReader(file) if row["name_en"]][::8]
    exact, whole = minilm(), minilm(int8=True)
    inputs = exact.transform.collate([exact.transform(text) for text in texts])
    with torch.no_grad():
        pooled = [each.encoder.pooled(each.encoder(inputs)) for each in (exact, whole)]
    cosine = nn.functional.cosine_similarity(*pooled)
    print(f"{len(texts)} texts: mean cosine {cosine.mean():.4f}, least {cosine.min():.4f}")
    print(f"size {size_bytes(whole.encoder) / size_bytes(exact.encoder):.4f}")
    assert len(texts) > 50 and cosine.mean() >= 0.99 and cosine.min() > 0.97
    assert size_bytes(whole.encoder) <= 0.4 * size_bytes(exact.encoder)
