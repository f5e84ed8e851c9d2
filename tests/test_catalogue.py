"""The catalogue file: defaults, round trip, and one clear line for each kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.catalogue import Catalogue, load_catalogue, parse_catalogue
from data_prep.errors import DataError

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "catalogues"

BOOKS = """
name: books
kind: books
items:
  table: books.csv
  id: isbn
  text: [title, blurb]
  image: cover
  vectors: {old: old_vector}
interactions: {table: loans.csv, user: reader, item: isbn, time: lent_at}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Catalogue:
    path = tmp_path / "catalogue.yaml"
    path.write_text(text, encoding="utf-8")
    return load_catalogue(path, overrides)


def fault(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_catalogues_load(path: Path) -> None:
    catalogue = load_catalogue(path)
    assert parse_catalogue(catalogue.document()) == catalogue


@pytest.mark.parametrize(
    ("name", "repeats", "modalities"),
    [
        ("video", "forbid", ("text", "image", "audio", "video", "attributes")),
        ("music", "allow", ("text", "image", "audio", "vector.tagger", "attributes")),
        ("shop", "forbid", ("text", "image", "attributes")),
    ],
    ids=["video", "music", "shop"],
)
def test_three_domains_through_one_loader(
    name: str, repeats: str, modalities: tuple[str, ...]
) -> None:
    catalogue = load_catalogue(CONFIGS / f"{name}.yaml")
    assert (catalogue.kind, catalogue.repeats) == (name, repeats)
    assert catalogue.modalities == modalities


def test_a_new_domain_needs_no_code(tmp_path: Path) -> None:
    catalogue = load(tmp_path, BOOKS)
    assert catalogue.modalities == ("text", "image", "vector.old")
    assert catalogue.repeats == "forbid"
    assert catalogue.items.image == ("cover",)
    assert catalogue.items.columns() == ["isbn", "title", "blurb", "cover", "old_vector"]


@pytest.mark.parametrize(
    ("overrides", "name", "min_events"),
    [
        ((), "leave_one_out", 3),
        (("split.cold_test=0.1", "split.seed=7"), "leave_one_out-cold-seed7", 3),
        (("split.name=mine", "split.min_events=5"), "mine", 5),
        (("split.protocol=none",), "none", 1),
        (
            ("split.protocol=time", "split.validation_time=100", "split.test_time=200"),
            "time",
            1,
        ),
    ],
    ids=["default", "cold", "named", "none", "time"],
)
def test_overrides_and_derived_names(
    tmp_path: Path, overrides: tuple[str, ...], name: str, min_events: int
) -> None:
    split = load(tmp_path, BOOKS, *overrides).split
    assert (split.name, split.min_events) == (name, min_events)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("1704067200", 1704067200),
        ("2024-01-01", 1704067200),
        ("2024-01-01T01:00:00+01:00", 1704067200),
        ("'2024-01-01 00:00:00'", 1704067200),
    ],
    ids=["unix", "date", "offset", "text"],
)
def test_instants_are_unix_seconds(tmp_path: Path, given: str, seconds: int) -> None:
    overrides = (f"split.validation_time={given}", "split.test_time=2000000000")
    split = load(tmp_path, BOOKS, "split.protocol=time", *overrides).split
    assert (split.validation_time, split.test_time) == (seconds, 2_000_000_000)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("text:", "txt:", ["catalogue.yaml", "items.txt: unknown key; did you mean 'text'?"]),
        ("kind:", "knd:", ["knd: unknown key; did you mean 'kind'?"]),
        ("  id: isbn\n", "", ["items.id", "required"]),
        ("kind: books", "kind: 3", ["kind: 3"]),
        ("time: lent_at", "event: e", ["interactions: needs order or time"]),
        ("[title, blurb]", "[title, title]", ["text names a column twice: title, title"]),
        ("kind: books", "name: twice", ["line 3: key 'name' is given twice"]),
        ("[title, blurb]", "[title, item_id]", ["'item_id'", "id: isbn"]),
        ("[title, blurb]", "[title, 3]", ["items.text[1]: 3"]),
    ],
    ids=[
        "unknown",
        "misspelt required",
        "missing",
        "wrong type",
        "no order",
        "column twice",
        "key twice",
        "item_id taken",
        "wrong element",
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in BOOKS
    message = fault(tmp_path, BOOKS.replace(old, new))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("split.protocol=loo", "'loo'"),
        ("split.protocl=none", "did you mean 'protocol'?"),
        ("split.cold_test=1.5", "split.cold_test: 1.5"),
        ("split.cold_test", "must be section.field=value"),
        ("name.x=1", "'name' is a value, not a section"),
        ("split.protocol=time", "needs validation_time and test_time"),
        ("split={cold_test: 0.6, cold_validation: 0.5}", "below 1"),
        ("split={protocol: none, cold_test: 0.1}", "cold shares must be 0"),
        ("split={protocol: time, validation_time: 9, test_time: 9}", "must be before"),
        ("split.validation_time=soon", "ISO 8601"),
        ("items.attributes.year.type=int", "'category', 'set' or 'number'"),
        ("items.attributes.year.typ=set", "items.attributes.year.typ: unknown key"),
        ("interactions.targets.min_value=3", "needs value"),
        ("interactions.targets.events=[play]", "needs event"),
        ("interactions.missing.stars=0", "'stars'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, override: str, part: str) -> None:
    assert part in fault(tmp_path, BOOKS, override)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must hold a mapping of keys to values, found nothing"),
        ("- a\n- b\n", "found a list"),
        ("just words", "found a str"),
        ("a: [1\n", "line 2"),
        ("a: b: c\n", "line 1"),
    ],
    ids=["empty", "list", "words", "open bracket", "two colons"],
)
def test_no_mapping_or_no_yaml(tmp_path: Path, text: str, part: str) -> None:
    assert part in fault(tmp_path, text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_catalogue(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_catalogue(tmp_path / "latin.yaml")


def test_a_catalogue_is_frozen(tmp_path: Path) -> None:
    catalogue: Any = load(tmp_path, BOOKS)
    with pytest.raises(ValueError, match="frozen"):
        catalogue.name = "other"
