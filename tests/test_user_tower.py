"""The exported user tower: the eager model's vectors at any size, by torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.shards import UNKNOWN_TIME
from encoders.attributes import FieldSpec
from fusion.history import HistoryEncoder
from fusion.signals import SignalEncoder
from mmrec.cli import main
from mmrec.data.ragged import Ragged
from mmrec.data.signals import MAX_MEMBERS, SignalReader, SignalSpec
from mmrec.data.told import EventColumns, Told, times_before
from mmrec.errors import UserError
from mmrec.model import RecommenderModel
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.user_tower import describe_inputs, export_tower
from mmrec.vectors import user_vectors

pytest_plugins = ["tiny_run"]

NUM_ITEMS, WIDTH, MAX_HISTORY = 20, 8, 6
PADDING = ("left", "right", "anywhere")
SHAPES = ((1, 1), (1, 7), (2, 1), (4, 6), (3, MAX_HISTORY + 6), (40, 9), (7, 2), (5, 7), (2, 5))
MODELS: dict[str, dict[str, Any]] = {
    "ligr": {"block": "gated"},
    "sasrec": {"block": "plain"},
    "bert4rec": {"block": "plain", "both_ways": True},
    "hstu with a start": {"block": "pointwise", "start": True},
    "gru behind a domain": {"block": "gru", "num_head_tokens": 1},
    "cnn": {"block": "cnn"},
}
SPEC = SignalSpec(
    event_types=("view", "buy"),
    value_knots=(1.0, 2.5, 4.0),
    gap_knots=(0.0, 5.0, 9.5),
    context=(FieldSpec("device", "category", values=("phone", "desktop")),),
    users=(
        FieldSpec("region", "category", values=("north", "south")),
        FieldSpec("age", "number", knots=(20.0, 30.0, 50.0)),
        FieldSpec("likes", "set", values=("a", "b", "c")),
    ),
)


def make_model(history: dict[str, Any], spec: SignalSpec | None = None) -> RecommenderModel:
    """An untrained model whose learned parts all say something."""
    torch.manual_seed(0)
    num_heads = history.get("num_head_tokens", 0)
    encoder = HistoryEncoder(
        WIDTH, max_length=MAX_HISTORY, num_blocks=1, num_heads=2, dropout=0.1, **history
    )
    signals = None
    if spec is not None:
        signals = SignalEncoder(
            WIDTH,
            event_columns=spec.num_event_columns,
            request_columns=spec.num_request_columns,
            user_columns=spec.num_user_columns,
            user_fields=len(spec.users),
        )
        for parameter in signals.parameters():
            nn.init.normal_(parameter)
    return RecommenderModel(
        encoders={},
        cached=frozenset(),
        fusion=None,
        id_part=None,
        popularity=None,
        history=encoder,
        counts=torch.ones(NUM_ITEMS),
        temperature=0.1,
        min_temperature=0.01,
        domain=bool(num_heads) and spec is None,
        signals=signals,
        reader=None if spec is None else SignalReader(spec),
    ).eval()


def draw_mask(random: np.random.Generator, B: int, L: int, padding: str) -> np.ndarray:
    """Which places hold events: at one end, or anywhere; about a third of the users have none."""
    if padding == "anywhere":
        return random.random((B, L)) < random.choice([0.0, 0.5, 1.0], (B, 1))
    lengths = random.integers(0, L + 1, (B, 1)) * (random.random((B, 1)) > 0.3)
    place = np.arange(L)
    return place < lengths if padding == "right" else place >= L - lengths


SLOW = ("sasrec", "gru behind a domain")  # the block of bert4rec, and one that runs step by step


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] if each in SLOW else []) for each in MODELS],
)
def test_the_graph_is_the_model(name: str) -> None:
    model = make_model(MODELS[name])
    tower = export_tower(model).module()
    random = np.random.default_rng(0)
    vectors = nn.functional.normalize(torch.randn(NUM_ITEMS, WIDTH), dim=-1)
    for (B, L), padding in zip(SHAPES, cycle(PADDING), strict=False):
        mask = draw_mask(random, B, L, padding)
        items = random.integers(0, NUM_ITEMS, (B, L))
        histories = Ragged.from_rows([row[own] for row, own in zip(items, mask, strict=True)])
        expected = user_vectors(model, vectors, histories)
        shown = vectors[torch.from_numpy(items)].clone()
        shown[torch.from_numpy(~mask)] = torch.nan  # what padding holds is nobody's business
        users = tower(item_vectors=shown, is_event=torch.from_numpy(mask))
        assert torch.allclose(users, expected, atol=1e-5), (B, L, padding)
        if model.history.start is None:
            assert not users[torch.from_numpy(~mask.any(1))].any()


def unknown_or(random: np.random.Generator, values: np.ndarray, unknown: float) -> np.ndarray:
    """Some of the values, not known."""
    return np.where(random.random(values.shape) < 0.2, unknown, values)


@pytest.mark.slow
def test_the_graph_reads_signals_as_the_model_does() -> None:
    history = {"block": "gated", "start": True, "num_head_tokens": len(SPEC.users)}
    model = make_model(history, SPEC)
    tower = export_tower(model).module()
    random = np.random.default_rng(1)
    vectors = nn.functional.normalize(torch.randn(NUM_ITEMS, WIDTH), dim=-1)
    B, L = 60, MAX_HISTORY + 3
    mask = draw_mask(random, B, L, "left")
    items = random.integers(0, NUM_ITEMS, (B, L))
    event = unknown_or(random, random.integers(0, 2, (B, L)), -1)
    value = unknown_or(random, random.uniform(0, 5, (B, L)), np.nan).astype(np.float32)
    time = unknown_or(random, 10**9 + random.integers(0, 9**7, (B, L)).cumsum(1), UNKNOWN_TIME)
    asked = unknown_or(random, 10**9 + 9**8 + random.integers(0, 9**6, B), UNKNOWN_TIME)
    context, wanted = random.integers(0, 4, (B, L)), random.integers(0, 4, B)
    region, age = random.integers(-1, 3, B), random.uniform(10, 60, B).astype(np.float32)
    age[:5] = [20, 50, np.nan, np.inf, 30]
    sets = random.integers(0, 4, (B, MAX_MEMBERS))
    sets[np.arange(MAX_MEMBERS) >= random.integers(0, MAX_MEMBERS + 1, (B, 1))] = -1

    words = np.array(["phone", "desktop", "watch", None], object)
    names = ("a", "b", "c", "d")
    columns = [
        EventColumns(event[b][own].astype(np.int16), value[b][own], time[b][own],
                     times_before(time[b][own]), {"device": words[context[b][own]]})
        for b, own in enumerate(mask)
    ]  # fmt: skip
    last = np.array([each.time[-1] if len(each) else UNKNOWN_TIME for each in columns])
    told = Told(
        EventColumns(
            *(np.concatenate([getattr(each, name) for each in columns])
              for name in ("event", "value", "time", "before")),
            {"device": np.concatenate([each.context["device"] for each in columns])},
        ),
        EventColumns(np.full(B, -1, np.int16), np.full(B, np.nan, np.float32), asked, last,
                     {"device": words[wanted]}),
        [
            {
                "region": None if region[b] < 0 else ("north", "south", "east")[region[b]],
                "age": float(age[b]),
                "likes": [names[code] for code in sets[b] if code >= 0],
            }
            for b in range(B)
        ],
    )  # fmt: skip
    histories = Ragged.from_rows([row[own] for row, own in zip(items, mask, strict=True)])
    expected = user_vectors(model, vectors, histories, told)
    given = {
        "item_vectors": vectors[torch.from_numpy(items)],
        "is_event": torch.from_numpy(mask),
        "event": torch.from_numpy(event),
        "value": torch.from_numpy(value),
        "time": torch.from_numpy(time),
        "context": torch.from_numpy(context)[..., None],
        "request_time": torch.from_numpy(asked),
        "request_context": torch.from_numpy(wanted)[:, None],
        "user_categories": torch.from_numpy(region)[:, None],
        "user_numbers": torch.from_numpy(age)[:, None],
        "user_sets": torch.from_numpy(sets)[:, None],
    }
    assert set(given) == {each["name"] for each in describe_inputs(SPEC, WIDTH)}
    assert torch.allclose(tower(**given), expected, atol=1e-5)
    for name in set(given) - {"item_vectors", "is_event"}:  # and each of them matters
        other = {**given, name: given[name].flip(0)}
        assert (tower(**other) - expected).abs().max() > 1e-3, name


ASK = """
import json, pickle, sys
import numpy as np
import torch

def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = torch.load = refuse
folder, length = sys.argv[1], int(sys.argv[2])
document = json.load(open(f"{folder}/user_tower.json"))
tower = torch.export.load(f"{folder}/{document['file']}").module()
read = {line: row for row, line in enumerate(map(json.loads, open(f"{folder}/item_ids.jsonl")))}
items = torch.from_numpy(np.load(f"{folder}/item_embeddings.npy"))
histories = json.load(sys.stdin)
rows = torch.zeros(len(histories), length, dtype=torch.int64)
mask = torch.zeros(len(histories), length, dtype=torch.bool)
for user, history in enumerate(histories):
    rows[user, : len(history)] = torch.tensor([read[each] for each in history], dtype=torch.int64)
    mask[user, : len(history)] = True
users = tower(item_vectors=items[rows], is_event=mask)
assert not {name for name in sys.modules if name.split(".")[0] in ("mmrec", "fusion", "encoders")}
print(json.dumps(users.tolist()))
"""


def test_torch_alone_runs_what_the_command_wrote(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(tiny_run), "--out", str(out), "--format", "npy", "--user-tower"]
    assert main(arguments) == 0
    with zipfile.ZipFile(out / "user_tower.pt2") as archive:
        for each in archive.infolist():
            assert archive.read(each)[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), each.filename
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"user_tower.pt2", "user_tower.json"} <= set(manifest["files"])
    document = json.loads((out / "user_tower.json").read_text())
    assert [each["name"] for each in document["inputs"]] == ["item_vectors", "is_event"]
    assert document["inputs"][0]["shape"] == ["B", "L", 16] and document["max_history"] == 8
    assert document["model_hash"] == manifest["model_hash"]

    recommender = Recommender.load(tiny_run)
    ids = recommender.retriever.items.item_ids
    random = np.random.default_rng(0)
    histories = [[ids[row] for row in random.permutation(14)[:n]] for n in (0, 1, 3, 8, 12)]
    asked = subprocess.run(
        [sys.executable, "-I", "-c", ASK, str(out), "12"],
        input=json.dumps(histories), capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    users = np.array(json.loads(asked.stdout))
    expected = recommender.embed_users(histories)
    assert np.abs(users - expected).max() < 1e-5
    assert not users[0].any() and np.abs(users[1] - users[2]).max() > 1e-3


def test_an_export_without_vectors_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--user-tower .* add parquet or npy"):
        export_run(tiny_run, tmp_path / "out", formats=("faiss",), user_tower=True)
    assert not (tmp_path / "out").exists()
