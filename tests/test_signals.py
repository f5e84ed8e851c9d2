"""Signals: what is told of events, requests and users, from the log to what a model makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from made_tables import things, write_tables
from torch import Tensor

from data_prep.prepare import prepare
from data_prep.shards import UNKNOWN_TIME, History, PreparedData
from encoders.attributes import FieldSpec
from fusion.history import HistoryEncoder
from fusion.signals import Facts, Modulation, SignalEncoder, Signals
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.signals import SignalReader, SignalSpec, clock
from mmrec.data.told import (
    Told,
    a_request,
    columns_of,
    join_columns,
    times_before,
    unknown_events,
)
from mmrec.errors import ConfigError, UserError
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.train import train
from mmrec.training.validate import case_vectors

pytestmark = pytest.mark.usefixtures("restored_torch")

SPEC = SignalSpec(
    event_types=("view", "buy"),
    value_knots=(1.0, 3.0, 5.0),
    gap_knots=(0.0, 5.0, 10.0),
    context=(FieldSpec("device", "category", values=("phone", "desktop")),),
    users=(
        FieldSpec("region", "category", values=("north",)),
        FieldSpec("hobbies", "set", values=("chess", "golf")),
        FieldSpec("age", "number", knots=(20.0, 40.0)),
    ),
)
ALL = {"events": True, "values": True, "times": True, "context": True, "users": True}
NUM_ITEMS, NUM_USERS, WIDTH = 12, 24, 16
MONDAY = 1_700_438_400  # 2023-11-20 00:00 UTC


def dense(facts: Facts, num_columns: int) -> Tensor:
    """(n, C): the rows of a sparse matrix."""
    table = torch.zeros(len(facts), num_columns)
    return table.scatter_add(1, facts.columns, facts.weights)


def a_history(n: int = 4, **changes: Any) -> History:
    columns: dict[str, Any] = {
        "time": MONDAY + 3600 * np.arange(n),
        "event": np.arange(n).astype(np.int16) % 2,
        "value": np.full(n, 2.0, np.float32),
        "context": {"device": ["phone", "desktop", "watch", None][:n]},
    }
    return History(user_index=0, item_index=np.arange(n), **{**columns, **changes})


def test_an_empty_history_leaves_the_times_of_others_alone() -> None:
    empty, other = columns_of(a_history(0)), columns_of(a_history(3))
    assert len(times_before(empty.time)) == 0
    together = join_columns([empty, other])
    assert np.array_equal(together.before, times_before(other.time))
    assert len(together.before) == len(together) == 3


def test_an_event_has_a_column_for_each_thing_known() -> None:
    facts = dense(SignalReader(SPEC).events(columns_of(a_history())), SPEC.num_event_columns)
    # types: view, buy, not known
    assert facts[:, :3].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    # a value of 2 lies halfway between the knots 1 and 3; no event lacks one
    assert facts[:, 3:7].tolist() == [[0.5, 0.5, 0, 0]] * 4
    # the first event has no gap; an hour is log(3601) = 8.19, between the knots 5 and 10
    share = (np.log1p(3600) - 5) / 5
    assert facts[0, 7:11].tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(facts[1:, 7:11], [[0, 1 - share, share, 0]] * 3, rtol=1e-6)
    # behind six waves: no time; then phone, desktop, another, none
    assert facts[:, 17].tolist() == [0] * 4
    assert facts[:, 18:].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_what_is_not_known_has_columns_of_its_own() -> None:
    bare = columns_of(a_history(2, time=None, event=None, value=None, context=None))
    facts = dense(SignalReader(SPEC).events(bare), SPEC.num_event_columns)
    assert facts.nonzero()[:, 1].tolist() == [2, 6, 10, 17, 21] * 2
    silent = columns_of(a_history(2)).without(np.array([True, True]))
    assert torch.equal(dense(SignalReader(SPEC).events(silent), SPEC.num_event_columns), facts)


def test_hours_and_weekdays_turn() -> None:
    def place(hour: float, day: int = 0) -> np.ndarray:
        return np.array(clock(np.array([int(MONDAY + day * 86_400 + hour * 3600)])))[:, 0]

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.linalg.norm(first - second))

    assert distance(place(23), place(0)) < distance(place(23), place(12))
    assert distance(place(23), place(0)) == pytest.approx(distance(place(11), place(12)))
    # Sunday lies next to Monday, as Tuesday does
    assert distance(place(9, 6), place(9, 0)) == pytest.approx(distance(place(9, 1), place(9, 0)))
    assert np.allclose(place(0)[[0, 2, 4]], 0)  # Monday midnight is where the circles begin


def test_users_have_a_row_a_field() -> None:
    facts = SignalReader(SPEC).users(
        [{"region": "north", "hobbies": ["chess", "golf"], "age": 30.0}, {"region": "moon"}]
    )
    found = dense(facts, SPEC.num_user_columns)
    half = 0.5**0.5
    # region: north, another, none; hobbies: chess, golf, another, none; age: 20, 40, none
    assert found[0].tolist() == [1, 0, 0] + [0] * 7
    np.testing.assert_allclose(found[1], [0, 0, 0, half, half, 0, 0, 0, 0, 0], rtol=1e-6)
    assert found[2].tolist() == [0] * 7 + [0.5, 0.5, 0]
    assert found[3:].nonzero()[:, 1].tolist() == [1, 6, 9]
    # a request's word in the place of a number is no number, and no traceback
    assert SignalReader(SPEC).users([{"age": "old"}]).columns[2, 0] == 9


def test_a_spec_is_read_back_from_its_document() -> None:
    assert SignalSpec.from_document(json.loads(json.dumps(SPEC.document()))) == SPEC


def test_a_model_that_learnt_nothing_of_signals_is_the_model_without() -> None:
    modulation = Modulation(7, WIDTH)
    vectors = torch.randn(5, WIDTH)
    facts = Facts(torch.randint(7, (5, 3)), torch.rand(5, 3))
    assert torch.equal(modulation(vectors, facts), vectors)
    torch.nn.init.normal_(modulation.table.weight)
    scale, shift = (dense(facts, 7) @ modulation.table.weight).chunk(2, dim=1)
    torch.testing.assert_close(modulation(vectors, facts), vectors * (1 + scale) + shift)


def signals_of(told: Told) -> Signals:
    return SignalReader(SPEC).signals(told)


def some_model() -> tuple[HistoryEncoder, SignalEncoder]:
    torch.manual_seed(0)
    learnt = SignalEncoder(
        WIDTH,
        event_columns=SPEC.num_event_columns,
        request_columns=SPEC.num_request_columns,
        user_columns=SPEC.num_user_columns,
        user_fields=len(SPEC.users),
    )
    for each in (learnt.events, learnt.requests):
        assert each is not None
        torch.nn.init.normal_(each.table.weight, std=0.3)
    history = HistoryEncoder(
        WIDTH, max_length=8, num_blocks=2, num_heads=2, dropout=0.0, num_head_tokens=3
    )
    return history.eval(), learnt


def states_of(told: Told, items: Tensor, offsets: Tensor) -> Tensor:
    history, learnt = some_model()
    signals = signals_of(told)
    assert learnt.events is not None and learnt.requests is not None and learnt.users is not None
    assert signals.events is not None and signals.users is not None
    shown = learnt.events(items, signals.events)
    head = learnt.users(signals.users)
    requests = signals.requests

    def ask(states: Tensor) -> Tensor:
        assert learnt.requests is not None and requests is not None
        return learnt.requests(states, requests)

    return history(shown, offsets, head, ask=ask)


def test_no_state_knows_of_later_events_or_requests() -> None:
    """A request changes what is asked then and nothing else; an event all that follows it."""
    items, offsets = torch.nn.functional.normalize(torch.randn(7, WIDTH), dim=1), [0, 4, 7]
    columns = join_columns([columns_of(a_history(4)), columns_of(a_history(3))])
    requests = join_columns([columns_of(a_history(4)), columns_of(a_history(3))])
    told = Told(columns, requests, [{"region": "north"}, {"age": 30.0}])
    known = states_of(told, items, torch.tensor(offsets))

    hidden = np.arange(7) == 2  # the third event of the first user
    other = states_of(replace(told, events=columns.without(hidden)), items, torch.tensor(offsets))
    changed = ~torch.isclose(other, known, atol=1e-6).all(dim=1)
    assert changed.tolist() == [False, False, True, True, False, False, False]
    other = states_of(
        replace(told, requests=requests.without(hidden)), items, torch.tensor(offsets)
    )
    changed = ~torch.isclose(other, known, atol=1e-6).all(dim=1)
    assert changed.tolist() == [False, False, True, False, False, False, False]
    other = states_of(replace(told, attributes=[{}, {"age": 30.0}]), items, torch.tensor(offsets))
    changed = ~torch.isclose(other, known, atol=1e-6).all(dim=1)
    assert changed.tolist() == [True] * 4 + [False] * 3


def test_a_users_vector_does_not_depend_on_who_else_is_asked() -> None:
    items = torch.nn.functional.normalize(torch.randn(7, WIDTH), dim=1)
    both = [columns_of(a_history(4)), columns_of(a_history(3))]
    told = Told(join_columns(both), join_columns(both), [{"region": "north"}, {"age": 30.0}])
    known = states_of(told, items, torch.tensor([0, 4, 7]))
    alone = Told(both[1], both[1], [{"age": 30.0}])
    torch.testing.assert_close(states_of(alone, items[4:], torch.tensor([0, 3])), known[4:])


def write_shop(source: Path) -> Path:
    """A shop whose log and users say everything there is to say."""
    random = np.random.default_rng(0)
    log = []
    for user in range(NUM_USERS):
        for step, item in enumerate(random.permutation(NUM_ITEMS)[: 4 + user % 8]):
            when = MONDAY + 86_400 * step + int(random.integers(86_400))
            row = (f"u{user}", f"i{item}", when, "buy" if step % 2 else "view", 1 + step % 5)
            log.append((*row, ["phone", "desktop", ""][int(random.integers(3))]))
    names = ["user", "item", "at", "what", "stars", "device"]
    users = [
        {"user": f"u{user}", "region": ["north", "south", ""][user % 3], "age": 20 + user}
        for user in range(NUM_USERS)
    ]
    attributes = {"region": {"type": "category"}, "age": {"type": "number"}}
    told = {"time": "at", "event": "what", "value": "stars", "context": ["device"]}
    return write_tables(
        source,
        items=things(NUM_ITEMS),
        log=pl.DataFrame(log, names, orient="row"),
        users=pl.DataFrame(users),
        catalogue={
            "name": "shop",
            "kind": "shop",
            "repeats": "forbid",
            "users": {"attributes": attributes},
            "interactions": told,
        },
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def shop_config(start: bool = True, **signals: Any) -> Config:
    return parse_config(
        {
            "name": "shop",
            "data": {"max_history": 8},
            "model": {
                "item": "id",
                "width": WIDTH,
                "history": {"num_blocks": 1, "num_heads": 2, "start": start},
                "signals": signals,
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 6,
                "warmup_steps": 1,
                "learning_rate": 0.01,
                "precision": "fp32",
            },
        }
    )


@pytest.fixture(scope="module")
def shop_run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shop_run") / "run"
    train(shop_config(**ALL), shop, run)
    return run


def test_any_number_of_ranks_and_workers_is_told_the_same(shop: Path) -> None:
    whole = assemble(shop_config(**ALL), shop).stream
    halves = [assemble(shop_config(**ALL), shop, rank=rank, world=2).stream for rank in (0, 1)]
    epoch = list(batch_loader(whole, epoch=1, first_batch=0, num_workers=0))
    parts = [list(batch_loader(each, epoch=1, first_batch=0, num_workers=2)) for each in halves]
    for batch, *ours in zip(epoch, *parts, strict=True):
        told = []
        for rank, part in enumerate(ours):
            assert part.signals is not None and batch.signals is not None
            for number in range(len(part.offsets) - 1):
                own = slice(*part.offsets[number : number + 2].tolist())
                whole_own = slice(*batch.offsets[2 * number + rank :][:2].tolist())
                assert torch.equal(part.inputs[own], batch.inputs[whole_own])
                for kind in ("events", "requests"):
                    mine, theirs = getattr(part.signals, kind), getattr(batch.signals, kind)
                    assert torch.equal(mine[own].columns, theirs[whole_own].columns)
                    assert torch.equal(mine[own].weights, theirs[whole_own].weights)
                told.append(own)
        assert len(told) == len(batch.offsets) - 1


def test_a_start_is_the_first_input_and_the_first_event_a_target(shop: Path) -> None:
    stream = assemble(shop_config(**ALL), shop).stream
    starts = 0
    for batch in batch_loader(stream, epoch=0, first_batch=0, num_workers=0):
        first = batch.offsets[:-1]
        begins = batch.inputs[first] == stream.item_index_of.shape[0]
        starts += int(begins.sum())
        assert int((batch.inputs == stream.item_index_of.shape[0]).sum()) == int(begins.sum())
        # what follows a start is the item that is asked for there
        behind = first[begins & (batch.offsets[1:] - first > 1)] + 1
        assert torch.equal(batch.inputs[behind], batch.targets[behind - 1])
    assert starts == len(stream.histories.lengths)


def test_training_validation_and_use_tell_the_same(shop: Path, shop_run: Path) -> None:
    """The vector of a case is that of the same user asked by hand, in the run and in a bundle."""
    loaded = load_run(shop_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, _ = case_vectors(loaded.model, cases, None, loaded.item_index_of)
    out = shop_run.parent / "out"
    export_run(shop_run, out, bundle=True)
    types = list(loaded.data.manifest["event_types"])
    for path in (shop_run, out / "bundle"):
        recommender = Recommender.load(path)
        for row in (0, 5, 17):
            user_index = int(cases.user_index[row])
            complete = recommender.retriever.users.complete(user_index)
            position = len(cases.history[row])
            assert complete.time is not None and complete.event is not None
            assert complete.value is not None and complete.context is not None
            asked = recommender.retriever.given_user(
                [
                    (
                        loaded.item_ids[int(complete.item_index[place])],
                        types[int(complete.event[place])],
                        float(complete.time[place]),
                        float(complete.value[place]),
                    )
                    for place in range(position)
                ],
                attributes=recommender.retriever.users.attributes(user_index),
            )
            # a given history carries no context of its events: those of the stored one are put in
            device = np.array(complete.context["device"][: position + 1], object)
            asked.events.context["device"][:] = device[:-1]
            request = a_request(time=float(complete.time[position]), context={"device": device[-1]})
            asked = replace(asked, request=replace(request, before=asked.events.time[-1:]))
            vector = recommender.retriever.user_vectors([asked])[0]
            torch.testing.assert_close(vector, users[row, :-1], atol=1e-5, rtol=0)
        stored = [recommender.retriever.stored_user(row) for row in range(NUM_USERS)]
        if path == shop_run:
            vectors = recommender.retriever.user_vectors(stored)
        else:
            torch.testing.assert_close(recommender.retriever.user_vectors(stored), vectors)


def test_users_without_events_are_asked_by_what_is_known_of_them(shop_run: Path) -> None:
    recommender = Recommender.load(shop_run)
    north, south = (
        recommender.recommend(attributes={"region": region}) for region in ("north", "south")
    )
    assert north[0].basis == south[0].basis == "attributes"
    assert [each.score for each in north] != [each.score for each in south]
    at_night = recommender.recommend(time=MONDAY + 3 * 3600, context={"device": "phone"})
    assert at_night[0].basis == "request"
    assert recommender.recommend()[0].basis == "popularity"
    assert recommender.recommend(history=["i1"])[0].basis == "history"
    # no more than what is asked about depends on the request
    day, night = (
        recommender.recommend(history=["i1", "i2"], time=MONDAY + hour * 3600) for hour in (12, 0)
    )
    assert {each.item_id for each in day} == {each.item_id for each in night}
    assert [each.score for each in day] != [each.score for each in night]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"attributes": {"zip": "1"}}, "attribute 'zip' is none of the users': .* age, region"),
        ({"context": {"place": "home"}}, "context 'place' is no column of the log; .* device"),
        (
            {"history": [("i1", "steal", None)]},
            "event type 'steal' is none of the log's: buy, view",
        ),
        ({"user_id": "u1", "attributes": {"age": 3}}, "user_id and attributes are both given"),
    ],
)
def test_a_wrong_question_is_told_what_is_allowed(
    shop_run: Path, question: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Recommender.load(shop_run).recommend(**question)


def test_signals_that_the_data_lack_are_refused(tiny_source_data: Path) -> None:
    for name in ALL:
        with pytest.raises(ConfigError, match=rf"model.signals.{name} is True, but the catalogue"):
            assemble(shop_config(**{name: True}), tiny_source_data)


@pytest.fixture(scope="module")
def tiny_source_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop by a catalogue file that names items and their order alone."""
    folder = tmp_path_factory.mktemp("bare")
    catalogue = write_shop(folder / "source")
    document = yaml.safe_load(catalogue.read_text())
    del document["users"]
    document["interactions"] = {
        "table": "log.csv", "user": "user", "item": "item", "order": "at"
    }  # fmt: skip
    catalogue.write_text(yaml.safe_dump(document))
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def test_a_named_attribute_can_be_left_out(shop: Path) -> None:
    spec = assemble(shop_config(users=["age"]), shop).model.reader
    assert spec is not None and [field.name for field in spec.spec.users] == ["age"]
    with pytest.raises(ConfigError, match="model.signals.users names 'gender'; the catalogue has"):
        assemble(shop_config(users=["gender"]), shop)


def test_what_is_told_of_an_item_that_training_holds_out_is_not_told(shop: Path) -> None:
    """The gap before an event is to the last event that the model is shown."""
    data = PreparedData.open(shop)
    cases = load_cases(data, data.split(), "test")
    assert cases.told is not None
    for row in range(len(cases)):
        own = slice(*cases.history.offsets[row : row + 2].tolist())
        time, before = cases.told.events.time[own], cases.told.events.before[own]
        assert before[0] == UNKNOWN_TIME and before[1:].tolist() == time[:-1].tolist()
        assert cases.told.requests.before[row] == time[-1]
        assert cases.told.requests.time[row] > time[-1]
    some = cases.take(np.array([3, 1]))
    assert some.told is not None
    own = slice(*cases.history.offsets[3:5].tolist())
    assert some.told.events.time[: len(some.history[0])].tolist() == (
        cases.told.events.time[own].tolist()
    )


def test_unknown_events_join_with_known_ones() -> None:
    joined = join_columns([unknown_events(1, ["device"]), columns_of(a_history(2))])
    assert joined.context["device"].tolist() == [None, "phone", "desktop"]
    assert joined.time.tolist() == [UNKNOWN_TIME, MONDAY, MONDAY + 3600]


def test_targets_weigh_by_the_type_of_their_event(shop: Path) -> None:
    config = shop_config(events=True).model_dump(mode="json")
    config["training"]["event_weights"] = {"buy": 3.0}
    stream = assemble(parse_config(config), shop).stream
    batch = next(iter(batch_loader(stream, epoch=0, first_batch=0, num_workers=0)))
    assert batch.weights is not None and set(batch.weights.tolist()) == {1.0, 3.0}
    assert batch.total_weight == pytest.approx(float(batch.weights[batch.counted].sum()))
    # in this log every second event is bought, the first is viewed
    for number in range(len(batch.offsets) - 1):
        own = slice(*batch.offsets[number : number + 2].tolist())
        if int(batch.inputs[own][0]) == stream.item_index_of.shape[0]:
            assert batch.weights[own][:2].tolist() == [1.0, 3.0]
    config["training"]["event_weights"] = {"steal": 3.0}
    with pytest.raises(ConfigError, match="event_weights names 'steal'; .* buy, view"):
        assemble(parse_config(config), shop)
