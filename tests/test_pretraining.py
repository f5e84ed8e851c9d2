"""Text models on the catalogue's own texts: what is hidden, what is measured, what a run reads."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from encoder_families import make_bert, make_distilbert, make_gpt, make_roberta
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from encoders.text import TextEncoder, TextTransform
from mmrec.cli import main
from mmrec.config import Config, dump_config, parse_config
from mmrec.errors import ConfigError, UserError, WeightsError
from mmrec.pretraining.pretrain import Pretraining, pretrain
from mmrec.pretraining.tasks import NOT_ASKED, MaskedLanguage, NextPiece, perplexity
from mmrec.pretraining.texts import Texts
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

CLS, SEP, MASK, PAD = 1, 2, 3, 0
SIZE = 40
NUM_ITEMS = 90
HEROES = "sailor teacher pilot thief doctor farmer singer soldier".split()
FATES = {"north": "frozen sea", "south": "burning sand", "east": "silent wood", "west": "old town"}


# what is hidden


def pieces(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts between [CLS] and [SEP], of which every other one is padded to the length."""
    random = torch.Generator().manual_seed(0)
    token_ids = torch.randint(4, SIZE, (rows, length), generator=random)
    mask = torch.ones(rows, length, dtype=torch.bool)
    token_ids[:, 0], token_ids[:, -1] = CLS, SEP
    token_ids[1::2, length // 2], mask[1::2, length // 2 + 1 :] = SEP, False
    return token_ids.masked_fill(~mask, PAD), mask


def test_a_share_of_each_text_is_chosen_and_80_10_10_of_that() -> None:
    task = MaskedLanguage(mask_id=MASK, special_ids=[PAD, CLS, SEP, MASK], vocabulary_size=SIZE)
    token_ids, mask = pieces(4000, 82)  # 80 pieces of a text, or 40
    inputs, answers = task.draw(token_ids, mask, torch.Generator().manual_seed(1))
    chosen = answers != NOT_ASKED
    assert chosen[0::2].sum(1).eq(12).all() and chosen[1::2].sum(1).eq(6).all()
    assert torch.equal(answers[chosen], token_ids[chosen])
    assert torch.equal(inputs[~chosen], token_ids[~chosen])
    assert not (chosen & (~mask | (token_ids < 4))).any()
    # every place is as likely as the next
    places = chosen[0::2].float().mean(0)[1:-1]
    assert places.sub(0.15).abs().max() < 5 * math.sqrt(0.15 * 0.85 / 2000)
    total = int(chosen.sum())
    masked = inputs[chosen] == MASK
    stayed = inputs[chosen] == token_ids[chosen]
    swapped = inputs[chosen][~masked & ~stayed]
    assert not (swapped < 4).any() and len(swapped.unique()) == SIZE - 4

    def near(count: int, share: float) -> bool:
        return abs(count - share * total) < 4 * math.sqrt(share * (1 - share) * total)

    by_chance = 0.1 / (SIZE - 4)  # a random piece that is the piece itself
    assert near(int(masked.sum()), 0.8)
    assert near(int(stayed.sum()), 0.1 + by_chance)
    assert near(len(swapped), 0.1 - by_chance)


def test_a_short_text_has_one_piece_hidden_and_an_empty_one_none() -> None:
    task = MaskedLanguage(mask_id=MASK, special_ids=[PAD, CLS, SEP, MASK], vocabulary_size=SIZE)
    token_ids = torch.tensor([[CLS, 9, 8, SEP], [CLS, SEP, PAD, PAD]])
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        _, answers = task.draw(token_ids, token_ids != PAD, random)
        assert (answers != NOT_ASKED).sum(1).tolist() == [1, 0]


# what is measured


def test_a_held_out_text_is_asked_for_every_piece_once() -> None:
    task = MaskedLanguage(mask_id=MASK, special_ids=[PAD, CLS, SEP, MASK], vocabulary_size=SIZE)
    token_ids, mask = pieces(6, 20)
    asked = torch.zeros_like(token_ids)
    for inputs, answers in task.held_out(token_ids, mask):
        hidden = answers != NOT_ASKED
        assert torch.equal(inputs == MASK, hidden)
        assert torch.equal(answers[hidden], token_ids[hidden])
        asked += hidden
    assert torch.equal(asked == 1, mask & (token_ids >= 4)) and int(asked.max()) == 1


class Uniform(torch.nn.Module):
    """Every piece is equally likely."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Output", (), {"logits": torch.zeros(*input_ids.shape, SIZE)})


@pytest.mark.parametrize("causal", [False, True], ids=["masked", "causal"])
def test_perplexity_of_knowing_nothing_is_the_number_of_pieces(causal: bool) -> None:
    masked = MaskedLanguage(mask_id=MASK, special_ids=[PAD, CLS, SEP], vocabulary_size=SIZE)
    found = perplexity(Uniform(), NextPiece() if causal else masked, [pieces(3, 9), pieces(2, 5)])
    assert found == pytest.approx(SIZE)


def test_next_pieces_equal_a_slow_loop() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=32,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    model: Any = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.5)
    token_ids, mask = pieces(4, 9)
    terms = []
    with torch.no_grad():
        for row in range(4):
            text = token_ids[row][mask[row]]
            for place in range(1, len(text)):
                logits = model(input_ids=text[None, :place]).logits[0, -1]
                terms.append(float(logits.logsumexp(0) - logits[text[place]]))
    found = perplexity(model, NextPiece(), [(token_ids, mask)])
    assert found == pytest.approx(math.exp(np.mean(terms)), rel=1e-5)
    assert abs(found / SIZE - 1) > 0.05


# a run


def make_tokenizer(texts: list[str]) -> str:
    """Whole words, with BERT's special pieces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    trainer = trainers.WordLevelTrainer(vocab_size=200, special_tokens=special)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return str(tokenizer.to_str())


def text_of(number: int) -> dict[str, str]:
    """A title in the plot, and an end that follows from the beginning: no text is there twice."""
    place = number * 37 % 256
    hero, friend, wind = HEROES[place % 8], HEROES[place // 8 % 8], list(FATES)[place // 64]
    plot = f"Going {wind} the {hero} and a {friend} find the {FATES[wind]}."
    return {"title": f"The {hero}", "plot": plot}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of items with texts alone."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "source").mkdir()
    random = np.random.default_rng(0)
    rows = [{"id": f"i{number}", **text_of(number)} for number in range(NUM_ITEMS)]
    log = [
        (f"u{user}", f"i{item}", position)
        for user in range(30)
        for position, item in enumerate(random.permutation(NUM_ITEMS)[:8])
    ]
    pl.DataFrame(rows).write_csv(folder / "source" / "items.csv")
    pl.DataFrame(log, ["user", "item", "position"], orient="row").write_csv(
        folder / "source" / "log.csv"
    )
    catalogue = {
        "name": "told",
        "kind": "video",
        "items": {"table": "items.csv", "id": "id", "text": ["title", "plot"]},
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "position"},
        "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.1},
    }
    (folder / "catalogue.yaml").write_text(json.dumps(catalogue), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def save_weights(folder: Path, encoder: TextEncoder) -> Path:
    """Weights as a hub has them, without a head."""
    encoder.model.save_pretrained(folder)
    texts = [" ".join(text_of(number).values()) for number in range(NUM_ITEMS)]
    (folder / "tokenizer.json").write_text(make_tokenizer(texts), encoding="utf-8")
    return folder


def configure(weights: Path, **options: int) -> Config:
    text = {"kind": "transformers", "weights": str(weights), "num_tokens": 8}
    text["options"] = {"max_length": 32} | options  # type: ignore[assignment]
    return parse_config(
        {
            "data": {"max_history": 8},
            "encoders": {"text": text},
            "model": {
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2},
                "history": {"num_blocks": 1},
            },
            "training": {"max_epochs": 1, "batch_size": 8, "precision": "fp32"},
        }
    )


FAST = Pretraining(epochs=12, batch_size=8, learning_rate=3e-3)


@pytest.mark.parametrize(
    ("make", "task"),
    [(make_bert, "masked"), (make_distilbert, "masked"), (make_gpt, "causal")],
    ids=["bert", "distilbert", "gpt"],
)
def test_texts_held_out_grow_familiar_and_a_run_reads_the_weights(
    make: Any, task: str, told: Path, tmp_path: Path
) -> None:
    weights, out = save_weights(tmp_path / "weights", make()), tmp_path / "out"
    outcome = pretrain(configure(weights), told, out, FAST)
    assert outcome.task == task and outcome.num_held_out == 4
    # hero, friend and wind are free, all else follows; at first every piece is as likely
    assert outcome.perplexity_before > 30 and outcome.perplexity_after < 5
    assert {"config.json", "model.safetensors", "tokenizer.json", "pretraining.json"} <= {
        each.name for each in out.iterdir()
    }
    written = json.loads((out / "pretraining.json").read_text())
    assert written["perplexity_after"] == outcome.perplexity_after and written["schema"] == 1
    # what lies below the head is what a run starts from
    learnt = load_file(out / "model.safetensors")
    own = TextEncoder.from_folder(out).model.state_dict()
    start = make().model.state_dict()
    for name, each in own.items():
        (full,) = [key for key in learnt if key.endswith(name) and "cls" not in key]
        assert torch.equal(learnt[full], each), name
    assert any(not torch.equal(start[name], each) for name, each in own.items())
    train(configure(out), told, tmp_path / "run")
    assert Recommender.load(tmp_path / "run").similar(text="the sailor", k=3)


def test_it_goes_on_from_its_own_weights(told: Path, tmp_path: Path) -> None:
    """The head is there too, so that the second begins where the first ended."""
    weights = save_weights(tmp_path / "weights", make_bert())
    short = Pretraining(epochs=4, batch_size=8, learning_rate=3e-3)
    first = pretrain(configure(weights), told, tmp_path / "first", short)
    second = pretrain(configure(tmp_path / "first"), told, tmp_path / "second", short)
    assert second.perplexity_before == pytest.approx(first.perplexity_after, rel=1e-5)
    assert second.perplexity_after < first.perplexity_after


def test_the_same_seed_gives_the_same_weights(told: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "weights", make_bert())
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        settings = Pretraining(epochs=1, batch_size=8, learning_rate=3e-3, seed=seed)
        pretrain(configure(weights), told, tmp_path / name, settings)
    tensors = {
        name: load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other")
    }
    assert all(torch.equal(tensors["same"][name], each) for name, each in tensors["one"].items())
    assert any(
        not torch.equal(tensors["other"][name], each) for name, each in tensors["one"].items()
    )


def test_texts_of_cold_items_are_not_read(told: Path) -> None:
    data = PreparedData.open(told)
    transform = TextTransform(make_tokenizer(["a b"]), max_length=32)
    training, held_out = Texts(data, transform).split()
    roles = data.split().items
    cold = {
        item
        for item, role in roles.select("item_index", "role").iter_rows()
        if role.startswith("cold")
    }
    assert cold and held_out and not {*training} & {*held_out}
    assert sorted([*training, *held_out, *cold]) == list(range(NUM_ITEMS))


def test_a_long_text_is_read_in_chunks(told: Path) -> None:
    data = PreparedData.open(told)
    texts = [" ".join(text_of(number).values()) for number in range(NUM_ITEMS)]
    transform = TextTransform(make_tokenizer(texts), max_length=8, max_chunks=2)
    token_ids, mask = Texts(data, transform).read([0, 1])
    assert token_ids.shape == (4, 8) and token_ids[:, 0].eq(CLS).all()
    assert mask[[0, 2]].all()


# the command, and what it refuses


def test_the_command_prints_both_figures(
    told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    weights = save_weights(tmp_path / "weights", make_bert())
    config.write_text(dump_config(configure(weights)))
    words = ["pretrain", str(config), "--data", str(told), "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    assert "pseudo-perplexity of 4 texts held out:" in printed
    assert f"encoders.text.weights={tmp_path / 'one'}" in printed
    assert main([*words, "--out", str(tmp_path / "two"), "--json", "training.seed=3"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["steps"] == 5 and outcome["perplexity_after"] > 1
    assert main([*words, "--out", str(tmp_path / "two")]) == 2
    refused = capsys.readouterr().err.strip()
    assert "holds something already" in refused and "\n" not in refused
    assert main([*words, "--out", str(tmp_path / "x"), "--learning-rate", "0"]) == 2


def test_what_cannot_be_trained_so_is_refused_in_a_line(told: Path, tmp_path: Path) -> None:
    weights, out = save_weights(tmp_path / "weights", make_roberta()), tmp_path / "out"
    long = configure(weights, max_length=400)
    unmasked = save_weights(tmp_path / "unmasked", make_bert())
    document = json.loads((unmasked / "tokenizer.json").read_text())
    document["model"]["vocab"]["[hidden]"] = document["model"]["vocab"].pop("[MASK]")
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != "[MASK]"]
    (unmasked / "tokenizer.json").write_text(json.dumps(document))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    small = parse_config({"encoders": {"text": {}}})
    bare = parse_config({"encoders": {"text": {"kind": "transformers"}}})
    cases: list[tuple[Config, type[UserError], str]] = [
        (long, ConfigError, r"max_length is 400, but .*set .*max_length=299"),
        (configure(unmasked), WeightsError, r"no \[MASK\] or <mask> to hide"),
        (configure(other), WeightsError, r"of type 'vit' tells neither hidden nor next"),
        (configure(tmp_path), WeightsError, r"config.json is missing"),
        (small, ConfigError, r"encoders.text is of kind 'small'.*kind=transformers"),
        (bare, ConfigError, r"of kind 'transformers', weights None: .*weights=NAME"),
    ]
    for config, kind, says in cases:
        with pytest.raises(kind, match=says) as caught:
            pretrain(config, told, out)
        assert "\n" not in str(caught.value)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
