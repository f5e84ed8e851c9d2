"""What looks, sounds or reads alike: contents by one modality alone, or without one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from tiny_run import NO_PICTURE, NUM_ITEMS

from mmrec.cli import main
from mmrec.errors import UserError
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.bundle import write_bundle
from mmrec.retrieval.content import encode_queries
from mmrec.retrieval.parts import content_by, content_without

pytest_plugins = ["tiny_run"]

COLUMNS = {"image": ["poster"], "audio": ["sound"], "text": ["title", "plot"]}
EXACT = 1e-5


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("parts") / "bundle"
    write_bundle(recommender.retriever, folder)
    return Recommender.load(folder)


@pytest.mark.parametrize("modality", list(COLUMNS))
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "without"])
def test_contents_are_those_of_items_with_these_media(
    recommender: Recommender, tiny_source: Path, tmp_path: Path, modality: str, alone: bool
) -> None:
    table = pl.read_csv(tiny_source / "items.csv", infer_schema=False)
    names = [n for m, own in COLUMNS.items() if (m == modality) == alone for n in own]
    table.select("id", *names).write_csv(tmp_path / "new.csv")
    expected = recommender.embed_items(recommender.new_items(tmp_path / "new.csv", tiny_source))
    rows = np.array([recommender.retriever.items.rows[each] for each in expected.item_ids])
    if alone:
        found = content_by(recommender.retriever, modality)[rows]
    else:
        found = content_without(recommender.retriever, modality, rows)
    assert len(rows) >= NUM_ITEMS - 1 and expected.content is not None
    np.testing.assert_allclose(found.numpy(), expected.content, atol=EXACT)


def test_a_bundle_holds_the_same_contents(recommender: Recommender, bundle: Recommender) -> None:
    rows = np.array([3, 0, 5])
    for modality in COLUMNS:
        whole = content_by(recommender.retriever, modality)
        assert torch.equal(content_by(bundle.retriever, modality), whole)
        some = content_without(recommender.retriever, modality, rows)
        assert torch.equal(content_without(bundle.retriever, modality, rows), some)
        assert bundle.similar("i1", by=modality) == recommender.similar("i1", by=modality)


@pytest.mark.parametrize("modality", list(COLUMNS))
def test_lists_by_one_modality_are_the_nearest_by_it(
    recommender: Recommender, modality: str
) -> None:
    items = recommender.retriever.items
    contents = content_by(recommender.retriever, modality)
    for item_id in ("i0", "i7", f"i{NUM_ITEMS - 1}"):
        row = items.rows[item_id]
        scores = {
            other: float(contents[items.rows[other]] @ contents[row])
            for other in items.item_ids
            if other != item_id and items.has[modality][items.rows[other]]
        }
        expected = sorted(scores, key=lambda other: -scores[other])
        found = recommender.similar(item_id, by=modality, k=100)
        assert [each.item_id for each in found] == expected
        assert [each.score for each in found] == pytest.approx(sorted(scores.values())[::-1])
        wishes = Wishes(without=(expected[0],))
        assert (
            recommender.similar(item_id, by=modality, k=1, wishes=wishes)[0].item_id == expected[1]
        )


def test_near_duplicates_are_each_others_nearest(
    recommender: Recommender, tiny_source: Path, tmp_path: Path
) -> None:
    """Pictures beside copies that were encoded anew, all of them as if they were in a catalogue."""
    table = pl.read_csv(tiny_source / "items.csv", infer_schema=False)
    posters = [name for name in table["poster"].to_list() if name]
    for name in posters:
        buffer = io.BytesIO()
        Image.open(tiny_source / name).convert("RGB").save(buffer, "JPEG", quality=80)
        (tmp_path / f"{name}.jpg").write_bytes(buffer.getvalue())
    originals = encode_queries(recommender.retriever, "image", [tiny_source / p for p in posters])
    copies = encode_queries(
        recommender.retriever, "image", [tmp_path / f"{p}.jpg" for p in posters]
    )
    both = torch.cat([originals, copies])
    nearest = (both @ both.T).fill_diagonal_(-1).argmax(1)
    count = len(posters)
    assert nearest.tolist() == [*range(count, 2 * count), *range(count)]
    # and a copy as a question finds its item
    for row, name in enumerate(table["poster"].to_list()):
        if name:
            found = recommender.similar(image=tmp_path / f"{name}.jpg", by="image", k=1)
            assert found[0].item_id == table["id"][row]


def test_what_cannot_be_compared_is_one_line(
    recommender: Recommender, bundle: Recommender, tiny_run_id: Path
) -> None:
    for ask, message in (
        (lambda: recommender.similar(NO_PICTURE, by="image"), "item 'i3' has no image; it has"),
        (lambda: recommender.similar("i1", by="smell"), "by 'smell': the model in .* encodes"),
        (lambda: Recommender.load(tiny_run_id).similar("i1", by="text"), "knows ids only"),
        (
            lambda: Recommender(replace(bundle.retriever, parts=None)).similar("i1", by="text"),
            "holds no contents by single media",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_items_added_since_are_compared_by_all_their_media_alone(recommender: Recommender) -> None:
    """As a service adds them: behind the items of the run, with a content and nothing else."""
    retriever, items = recommender.retriever, recommender.retriever.items
    assert retriever.content is not None
    grown = replace(
        items,
        item_ids=[*items.item_ids, "added"],
        titles=[*(items.titles[row] for row in range(NUM_ITEMS)), None],
        has={name: np.append(has, True) for name, has in items.has.items()},
        deleted=np.append(items.deleted, False),
        is_candidate=np.append(items.is_candidate, True),
        held_out=np.append(items.held_out, False),
    )
    content = torch.cat([retriever.content, retriever.content[:1]])
    live = Recommender(replace(retriever, items=grown, content=content))
    assert live.similar("i0", k=1)[0].item_id == "added"
    assert live.similar("i0", by="text", k=99) == recommender.similar("i0", by="text", k=99)
    with pytest.raises(UserError, match="item 'added' was added since the model was loaded"):
        live.similar("added", by="text")
    ours, added = live.explain(["i0", "added"], "u1")
    assert set(ours.parts) == {*COLUMNS, "users"} and set(added.parts) == {"users"}


def test_words_of_the_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["similar", str(tiny_run), "--item", "i1", "--by", "image", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["query"] == {"item": "i1", "by": "image"} and len(document["items"]) == 10
    assert NO_PICTURE not in [each["item_id"] for each in document["items"]]
