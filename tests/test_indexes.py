"""Every kind of index keeps the same promises, whatever is added, removed, filtered and saved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_kinds import (
    MODEL,
    NAMES,
    OTHER_MODEL,
    URL,
    WIDTH,
    Servers,
    make_index,
    some_attributes,
    some_vectors,
)

from mmrec.errors import CheckpointMismatch, UserError
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.filters import Condition, all_hold
from mmrec.retrieval.indexes import qdrant
from mmrec.retrieval.indexes.build import INDEX_KINDS, IndexKind, build_index, load_index
from mmrec.retrieval.indexes.protocol import ItemIndex
from mmrec.retrieval.indexes.qdrant import connect
from mmrec.retrieval.indexes.spaces import Spaces

pytest_plugins = ["index_kinds"]
pytestmark = [
    pytest.mark.usefixtures("small_indexes"),
    # of a client in memory, which compares all and keeps no index of attributes
    pytest.mark.filterwarnings("ignore:Local mode", "ignore:Payload indexes"),
]

ids = [f"i{number}" for number in range(60)]
conditions = st.one_of(
    st.builds(
        Condition,
        st.just("price"),
        minimum=st.sampled_from([None, -1.0, 0.1, 15.0]),
        maximum=st.sampled_from([0.1, 20.0, 1e301]),
        any_of=st.sampled_from([(), ("0.1", "20"), ("-1",)]),
        none_of=st.sampled_from([(), ("20.0",)]),
    ),
    st.builds(
        Condition,
        st.sampled_from(["artist (main)", "a.b"]),
        any_of=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple),
        none_of=st.lists(st.sampled_from([*NAMES, "of nobody"]), max_size=2).map(tuple),
    ),
)


class Model:
    """What an index should hold: the plainest thing that can be searched."""

    def __init__(self) -> None:
        self.vectors: dict[str, np.ndarray] = {}
        self.attributes: dict[str, pl.DataFrame] = {}

    def add(self, item_ids: list[str], vectors: np.ndarray, attributes: pl.DataFrame) -> None:
        for place, item_id in enumerate(item_ids):
            self.vectors.pop(item_id, None)  # a replaced item is the youngest
            self.vectors[item_id] = vectors[place]
            self.attributes[item_id] = attributes[place]

    def remove(self, item_ids: list[str]) -> int:
        return sum(self.vectors.pop(item_id, None) is not None for item_id in item_ids)

    def search(
        self, query: np.ndarray, k: int, where: list[Condition], without: set[str]
    ) -> tuple[list[str], list[float], int]:
        """The exact list with its scores, and how many items could be listed."""
        held = np.ones(len(self.vectors), bool)
        if where and self.vectors:
            table = pl.concat([self.attributes[item_id] for item_id in self.vectors])
            held = all_hold(where, ItemAttributes.of_table(table))
        allowed = [i for i, ok in zip(self.vectors, held, strict=True) if ok and i not in without]
        scores = np.array([self.vectors[item_id] @ query for item_id in allowed])
        order = np.argsort(-scores, kind="stable")[:k]
        return [allowed[place] for place in order], scores[order].tolist(), len(allowed)


def check(
    index: ItemIndex, model: Model, query: np.ndarray, k: int, where: Any, without: Any
) -> None:
    hits = index.search(query[None], k, where=where, without=[without])
    best, best_scores, num_allowed = model.search(query, k, where, without)
    found, scores = hits.item_ids[0], hits.scores[0]
    assert len(index) == len(model.vectors)
    assert len(found) == len(set(found)) == min(k, num_allowed)
    assert set(found) <= model.vectors.keys() - without
    assert scores == pytest.approx([model.vectors[each] @ query for each in found], abs=1e-5)
    assert all(scores[:-1] >= scores[1:])
    _, _, num_ok = model.search(query, k, where, without)
    assert num_ok == num_allowed
    if where:
        table = pl.concat([model.attributes[each] for each in found]) if found else None
        assert table is None or all_hold(where, ItemAttributes.of_table(table)).all()
    if index.kind in ("exact", "int8"):
        assert found == best  # ties in the order in which items came
    if index.kind in ("exact", "int8", "lancedb", "qdrant"):
        assert list(scores) == pytest.approx(best_scores, abs=1e-5)


@pytest.mark.parametrize("kind", INDEX_KINDS)
@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_life_of_an_index(
    kind: IndexKind,
    small_indexes: Servers,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """Built, changed, filtered, saved and opened again: an index is what the plain model is."""
    small_indexes.forget()
    seeds = st.integers(0, 10_000)
    number = data.draw(st.sampled_from([0, 1, 45]))
    vectors, attributes = some_vectors(number, 1), some_attributes(number, 1)
    index = make_index(kind, ids[:number], vectors, attributes=attributes)
    model = Model()
    model.add(ids[:number], vectors, attributes)
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(st.sampled_from(["add", "remove", "save", "search"]))
        chosen = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=25, unique=True))
        if step == "add":
            seed = data.draw(seeds)
            vectors, attributes = (
                some_vectors(len(chosen), seed),
                some_attributes(len(chosen), seed),
            )
            index.add(chosen, vectors, model_hash=MODEL, attributes=attributes)
            model.add(chosen, vectors, attributes)
        elif step == "remove":
            assert index.remove(chosen) == model.remove(chosen)
        elif step == "save":
            folder = tmp_path_factory.mktemp("saved")  # those of LanceDB are read from then on
            index.save(folder / "index")
            index = load_index(folder / "index")
        query = some_vectors(1, data.draw(seeds))[0]
        where = data.draw(st.lists(conditions, max_size=2))
        without = data.draw(st.sets(st.sampled_from(ids), max_size=30))
        check(index, model, query, data.draw(st.sampled_from([1, 4, 70])), where, without)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_added_item_is_found_and_removed_one_never(kind: IndexKind, small_indexes: Servers) -> None:
    small_indexes.forget()
    names = [*NAMES, *ids[:40]]
    index = make_index(kind, names, some_vectors(len(names), 0))
    new = np.full((1, WIDTH), 9, np.float32)
    assert index.search(new, 1).item_ids[0] != ["it's new"]
    index.add(["it's new"], new, model_hash=MODEL)
    assert index.search(new, 1).item_ids[0] == ["it's new"]
    index.add(["it's new"], -new, model_hash=MODEL)  # replaced, not doubled
    assert len(index) == len(names) + 1
    assert index.search(-new, 1).item_ids[0] == ["it's new"]
    assert "it's new" not in index.search(new, 5).item_ids[0]
    for item_id in ("it's new", *NAMES):
        assert index.remove([item_id, "of nobody"]) == 1
        assert index.remove([item_id]) == 0
    assert len(index) == 40
    found = index.search(some_vectors(3, 5), 99).item_ids
    assert all(sorted(each) == sorted(ids[:40]) for each in found)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_vectors_of_another_model_are_refused(kind: IndexKind, small_indexes: Servers) -> None:
    small_indexes.forget()
    index = make_index(kind, ids[:30], some_vectors(30, 0))
    with pytest.raises(CheckpointMismatch, match="vectors of model bbbbbbbbbbbb do not go into"):
        index.add(["new"], some_vectors(1, 0), model_hash=OTHER_MODEL)
    with pytest.raises(UserError, match=r"shape \(1, 4\), allowed is \(1, 5\)"):
        index.add(["new"], np.zeros((1, 4), np.float32), model_hash=MODEL)
    with pytest.raises(UserError, match="item 'new' holds NaN"):
        index.add(["new"], np.full((1, WIDTH), np.nan, np.float32), model_hash=MODEL)
    with pytest.raises(UserError, match="'new' is given twice"):
        index.add(["new", "new"], some_vectors(2, 0), model_hash=MODEL)
    with pytest.raises(UserError, match=r"are price \(Float64\).*those of the index: none"):
        index.add(["new"], some_vectors(1, 0), model_hash=MODEL, attributes=some_attributes(1, 0))
    with pytest.raises(UserError, match=r"queries have the shape \(2, 4\)"):
        index.search(np.zeros((2, 4), np.float32), 3)
    with pytest.raises(UserError, match="k is 0"):
        index.search(some_vectors(1, 0), 0)
    with pytest.raises(UserError, match="'price' is no attribute of items; .* has none"):
        index.search(some_vectors(1, 0), 3, where=[Condition("price", maximum=3)])
    assert len(index) == 30


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_conditions_of_a_wrong_type_are_refused(kind: IndexKind, small_indexes: Servers) -> None:
    small_indexes.forget()
    index = make_index(kind, ids[:30], some_vectors(30, 0), attributes=some_attributes(30, 0))
    with pytest.raises(UserError, match="it has words, no numbers"):
        index.search(some_vectors(1, 0), 3, where=[Condition("a.b", minimum=3)])
    with pytest.raises(UserError, match="'cheap' is no number"):
        index.search(some_vectors(1, 0), 3, where=[Condition("price", any_of=("cheap",))])


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_saved_index_answers_like_the_one_that_was_built(
    kind: IndexKind, small_indexes: Servers, tmp_path: Path
) -> None:
    small_indexes.forget()
    vectors, queries = some_vectors(60, 0), some_vectors(20, 1)
    index = make_index(kind, ids, vectors, queries=queries)
    index.remove(["i7"])
    before = index.search(queries, 6)
    index.save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["kind"] == kind and manifest["count"] == 59
    assert manifest["dimension"] == WIDTH and manifest["model_hash"] == MODEL
    assert 0.97 <= manifest["recall"]["recall@10"] <= 1
    assert 0.97 <= manifest["recall"]["recall@100"] <= 1
    opened = load_index(tmp_path / "index")
    after = opened.search(queries, 6)
    assert after.item_ids == before.item_ids
    assert all(np.array_equal(*pair) for pair in zip(after.scores, before.scores, strict=True))
    opened.add(["i7"], vectors[7:8], model_hash=MODEL)
    opened.save(tmp_path / "index")  # in its own place
    assert len(load_index(tmp_path / "index")) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("kind", ["exact", "int8", "ivf", "hnsw"])
def test_changed_files_are_refused(kind: IndexKind, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    make_index(kind, ids, some_vectors(60, 0), attributes=some_attributes(60, 0)).save(folder)
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointMismatch, match=f"{path.name}: was changed .* build"):
            load_index(folder)
        path.unlink()
        with pytest.raises(CheckpointMismatch, match=f"{path.name}: the file is missing"):
            load_index(folder)
        path.write_bytes(content)
    load_index(folder)


def test_strange_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    index = make_index("exact", ids, some_vectors(60, 0))
    with pytest.raises(CheckpointMismatch, match="no readable manifest"):
        load_index(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no index"):
        index.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    index.save(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"kind": "annoy"}))
    with pytest.raises(CheckpointMismatch, match="kind 'annoy' is not known; this version reads"):
        load_index(tmp_path / "index")
    file.write_text(json.dumps(manifest | {"schema": "mmrec-index/9"}))
    with pytest.raises(CheckpointMismatch, match="schema 'mmrec-index/9' is not known"):
        load_index(tmp_path / "index")


@pytest.mark.parametrize("kind", ["lancedb", "qdrant"])
def test_database_that_holds_another_models_vectors_is_refused(
    kind: IndexKind, small_indexes: Servers, tmp_path: Path
) -> None:
    small_indexes.forget()
    make_index(kind, ids, some_vectors(60, 0)).save(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"model_hash": OTHER_MODEL}))
    with pytest.raises(CheckpointMismatch, match="60 items are not of model bbbbbbbbbbbb"):
        load_index(tmp_path / "index")


def test_qdrant_collection_of_somebody_is_left_alone(
    small_indexes: Servers, tmp_path: Path
) -> None:
    small_indexes.forget()
    index = make_index("qdrant", ids, some_vectors(60, 0))
    with pytest.raises(UserError, match="has a collection 'mmrec-aaaaaaaaaaaa' already"):
        make_index("qdrant", ids, some_vectors(60, 0))
    index.save(tmp_path / "index")
    small_indexes.forget()
    with pytest.raises(UserError, match=f"Qdrant at {URL} has no collection 'mmrec-aaaa"):
        load_index(tmp_path / "index")


def test_key_of_qdrant_comes_from_the_environment_and_is_never_written(
    small_indexes: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_indexes.forget()
    monkeypatch.setenv("QDRANT_API_KEY", "a secret")
    make_index("qdrant", ids, some_vectors(60, 0)).save(tmp_path / "index")
    assert all("a secret" not in path.read_text() for path in (tmp_path / "index").iterdir())


def test_kinds_and_urls_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="--kind is 'annoy': allowed are exact, int8"):
        build_index("annoy", ids, some_vectors(60, 0), model_hash=MODEL)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--kind is exact, --url is http://x"):
        build_index("exact", ids, some_vectors(60, 0), model_hash=MODEL, url="http://x")
    with pytest.raises(UserError, match="--kind is qdrant, --url is None"):
        build_index("qdrant", ids, some_vectors(60, 0), model_hash=MODEL)
    with pytest.raises(UserError, match="--recall is 1.5"):
        build_index("ivf", ids, some_vectors(60, 0), model_hash=MODEL, wanted_recall=1.5)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("qdrant:6333", "--url is 'qdrant:6333': allowed is http://HOST:PORT"),
        ("http://", "--url is 'http://': allowed is"),
        ("http://me:secret@host:1", "--url of host holds more than a place"),
        ("http://host:1/?api-key=secret", "give a key by QDRANT_API_KEY"),
    ],
)
def test_url_is_a_place_alone(url: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        connect(url)
    assert says in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(("kind", "library"), [("lancedb", "lancedb"), ("qdrant", "qdrant_client")])
def test_absent_library_is_one_line(
    kind: IndexKind, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(qdrant, "connect", connect)
    with pytest.raises(UserError, match=rf"not installed: pip install 'mmrec\[{kind}\]'"):
        make_index(kind, ids, some_vectors(60, 0))


def test_two_models_stand_side_by_side_and_are_never_mixed() -> None:
    old, new = some_vectors(60, 0), some_vectors(60, 1)
    spaces = Spaces(make_index("exact", ids, old))
    with pytest.raises(UserError, match="no index beside the one in use"):
        spaces.change_over()
    with pytest.raises(CheckpointMismatch, match="no index is of model bbbb.*there are aaaa"):
        spaces.search(new[:1], 3, model_hash=OTHER_MODEL)
    with pytest.raises(UserError, match="of model aaaaaaaaaaaa, which is in use"):
        spaces.prepare(make_index("exact", ids, old))
    spaces.prepare(build_index("exact", ids[:30], new[:30], model_hash=OTHER_MODEL))
    spaces.add(ids[30:], new[30:], model_hash=OTHER_MODEL)
    for model_hash, vectors in ((MODEL, old), (OTHER_MODEL, new)):
        hits = spaces.search(vectors[:4], 5, model_hash=model_hash)
        order = np.argsort(-(vectors[:4] @ vectors.T), axis=1, kind="stable")[:, :5]
        assert hits.item_ids == [[ids[row] for row in rows] for rows in order]
    assert spaces.remove(["i3"]) == 1
    spaces.change_over()
    assert spaces.current.model_hash == OTHER_MODEL and len(spaces.current) == 59
    assert spaces.of_model(MODEL) is spaces.other
    spaces.go_back()
    assert spaces.current.model_hash == MODEL
    spaces.drop_other()
    with pytest.raises(CheckpointMismatch):
        spaces.of_model(OTHER_MODEL)
