import json
import pickle
from pathlib import Path

import pytest
import torch
from encoder_families import (
    TEXTS,
    WORDS,
    make_bert,
    make_distilbert,
    make_gpt,
    make_roberta,
    make_small_text,
)
from torch import nn
from transformers import BertConfig, BertModel, T5Config, T5Model

from encoders.encoder import Encoder, find_unused_parameters
from encoders.text import (
    SmallTextEncoder,
    TextEncoder,
    TextTransform,
    pool_before_last,
    train_vocabulary,
)
from encoders.tokens import masked, pool_tokens


@pytest.fixture(scope="module")
def transform() -> TextTransform:
    return TextTransform(train_vocabulary(TEXTS, 200))


FAMILIES = [make_bert, make_roberta, make_distilbert, make_small_text, make_gpt]
families = pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__[5:])


@pytest.mark.parametrize("make", FAMILIES[:3], ids=lambda make: make.__name__[5:])
def test_states_equal_transformers(make, transform: TextTransform) -> None:
    encoder = make()
    inputs = transform.collate([transform(" ".join(WORDS[:n])) for n in (3, 9, 16)])
    expected = encoder.model(
        input_ids=inputs["token_ids"], attention_mask=inputs["mask"].long()
    ).last_hidden_state
    tokens = encoder(inputs)
    length = expected.shape[1]
    assert length <= encoder.num_tokens
    for row, mask in enumerate(inputs["mask"]):
        torch.testing.assert_close(tokens.values[row, :length][mask], expected[row][mask])
        assert int(tokens.mask[row].sum()) == int(mask.sum())


@families
def test_fifty_words_give_many_tokens(make, transform: TextTransform) -> None:
    tokens = make()(transform.collate([transform(" ".join(TEXTS[0].split()[:50]))]))
    assert tokens.values.shape == (1, 32, 32)
    assert int(tokens.mask.sum()) == 32
    assert float(tokens.values[0].detach().std(dim=0).mean()) > 1e-3


@families
def test_padding_and_neighbours_do_not_matter(make, transform: TextTransform) -> None:
    encoder = make()
    short, long = transform("quiet river"), transform(TEXTS[1])
    alone = encoder(transform.collate([short]))
    together = encoder(transform.collate([short, long, None]))
    torch.testing.assert_close(together.values[:1], alone.values, atol=1e-5, rtol=0)
    assert torch.equal(together.mask[:1], alone.mask)


@families
def test_absent_rows_are_masked_and_touch_nobody(make, transform: TextTransform) -> None:
    encoder = make()
    inputs = transform.collate([transform(TEXTS[0]), None, transform(TEXTS[1])])
    before = encoder(inputs)
    inputs["token_ids"][1] = 7
    inputs["mask"][1] = True
    after = encoder(inputs)
    assert torch.equal(before.values, after.values)
    assert not before.mask[1].any() and not before.values[1].any()
    nothing = encoder(transform.collate([None, None]))
    assert nothing.values.shape == (2, 32, 32) and not nothing.mask.any()
    assert not encoder.pooled(nothing).isnan().any()


@families
def test_gradient_reaches_every_parameter(make, transform: TextTransform) -> None:
    encoder = make().train()
    inputs = transform.collate([transform(TEXTS[0]), None])
    assert find_unused_parameters(encoder, lambda: encoder(inputs).values.pow(2)) == []


@families
def test_forward_is_above_of_below(make, transform: TextTransform) -> None:
    encoder: Encoder = make()
    inputs = transform.collate([transform(TEXTS[0]), None])
    states = encoder.below(inputs)
    assert states.values.shape == (2, encoder.num_tokens, encoder.state_width)
    assert torch.equal(encoder.above(states).values, encoder(inputs).values)


@families
def test_fingerprint_follows_weights_and_arguments(make) -> None:
    encoder = make()
    before = encoder.fingerprint()
    assert before == make().fingerprint()
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1.0
    assert encoder.fingerprint() != before
    if isinstance(encoder, SmallTextEncoder):
        torch.manual_seed(0)
        assert SmallTextEncoder(vocabulary_size=200, width=32, num_heads=2).fingerprint() != before


def test_vocabulary_is_deterministic_and_splits_unseen_words() -> None:
    first = train_vocabulary(TEXTS, 200)
    assert all(train_vocabulary(TEXTS, 200) == first for _ in range(5))
    transform = TextTransform(first)
    assert transform.vocabulary_size <= 200
    sample = transform("castlegarden")
    assert sample is not None and transform.tokenizer.token_to_id("[UNK]") not in sample.tolist()


def test_transform_joins_fields_cuts_and_pickles(transform: TextTransform) -> None:
    joined = transform({"title": "red king", "plot": " ", "tag": "ghost"})
    assert joined is not None and torch.equal(joined, transform("red king. ghost"))
    assert transform("  ") is None and transform({}) is None
    short = TextTransform(transform.tokenizer_json, max_length=5)
    assert short.fingerprint() != transform.fingerprint()
    cut = pickle.loads(pickle.dumps(short))(TEXTS[0])
    assert cut is not None and len(cut) == 5


def test_padding_written_in_the_tokeniser_file_is_ignored(transform: TextTransform) -> None:
    document = json.loads(transform.tokenizer_json)
    document["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    document["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    other = TextTransform(json.dumps(document))
    for text in ("red", TEXTS[0]):
        mine, plain = other(text), transform(text)
        assert mine is not None and plain is not None and torch.equal(mine, plain)


def test_folder_round_trips_and_drops_the_pooler(tmp_path: Path, transform: TextTransform) -> None:
    encoder = make_bert()
    full = BertModel(encoder.model.config)
    full.load_state_dict(encoder.model.state_dict(), strict=False)
    full.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(transform.tokenizer_json)
    loaded = TextEncoder.from_folder(tmp_path)
    inputs = TextTransform.from_folder(tmp_path).collate([transform(TEXTS[0])])
    assert torch.equal(loaded(inputs).values, encoder(inputs).values)
    assert not any("pooler" in name for name, _ in loaded.named_parameters())


def test_fingerprint_is_the_same_loaded_or_rebuilt_from_its_config(tmp_path: Path) -> None:
    """A run is rebuilt from its config, and must find the states that the loaded model made."""
    encoder = make_bert()
    encoder.model.save_pretrained(tmp_path)
    loaded = TextEncoder.from_folder(tmp_path)
    arguments = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    arguments.pop("model_type")
    rebuilt = TextEncoder(BertModel(BertConfig(**arguments)))
    rebuilt.load_state_dict(loaded.state_dict())
    assert rebuilt.fingerprint() == loaded.fingerprint()


def test_what_cannot_be_used_is_refused(tmp_path: Path, transform: TextTransform) -> None:
    with pytest.raises(ValueError, match="no tokenizer.json"):
        TextTransform.from_folder(tmp_path)
    with pytest.raises(ValueError, match="cannot load a text model"):
        TextEncoder.from_folder(tmp_path)
    both = T5Config(vocab_size=9, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="t5.*an encoder with a decoder"):
        TextEncoder(T5Model(both))
    small = SmallTextEncoder(vocabulary_size=200, width=32, max_length=20)
    inputs = transform.collate([transform(TEXTS[0])])
    with pytest.raises(ValueError, match="at most 20: lower max_length"):
        small(inputs)
    with pytest.raises(ValueError, match="does not divide"):
        SmallTextEncoder(vocabulary_size=9, width=30)


def test_attention_of_the_small_encoder_equals_torch() -> None:
    block = make_small_text().blocks[0]
    states = torch.randn(2, 7, 32)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    reference = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    linear1, linear2 = block.feed_forward[1], block.feed_forward[3]
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": block.query_key_value.weight,
            "self_attn.in_proj_bias": block.query_key_value.bias,
            "self_attn.out_proj.weight": block.output.weight,
            "self_attn.out_proj.bias": block.output.bias,
            "linear1.weight": linear1.weight, "linear1.bias": linear1.bias,
            "linear2.weight": linear2.weight, "linear2.bias": linear2.bias,
            "norm1.weight": block.attention_norm.weight, "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.feed_forward[0].weight, "norm2.bias": block.feed_forward[0].bias,
        }
    )  # fmt: skip
    expected = reference.train()(states, src_key_padding_mask=~mask)
    torch.testing.assert_close(block(states, mask)[mask], expected[mask], atol=1e-5, rtol=1e-5)


# causal models


def test_causal_model_is_summed_up_by_its_last_piece_on_either_side_of_the_padding(
    transform: TextTransform,
) -> None:
    encoder = make_gpt()
    samples = [transform(" ".join(WORDS[:n])) for n in (3, 9)]
    inputs = transform.collate(samples)
    alone = [
        encoder.model(input_ids=each[None]).last_hidden_state[0, -1]
        for each in samples
        if each is not None
    ]
    right = encoder.pooled(encoder(inputs))
    torch.testing.assert_close(right, torch.stack(alone), atol=1e-5, rtol=1e-5)
    length = inputs["mask"].shape[1]
    left = {name: each.clone() for name, each in inputs.items()}
    moved = length - int(inputs["mask"][0].sum())
    for name in ("token_ids", "mask"):
        left[name][0] = left[name][0].roll(moved)
    assert not bool(left["mask"][0, 0])
    torch.testing.assert_close(encoder.pooled(encoder(left)), right, atol=1e-5, rtol=1e-5)


def test_last_token_is_kept_and_the_others_are_pooled() -> None:
    values = torch.randn(4, 9, 3)
    mask = torch.tensor([[0] * 2 + [1] * 7, [1] * 2 + [0] * 7, [1] + [0] * 8, [0] * 9]).bool()
    found = pool_before_last(masked(values, mask), 4)
    assert found.mask.tolist() == [[True] * 4, [True, True, False, False], [True] + [False] * 3,
                                   [False] * 4]  # fmt: skip
    assert torch.equal(found.values[0, 3], values[0, 8])
    assert torch.equal(found.values[1, :2], values[1, :2])
    assert torch.equal(found.values[2, 0], values[2, 0]) and not found.values[3].any()
    before = pool_tokens(masked(values[:1, 2:8], mask[:1, 2:8]), 3)
    torch.testing.assert_close(found.values[0, :3], before.values[0])
    single = pool_before_last(masked(values, mask), 1)
    assert torch.equal(single.values[0, 0], values[0, 8]) and not single.mask[3].any()


def test_causal_models_are_taken_whole() -> None:
    with pytest.raises(ValueError, match="cannot be cut between blocks: allowed are 0 and all"):
        make_gpt().cut_at(1)


# long texts, in chunks


def in_chunks(make, max_chunks: int) -> TextEncoder:
    encoder = make()
    encoder.max_length, encoder.max_chunks = 16, max_chunks
    return encoder


@pytest.mark.parametrize("make", [make_bert, make_distilbert, make_gpt])
def test_each_chunk_is_read_by_itself(make) -> None:
    vocabulary = train_vocabulary(TEXTS, 200)
    long = TextTransform(vocabulary, max_length=16, max_chunks=5)
    sample, short = long(" ".join(WORDS * 4)), long("quiet river")
    assert sample is not None and short is not None and 33 < len(sample) <= 80
    encoder = in_chunks(make, 5)
    states = encoder.begin(long.collate([sample, short]))
    values, _ = encoder.run(states, 0, len(encoder.stack))
    for start in range(0, len(sample), 16):
        piece = sample[start : start + 16]
        alone, _ = encoder.run(encoder.begin(long.collate([piece])), 0, len(encoder.stack))
        found = values[0, start : start + len(piece)]
        torch.testing.assert_close(found, alone[0], atol=1e-5, rtol=1e-5)
    tokens = encoder(long.collate([sample, None, short]))
    assert tokens.mask.sum(1).tolist() == [32, 0, len(short)]
    torch.testing.assert_close(
        tokens.values[2:], encoder(long.collate([short])).values, atol=1e-5, rtol=1e-5
    )


def test_split_equals_whole_in_chunks_too() -> None:
    long = TextTransform(train_vocabulary(TEXTS, 200), max_length=16, max_chunks=5)
    inputs = long.collate([long(" ".join(WORDS * 4)), None, long("quiet river")])
    encoder = in_chunks(make_bert, 5).eval()
    whole = encoder(inputs)
    encoder.cut_at(1)
    assert encoder.state_tokens == 80
    states = encoder.below(inputs)
    torch.testing.assert_close(encoder.above(states).values, whole.values, atol=1e-5, rtol=1e-5)


def test_what_stands_at_the_end_of_a_long_text_is_found_in_chunks_alone() -> None:
    vocabulary = train_vocabulary(TEXTS, 200)
    refrain = " ".join(WORDS[:8] * 60)
    ends = ["violin desert market winter " * 8, "island robot garden ghost " * 8]
    queries = ["violin desert market winter", "island robot garden ghost"]

    def similarities(max_chunks: int) -> torch.Tensor:
        transform = TextTransform(vocabulary, max_length=64, max_chunks=max_chunks)
        encoder = make_bert()
        encoder.max_length, encoder.max_chunks = 64, max_chunks

        def vectors(texts: list[str]) -> torch.Tensor:
            pooled = encoder.pooled(encoder(transform.collate([transform(t) for t in texts])))
            return torch.nn.functional.normalize(pooled - pooled.mean(0), dim=1)

        with torch.no_grad():
            return vectors(queries) @ vectors([f"{refrain} {end}" for end in ends]).T

    chunked = similarities(40)
    assert bool((chunked.argmax(1) == torch.arange(2)).all())
    cut_off = TextTransform(vocabulary, max_length=64)
    assert torch.equal(*(cut_off(f"{refrain} {end}") for end in ends))  # nothing of the end is left


def test_chunks_are_in_the_fingerprint() -> None:
    vocabulary = train_vocabulary(TEXTS, 200)
    one, two = TextTransform(vocabulary), TextTransform(vocabulary, max_chunks=2)
    assert one.fingerprint() != two.fingerprint()
