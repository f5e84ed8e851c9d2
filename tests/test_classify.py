"""Zero-shot classification: names of classes as prompts, averaged and compared with items."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F

from mmrec.cli import main
from mmrec.errors import ItemNotFound, UserError
from mmrec.recommender import Recommender
from mmrec.retrieval.classify import class_vectors, classify
from mmrec.retrieval.content import encode_query

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

LABELS = ["river", "storm", "garden"]
TEMPLATES = ["The quiet {}", "{} at night."]


def test_a_class_is_the_mean_of_its_prompts(tiny_run: Path) -> None:
    retriever = Recommender.load(tiny_run).retriever
    found = class_vectors(retriever, LABELS, TEMPLATES)
    slow = []
    for label in LABELS:
        prompts = [f"The quiet {label}", f"{label} at night."]
        both = torch.stack([encode_query(retriever, "text", each) for each in prompts])
        slow.append(F.normalize(both.mean(0), dim=0))
    torch.testing.assert_close(found, torch.stack(slow), atol=1e-5, rtol=1e-5)
    alone = class_vectors(retriever, LABELS)
    torch.testing.assert_close(
        alone[1], encode_query(retriever, "text", "storm"), atol=1e-5, rtol=1e-5
    )


def test_classes_are_ranked_by_cosine() -> None:
    classes = torch.eye(3)
    content = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    first, second = classify(content, classes, LABELS)
    assert list(first) == ["garden", "river", "storm"] and first["river"] == pytest.approx(0.6)
    assert list(second)[0] == "storm"
    assert classify(content, classes, LABELS, k=1)[0] == {"garden": pytest.approx(0.8)}


def test_known_and_new_items_are_told_alike(tiny_run: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(tiny_run)
    known = recommender.classify(["i0", "i1"], LABELS, templates=TEMPLATES)
    content = recommender.embed_items(["i0", "i1"]).content
    assert content is not None
    classes = class_vectors(recommender.retriever, LABELS, TEMPLATES)
    for each, own in zip(known, torch.from_numpy(content) @ classes.T, strict=True):
        assert [each["classes"][label] for label in LABELS] == pytest.approx(own.tolist(), abs=1e-5)
    path = tmp_path / "new.csv"
    pl.DataFrame({"id": ["n1", "n2"], "title": ["The quiet river", ""]}).write_csv(path)
    new = recommender.classify(recommender.new_items(path, tmp_path), LABELS, templates=TEMPLATES)
    assert [each["item_id"] for each in new] == ["n1"]  # nothing is told of an item without media
    assert set(new[0]["classes"]) == set(LABELS)
    with pytest.raises(ItemNotFound, match="item 'nothing'"):
        recommender.classify(["nothing"], LABELS)


@pytest.mark.parametrize(
    ("labels", "templates", "words"),
    [
        (["river"], ["{}"], "labels are river: give two or more, each once"),
        (["river", "river"], ["{}"], "labels are river, river: give two or more"),
        (LABELS, ["a stamp"], "template 'a stamp': give one {}, where a label is put"),
        (LABELS, ["{} and {}"], "template '{} and {}'"),
    ],
    ids=["one", "twice", "no place", "two places"],
)
def test_classes_that_cannot_be_told_apart_are_refused(
    tiny_run: Path, labels: list[str], templates: list[str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        Recommender.load(tiny_run).classify(["i0"], labels, templates=templates)
    assert words in str(caught.value)


def test_a_model_of_ids_reads_no_names(tiny_run_id: Path) -> None:
    with pytest.raises(UserError, match="a query by text: .* knows ids only"):
        Recommender.load(tiny_run_id).classify(["i0"], LABELS)


def test_the_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["classify", str(tiny_run), "--labels", ",".join(LABELS), "--items", "i0,i1"]
    prompts = [word for each in TEMPLATES for word in ("--template", each)]
    assert main([*asked, *prompts, "-k", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["query"] == {"labels": LABELS, "templates": TEMPLATES, "k": 2}
    found = Recommender.load(tiny_run).classify(["i0", "i1"], LABELS, templates=TEMPLATES, k=2)
    assert [list(each["classes"]) for each in document["items"]] == [
        list(each["classes"]) for each in found
    ]
    assert main(asked) == 0
    assert "river" in capsys.readouterr().out
    assert main(asked[:-2]) == 2
    assert "allowed is exactly one of --items, --new" in capsys.readouterr().err.replace("\n", " ")
