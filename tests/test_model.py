"""The id part, popularity, the score, and vectors of whole catalogues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.history import HistoryEncoder
from fusion.item import MeanFusion, Modality
from mmrec.data.batch import ModalityInput
from mmrec.data.histories import IntArray
from mmrec.data.ragged import Ragged
from mmrec.model import IdPart, Popularity, RecommenderModel
from mmrec.vectors import ItemVectors, encode_content, item_vectors, score_vectors, user_vectors

D, R = 8, 6
COUNTS = torch.tensor([1, 2, 5, 10, 100, 1000])


def unit_rows(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_id_part(*, bound: float = 1.0, gate: float = 10.0, alone: bool = False) -> IdPart:
    torch.manual_seed(0)
    part = IdPart(COUNTS, width=D, bound=bound, gate=gate, alone=alone)
    return part


def trained(part: IdPart, size: float = 1.0) -> IdPart:
    """With learned vectors of a given length."""
    with torch.no_grad():
        part.table.weight.copy_(unit_rows(R, seed=5) * size)
    return part


class Above(nn.Module):
    """An encoder whose cut lies before a doubling: cached states and raw inputs differ by it."""

    def above(self, states: Tokens) -> Tokens:
        return Tokens(2 * states.values, states.mask)

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        return self.above(Tokens(inputs["values"], inputs["mask"]))


class Media:
    """Content of an item from its number alone."""

    def __init__(self, *, cached: bool = True) -> None:
        self.cached, self.calls = cached, 0
        self.values = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(2))

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        self.calls += 1
        values = self.values[item_index]
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        media: ModalityInput = {"values": values, "mask": mask}
        return {"vector.own": Tokens(values, mask) if self.cached else media}


def make_model(*, item: str = "both", popularity: bool = True, **changes: Any) -> RecommenderModel:
    torch.manual_seed(0)
    id_part = None if item == "content" else make_id_part(alone=item == "id")
    fusion = None if item == "id" else MeanFusion({"vector.own": Modality(3, 2)}, width=D)
    settings: dict[str, Any] = {
        "encoders": {} if item == "id" else {"vector.own": Above()},
        "cached": frozenset({"vector.own"}),
        "fusion": fusion,
        "id_part": id_part,
        "popularity": Popularity(COUNTS) if popularity else None,
        "history": HistoryEncoder(D, max_length=4, num_blocks=1, num_heads=2, dropout=0.5),
        "counts": COUNTS,
        "temperature": 0.1,
        "min_temperature": 0.05,
    }
    model = RecommenderModel(**{**settings, **changes})
    if model.popularity is not None:
        with torch.no_grad():
            model.popularity.coefficients.copy_(torch.tensor([1.0, 0.5]))
    return model


# id part


def test_untrained_row_is_exactly_its_content() -> None:
    content = unit_rows(R)
    assert torch.allclose(make_id_part()(content), content, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("bound", [0.25, 1.0])
@pytest.mark.parametrize("gate", [0.0, 10.0])
def test_embedding_equals_the_formula(size: float, bound: float, gate: float) -> None:
    content, part = unit_rows(R), trained(make_id_part(bound=bound, gate=gate), size)
    embeddings = part(content)
    for row, n in enumerate(COUNTS.tolist()):
        delta = part.table.weight[row].detach()
        g = n / (n + gate)
        wanted = content[row] + g * bound * delta / max(1.0, float(delta.norm()))
        torch.testing.assert_close(embeddings[row], wanted / wanted.norm())
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(R))


def test_gate_grows_with_the_count_and_shuts_at_none() -> None:
    content, part = unit_rows(R), trained(make_id_part(bound=0.5))
    cosine = (part(content) * content).sum(-1)
    others = trained(make_id_part(bound=0.5))
    others.counts.fill_(10.0)
    same_gate = (others(content) * content).sum(-1)
    assert (cosine[:3] > same_gate[:3]).all() and (cosine[4:] < same_gate[4:]).all()
    for gate in (0.0, 10.0):
        part.gate = gate
        part.counts.zero_()
        assert torch.allclose(part(content), content, rtol=0, atol=1e-7)


def test_item_that_is_its_id() -> None:
    part = make_id_part(alone=True)
    torch.testing.assert_close(part(None), F.normalize(part.table.weight, dim=-1))
    assert torch.pdist(part(None)).min() > 0.1  # it starts random, not at zero


# popularity


def test_popularity_is_centred_and_leaves_an_item_without_events_alone() -> None:
    popularity = Popularity(COUNTS)
    with torch.no_grad():
        popularity.coefficients.copy_(torch.tensor([3.0, -7.0]))
    beta = popularity(COUNTS)
    x = [math.log(1 + n) / math.log(1001) for n in COUNTS.tolist()]
    raw = torch.tensor([3 * each - 7 * each * each for each in x])
    torch.testing.assert_close(beta, raw - raw.mean())
    assert beta.mean().item() == pytest.approx(0.0, abs=1e-6)
    # whatever is learned, an unseen item gets what the average item gets
    assert popularity(torch.tensor([0, 0, 5]))[:2].tolist() == [0.0, 0.0]


def test_popularity_starts_at_the_log_of_the_counts() -> None:
    logs = torch.log1p(COUNTS.float())
    torch.testing.assert_close(Popularity(COUNTS)(COUNTS), logs - logs.mean())


def test_offset_counts_in_use_only_and_only_without_events() -> None:
    model = make_model()
    model.offset.fill_(5.0)
    counts = torch.tensor([0, 0, 3])
    assert model.popularity is not None
    beta = model.popularity(counts)
    torch.testing.assert_close(model.train().bias(counts), beta)
    torch.testing.assert_close(model.eval().bias(counts), beta + torch.tensor([5.0, 5.0, 0.0]))


def test_items_without_events_get_what_their_content_lets_expect() -> None:
    model = make_model()
    model.offset.fill_(5.0)
    model.expectation.copy_(torch.linspace(-1, 1, D + 1))
    counts, content = torch.tensor([0, 3, 0]), torch.randn(3, D)
    wanted = 5.0 + content @ torch.linspace(-1, 1, D + 1)[:-1] + 1.0
    assert model.popularity is not None
    beta = model.popularity(counts)
    torch.testing.assert_close(model.train().bias(counts, content), beta)
    bias = model.eval().bias(counts, content)
    torch.testing.assert_close(bias[[0, 2]], wanted[[0, 2]])
    torch.testing.assert_close(bias[1], beta[1])
    torch.testing.assert_close(model.bias_of_new(content), wanted)


def test_popularity_switched_off() -> None:
    model = make_model(popularity=False)
    assert not model.train().bias(COUNTS).any()
    model.offset.fill_(2.0)
    assert model.eval().bias(torch.tensor([0, 4])).tolist() == [2.0, 0.0]


# the model


def test_temperature_has_a_floor() -> None:
    model = make_model()
    assert model.temperature.item() == pytest.approx(0.1)
    model.log_temperature.data.fill_(math.log(0.001))
    assert model.temperature.item() == pytest.approx(0.05)


def test_cached_states_and_raw_inputs_give_one_content() -> None:
    model = make_model().eval()
    items = np.array([3, 1, 3])
    cached, raw = Media().collate(items), Media(cached=False).collate(items)
    assert torch.equal(model.content(cached), model.content(raw))
    states = cached["vector.own"]
    assert isinstance(states, Tokens)
    assert torch.equal(model.tokens(cached)["vector.own"].values, 2 * states.values)


def test_model_of_content_alone_adds_no_id() -> None:
    content = unit_rows(R)
    assert make_model(item="content").embeddings(content) is content


def test_parameter_counts_say_what_trains() -> None:
    model = make_model()
    assert model.fusion is not None
    model.fusion.requires_grad_(False)
    counts = model.parameter_counts()
    assert counts["id"] == {"trainable": R * D, "frozen": 0}
    assert counts["fusion"]["trainable"] == 0 and counts["fusion"]["frozen"] > 0
    assert counts["encoders.vector_own"] == {"trainable": 0, "frozen": 0}


# vectors

ROWS = np.array([2, 3, 5, 7, 11, 13])  # catalogue index of each of the model's rows
N = 16


def make_vectors(model: RecommenderModel) -> ItemVectors:
    content = encode_content(model, Media(), np.arange(N))
    return item_vectors(model, content, ROWS, num_items=N)


def test_content_does_not_depend_on_the_tile() -> None:
    model, media = make_model().train(), Media()
    whole = encode_content(model, media, np.arange(N), tile=100)
    assert media.calls == 1
    tiled = encode_content(model, media, np.arange(N), tile=3)
    torch.testing.assert_close(whole, tiled, rtol=0, atol=1e-6)
    one = encode_content(model, media, np.array([9]))
    torch.testing.assert_close(whole[9:10], one, rtol=0, atol=1e-6)
    assert model.training  # left as it was found
    assert encode_content(model, media, np.arange(0)).shape == (0, D)


def test_item_vectors() -> None:
    model = make_model()
    assert model.id_part is not None
    trained(model.id_part)
    model.offset.fill_(-3.0)
    vectors = make_vectors(model)
    assert vectors.content is not None
    rows = torch.from_numpy(ROWS)
    unseen = torch.ones(N, dtype=torch.bool)
    unseen[rows] = False
    assert torch.equal(vectors.embedding[unseen], vectors.content[unseen])
    moved = (vectors.embedding[rows] - vectors.content[rows]).norm(dim=-1)
    assert (moved > 0.01).all()
    torch.testing.assert_close(vectors.embedding.norm(dim=-1), torch.ones(N))
    assert (vectors.bias[unseen] == -3).all()
    assert model.popularity is not None
    torch.testing.assert_close(vectors.bias[rows], model.popularity(COUNTS))


def test_item_vectors_of_a_model_of_ids() -> None:
    model = make_model(item="id")
    vectors = item_vectors(model, None, ROWS, num_items=N)
    assert vectors.content is None
    torch.testing.assert_close(vectors.embedding[ROWS].norm(dim=-1), torch.ones(R))
    assert vectors.embedding.abs().sum(1).count_nonzero() == R  # zeros where training met nothing


def make_histories() -> Ragged:
    random = np.random.default_rng(0)
    return Ragged.from_rows([random.integers(0, N, length) for length in (3, 0, 9, 1, 4, 3)])


def test_users_do_not_depend_on_the_tile_or_on_each_other() -> None:
    model = make_model().train()
    embedding, histories = make_vectors(model).embedding, make_histories()
    users = user_vectors(model, embedding, histories)
    for tile in (1, 2, 5):
        tiled = user_vectors(model, embedding, histories, tile=tile)
        torch.testing.assert_close(users, tiled, rtol=0, atol=1e-6)
    assert not users[1].any()  # an empty history scores by popularity alone
    lengths = users.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    assert model.training


def test_last_events_of_a_long_history_count() -> None:
    model = make_model().eval()
    embedding, histories = make_vectors(model).embedding, make_histories()
    users = user_vectors(model, embedding, histories)
    last = Ragged.from_rows([histories[2][-4:]])
    torch.testing.assert_close(user_vectors(model, embedding, last)[0], users[2])
    with torch.no_grad():
        direct = model.query(embedding[histories[2]], torch.tensor([0, 9]))[0]
    torch.testing.assert_close(direct, users[2])


def test_product_of_score_vectors_is_cosine_and_bias() -> None:
    model = make_model().eval()
    model.offset.fill_(1.5)
    items = make_vectors(model)
    users = user_vectors(model, items.embedding, make_histories())
    user_side, item_side = score_vectors(model, users, items)
    assert user_side.shape == (6, D + 1) and item_side.shape == (N, D + 1)
    tau = model.temperature.item()
    cosine = users @ items.embedding.T
    torch.testing.assert_close(user_side @ item_side.T, cosine + tau * items.bias)
    # divided by tau these are the logits of training
    logits = users / tau @ items.embedding.T + items.bias
    torch.testing.assert_close(user_side @ item_side.T / tau, logits)
