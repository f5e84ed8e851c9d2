"""Exports: parity of every way to a vector, the files, bundles, interruption, no torch to read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.shards import PreparedData
from mmrec.errors import CheckpointMismatch, UserError
from mmrec.recommender import Recommender
from mmrec.retrieval import export as export_module
from mmrec.retrieval.cold import score_file
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export, check_same_model
from mmrec.retrieval.folders import written_aside
from mmrec.retrieval.indexes.exact import ExactIndex
from mmrec.retrieval.indexes.faiss import FaissIndex, FaissKind
from mmrec.retrieval.indexes.recall import recall_at_k

pytest_plugins = ["tiny_run"]
ALL_FORMATS = ("parquet", "faiss", "npy")


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All formats and a bundle, in row groups smaller than the catalogue."""
    out = tmp_path_factory.mktemp("export") / "out"
    export_run(tiny_run, out, formats=ALL_FORMATS, bundle=True, row_group=5)
    return out


@pytest.mark.parametrize("run_name", ["tiny_run", "tiny_run_cut", "tiny_run_all"])
def test_export_live_tower_and_raw_files_agree(
    run_name: str, tiny_source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(run_name)
    export_run(run, tmp_path / "out")
    export = Export.open(tmp_path / "out")
    ids, content = export.content()
    _, items = export.items()
    recommender = Recommender.load(run)
    # the other way: bytes of files no shard holds, through the door and the whole tower
    live = recommender.embed_items(recommender.new_items(tiny_source / "items.csv", tiny_source))
    by_id = recommender.embed_items(ids)
    assert live.item_ids == ids and live.content is not None and by_id.content is not None
    assert np.abs(live.content - content).max() < 1e-5
    assert np.abs(by_id.content - content).max() < 1e-6
    assert np.abs(by_id.embedding - items[:, :-1]).max() < 1e-6
    untrained = recommender.retriever.counts == 0
    assert 0 < untrained.sum() < len(ids)
    assert np.abs(live.embedding - items[:, :-1])[untrained].max() < 1e-5
    # the tolerance means something: contents of two items are farther apart
    apart = np.abs(content[:, None] - content[None]).max(2)[~np.eye(len(ids), dtype=bool)]
    assert apart.min() > 1e-4
    assert np.linalg.norm(content, axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-5)
    assert np.linalg.norm(items[:, :-1], axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-5)


def test_items_are_the_catalogues_in_its_order(exported: Path, tiny_data: Path) -> None:
    data = PreparedData.open(tiny_data)
    table = pq.read_table(exported / "items.parquet")
    assert table["item_id"].to_pylist() == data.items.item_ids
    assert pq.ParquetFile(exported / "items.parquet").num_row_groups == 3
    kinds = [set(each) for each in table["modalities"].to_pylist()]
    assert kinds[3] == {"text", "audio"} and kinds[4] == {"image", "audio"}
    assert kinds[0] == {"text", "image", "audio"}


def test_product_of_exported_vectors_is_the_models_score(exported: Path, tiny_run: Path) -> None:
    export = Export.open(exported)
    item_ids, items = export.items()
    user_ids, users = export.users()
    assert user_ids == list(PreparedData.open(_data_of(tiny_run)).user_ids)
    recommender = Recommender.load(tiny_run)
    for row in (0, 9):
        scores = dict(zip(item_ids, items @ users[row], strict=True))
        for each in recommender.recommend(user_ids[row], k=5):
            assert each.score == pytest.approx(float(scores[each.item_id]), abs=1e-5)


def test_formats_hold_the_same(exported: Path) -> None:
    export = Export.open(exported)
    ids, items = export.items()
    popularity = np.load(exported / "item_popularity.npy")
    embeddings = np.load(exported / "item_embeddings.npy")
    stacked = np.concatenate([embeddings, popularity[:, None]], axis=1)
    assert np.array_equal(stacked, items)
    assert np.array_equal(np.load(exported / "item_contents.npy"), export.content()[1])
    lines = (exported / "item_ids.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ids
    users = export.users()[1]
    assert np.array_equal(np.load(exported / "user_embeddings.npy"), users[:, :-1])
    exact_scores, exact_rows = ExactIndex(items).search(users, 5)
    scores, rows = export.index().search(users, 5)
    assert isinstance(export.index(), FaissIndex)
    assert np.allclose(scores, exact_scores, atol=1e-5)
    assert (rows == exact_rows).mean() > 0.9  # tied scores may swap


def test_manifest_says_what_it_is(exported: Path, tiny_run: Path) -> None:
    manifest = Export.open(exported).manifest
    bound = json.loads((tiny_run / "data.json").read_text())
    assert manifest["schema"] == "mmrec-export/1"
    assert manifest["data_hash"] == bound["data_hash"]
    assert manifest["split_hash"] == bound["split_hash"]
    assert manifest["dimension"] == 16 and manifest["dtype"] == "float32"
    assert manifest["counts"]["items"] == 14 and manifest["counts"]["users"] == 30
    assert manifest["index"]["recall@10"] == 1.0
    assert set(manifest["licences"]) == {"text", "image", "audio"}
    for file in ("model_hash", "preprocessing_hash"):
        assert len(manifest[file]) == 64


def test_row_groups_and_repetition_change_no_value(
    exported: Path, tiny_run: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        export_run(tiny_run, tmp_path / name)
    for name in ("items", "users"):
        files = [tmp_path / each / f"{name}.parquet" for each in ("a", "b")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert pq.read_table(files[0]).equals(pq.read_table(exported / f"{name}.parquet"))


def test_model_of_ids_exports_what_it_has(tiny_run_id: Path, tmp_path: Path) -> None:
    export_run(tiny_run_id, tmp_path / "out", formats=("parquet", "npy", "faiss"), bundle=True)
    table = pq.read_table(tmp_path / "out" / "items.parquet")
    assert table["content_embedding"].null_count == len(table) == 14
    counts = Recommender.load(tiny_run_id).retriever.counts
    assert [not each.is_valid for each in table["embedding"]] == (counts == 0).tolist()
    served = Recommender.load(tmp_path / "out" / "bundle")
    assert served.recommend("u3") == Recommender.load(tiny_run_id).recommend("u3")


def test_bundle_serves_like_the_run_without_the_data(
    tiny_run: Path, tiny_source: Path, tmp_path: Path, exported: Path, monkeypatch: Any
) -> None:
    shutil.copytree(exported / "bundle", tmp_path / "bundle")
    run = Recommender.load(tiny_run)

    def refuse(path: Path) -> None:
        raise AssertionError(f"a bundle opened prepared data: {path}")

    monkeypatch.setattr(PreparedData, "open", refuse)
    bundle = Recommender.load(tmp_path / "bundle")
    assert bundle.model_hash == run.model_hash
    table = tiny_source / "items.csv"
    assert _same(bundle.recommend("u5"), run.recommend("u5"))
    assert _same(bundle.recommend(history=["i1", "i8"]), run.recommend(history=["i1", "i8"]))
    assert _same(bundle.recommend(), run.recommend())
    assert _same(bundle.similar("i3"), run.similar("i3"))
    assert _same(bundle.similar(text="red sea"), run.similar(text="red sea"))
    picture = tiny_source / "10.png"
    assert _same(bundle.similar(image=picture), run.similar(image=picture))
    ours = bundle.embed_items(bundle.new_items(table, tiny_source)).embedding
    theirs = run.embed_items(run.new_items(table, tiny_source)).embedding
    assert np.abs(ours - theirs).max() < 1e-6


def test_changed_bundle_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(exported / "bundle", bundle)
    with open(bundle / "content.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointMismatch, match=r"content.safetensors: was changed"):
        Recommender.load(bundle)
    (bundle / "users.parquet").unlink()
    (bundle / "content.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match="the file is missing"):
        Recommender.load(bundle)
    (bundle / "bundle.json").write_text('{"schema": "mmrec-bundle/9"}')
    with pytest.raises(CheckpointMismatch, match="'mmrec-bundle/9' is not known"):
        Recommender.load(bundle)


def test_interrupted_export_leaves_the_old_one_and_starts_anew(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_run(tiny_run, out)
    before = (out / "items.parquet").read_bytes()
    (tmp_path / ".out.partial").mkdir()  # what a killed process leaves behind
    (tmp_path / ".out.partial" / "items.parquet").write_bytes(b"half")

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_user_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            export_run(tiny_run, out, row_group=3)
    assert (out / "items.parquet").read_bytes() == before
    export_run(tiny_run, out, row_group=3)
    ids, _ = Export.open(out).items()
    assert len(ids) == len(set(ids)) == 14
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_that_was_killed_between_two_names_has_its_old_one_again(
    tiny_run: Path, tmp_path: Path
) -> None:
    export_run(tiny_run, tmp_path / "out")
    before = (tmp_path / "out" / "items.parquet").read_bytes()
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "out"):
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "items.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_of_somebody_else_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no export"):
        export_run(tiny_run, tmp_path)
    with pytest.raises(UserError, match="--format is 'csv': allowed are parquet, faiss, npy"):
        export_run(tiny_run, tmp_path / "out", formats=("csv",))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_vectors_of_two_models_are_never_mixed(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="vectors of 2 models are mixed"):
        check_same_model(["a" * 64, "b" * 64], "here")
    out = tmp_path / "mixed"
    shutil.copytree(exported, out)
    table = pq.read_table(out / "items.parquet")
    hashes = ["f" * 64, *table["model_hash"].to_pylist()[1:]]
    place = table.schema.get_field_index("model_hash")
    pq.write_table(table.set_column(place, "model_hash", pa.array(hashes)), out / "items.parquet")
    with pytest.raises(CheckpointMismatch, match="is missing or was changed"):
        Export.open(out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["items.parquet"]["size"] = (out / "items.parquet").stat().st_size
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointMismatch, match="2 models are mixed"):
        Export.open(out).items()


def test_reading_an_export_needs_no_torch(exported: Path) -> None:
    code = (
        "import sys\n"
        "from mmrec.retrieval.exported import Export\n"
        f"export = Export.open({str(exported)!r})\n"
        "users, items = export.users()[1], export.items()[1]\n"
        "scores, rows = export.index().search(users, 3)\n"
        "assert scores.shape == (30, 3)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_written_is_read_by_numpy_and_pyarrow_alone(
    exported: Path, tiny_run: Path, tiny_source: Path, tmp_path: Path
) -> None:
    """Vectors of an export, and a batch of scores of users by items, without any of our code."""
    score_file(tiny_run, tiny_source / "items.csv", tiny_source, tmp_path / "scores.parquet")
    code = f"""
import sys
import numpy as np
import pyarrow.parquet as pq
folder, scores = {str(exported)!r}, pq.read_table({str(tmp_path / "scores.parquet")!r})
items, users = pq.read_table(folder + "/items.parquet"), pq.read_table(folder + "/users.parquet")
assert scores.column_names[:5] == ["user_id", "item_id", "score", "rank", "modalities"]
assert scores.column_names[5:] == ["confidence"]
pairs = set(zip(scores["user_id"].to_pylist(), scores["item_id"].to_pylist()))
of_users = users["user_id"].to_pylist()
assert set(user for user, _ in pairs) == set(of_users)
of_items = set(item for _, item in pairs)
assert len(pairs) == scores.num_rows == len(of_users) * len(of_items) > 30
assert np.isfinite(scores["score"].to_numpy()).all() and scores["rank"].to_numpy().min() >= 1
embeddings = np.load(folder + "/item_embeddings.npy")
assert embeddings.dtype == np.float32 and len(embeddings) == items.num_rows
vectors = np.load(folder + "/user_embeddings.npy")
assert len(vectors) == users.num_rows and vectors.shape[1] == embeddings.shape[1]
product = vectors @ np.load(folder + "/item_contents.npy").T
row = {{name: place for place, name in enumerate(items["item_id"].to_pylist())}}
user = {{name: place for place, name in enumerate(of_users)}}
# of items that have all of their media what is scored is their content
whole = [each for each in scores.to_pylist() if len(each["modalities"]) == 3]
assert len(whole) > 30
for each in whole:
    told = product[user[each["user_id"]], row[each["item_id"]]]
    assert abs(told - each["score"]) < 1e-5, each
ours = [name for name in sys.modules if name.split(".")[0] in ("torch", "mmrec", "data_prep")]
assert not ours, ours
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["int8", "ivf", "hnsw"])
def test_index_of_another_kind_finds_the_same(
    kind: FaissKind, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "MIN_ROWS", 1)
    export_run(tiny_run, tmp_path / "out", formats=("parquet", "faiss"), index=kind)
    export = Export.open(tmp_path / "out")
    described = export.manifest["index"]
    assert described["kind"].startswith(f"{kind} inner product over [embedding, popularity]")
    assert described["recall@10"] > 0.95 and described["recall@100"] == 1
    index = export.index()
    assert isinstance(index, FaissIndex) and index.kind == kind and len(index) == 14
    users = export.users()[1]
    scores, _ = index.search(users, 14)
    exact_scores, _ = ExactIndex(export.items()[1]).search(users, 14)
    assert np.allclose(scores, exact_scores, atol=0.02)  # of eight bits


def test_index_of_a_small_catalogue_is_flat(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_run(tiny_run, tmp_path / "out", formats=("faiss",), index="ivf")
    assert "index.faiss is flat: 14 items are compared one and all, --index ivf" in caplog.text
    export_run(tiny_run, tmp_path / "flat", formats=("faiss",))
    files = [tmp_path / each / "index.faiss" for each in ("out", "flat")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="--index is 'pq': allowed are flat, int8, ivf, hnsw"):
        export_run(tiny_run, tmp_path / "pq", formats=("faiss",), index="pq")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--index is 'ivf', which needs --format faiss"):
        export_run(tiny_run, tmp_path / "none", index="ivf")


def test_recall_counts_what_is_missed_and_forgives_ties() -> None:
    vectors = np.eye(4, dtype=np.float32)
    queries = np.array([[4, 3, 2, 1], [1, 1, 1, 0]], np.float32)

    class Half:
        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.array([[0, 3], [2, 1]])
            return np.zeros((2, 2), np.float32), rows

    assert recall_at_k(Half(), vectors, queries, 2) == 0.75
    scores, rows = ExactIndex(vectors).search(queries, 6)
    assert rows.tolist() == [[0, 1, 2, 3, -1, -1], [0, 1, 2, 3, -1, -1]]
    assert torch.isinf(torch.from_numpy(scores)[:, 4:]).all()


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return [each.item_id for each in ours] == [each.item_id for each in theirs] and np.allclose(
        [each.score for each in ours], [each.score for each in theirs], atol=1e-6
    )


def _data_of(run: Path) -> Path:
    return Path(json.loads((run / "data.json").read_text())["path"])
