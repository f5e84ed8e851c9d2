"""`mmrec index`: from an export to a folder that is searched, filtered and changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrec.cli import main
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.retrieval.indexes.build import load_index
from mmrec.retrieval.indexes.exact import ExactIndex

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "export"
    export_run(tiny_run, out)
    return out


@pytest.mark.parametrize("kind", ["exact", "int8", "ivf", "lancedb"])
def test_index_finds_what_the_model_scores_highest(
    kind: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert main(["index", str(exported), "--kind", kind, "--out", str(out)]) == 0
    made = "exact" if kind == "ivf" else kind  # fourteen items are too few for lists
    line = capsys.readouterr().out
    assert line.startswith(f"14 items of {exported} in {out}, kind {made}: recall@10 ")
    export = Export.open(exported)
    item_ids, items = export.items()
    users = export.users()[1]
    _, rows = ExactIndex(items).search(users, 5)
    index = load_index(out)
    assert index.model_hash == export.model_hash
    assert index.search(users, 5).item_ids == [[item_ids[row] for row in best] for best in rows]
    assert main(["index", str(exported), "--kind", kind, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "mmrec-index/1" and document["recall"]["recall@10"] >= 0.98


def test_faults_are_one_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*arguments: str) -> str:
        assert main(["index", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    out = str(tmp_path / "index")
    assert "no readable manifest" in fault(str(tmp_path), "--out", out)
    qdrant = (str(exported), "--kind", "qdrant", "--out", out)
    assert "--kind is qdrant, --url is None" in fault(*qdrant)
    assert "--recall is 0" in fault(str(exported), "--recall", "0", "--out", out)
    assert "holds something that is no index" in fault(str(exported), "--out", str(exported))
    url = "http://127.0.0.1:9"
    assert f"Qdrant at {url} does not answer" in fault(*qdrant, "--url", url)
    assert not list(tmp_path.iterdir())
