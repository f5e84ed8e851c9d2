from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_catalogue import item_rows, write_catalogue, write_source

from data_prep.errors import ShardError
from data_prep.inspect import inspect, render
from data_prep.prepare import prepare


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rows = item_rows()
    rows[4]["title"] = "  SOUND "  # the same text as item 3
    source = write_source(tmp_path / "source", rows)
    with open(source / "log.csv", "a") as log:
        log.write("u1,2,900,play,,phone\nu4,2,900,play,,phone\n")
    out = tmp_path / "out"
    overrides = ["split.cold_test=0.4"]
    prepare(write_catalogue(tmp_path), source, out, overrides=overrides, num_workers=1)
    return out


def test_facts_are_those_counted_by_hand(prepared: Path) -> None:
    facts = inspect(prepared)
    assert facts["counts"]["interactions"] == 14 and facts["counts"]["users_with_events"] == 4
    assert facts["repeated_interactions"] == 1
    assert facts["density"] == pytest.approx(13 / (4 * 5))
    # u4 met one item only and is set aside by the split: 4, 4 and 5 events are left
    assert facts["events_per_user"] == {
        "min": 4, "p10": 4, "p50": 4, "p90": 4, "max": 5, "mean": 4.33
    }  # fmt: skip
    assert facts["events_per_item"]["max"] == 4 and facts["events_per_item"]["min"] == 1
    assert facts["coverage"]["modalities"]["image"] == {"items": 3, "share": 0.5}
    assert facts["coverage"]["modalities"]["vector.clip"]["items"] == 1
    assert facts["coverage"]["text_fields"] == {
        "title": {"items": 5, "share": 5 / 6},
        "plot": {"items": 2, "share": 2 / 6},
    }
    # b.png of items 2 and 5, and the text of items 3 and 5: one item repeats earlier ones
    assert facts["duplicates"] == {"exact": 1, "near_duplicate_groups": 1}
    assert facts["quarantine"] == {}
    split = facts["splits"]["leave_one_out-cold"]
    assert split["quarantine"] == {"user": {"too few events": 1}}
    assert split["num_items"]["cold_test"] == 2 and split["protocol"] == "leave_one_out"


def test_facts_are_json(prepared: Path) -> None:
    facts = inspect(prepared)
    assert json.loads(json.dumps(facts)) == facts


def test_the_text_is_aligned_and_complete(prepared: Path) -> None:
    text = render(inspect(prepared))
    assert "65.00%" in text and "vector.clip" in text and "user: too few events" in text
    per_user = next(line for line in text.splitlines() if line.startswith("per user"))
    per_item = next(line for line in text.splitlines() if line.startswith("per item"))
    assert len(per_user) == len(per_item)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_no_prepared_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no manifest"):
        inspect(tmp_path)
