"""Reading tables: ids stay text, the log keeps its order, and a bad value names its row."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_prep.catalogue import Catalogue, load_catalogue, parse_catalogue
from data_prep.errors import DataError
from data_prep.interactions import read_interactions, read_items, read_users, select_events

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "catalogues"


def catalogue(**sections: Any) -> Catalogue:
    document: dict[str, Any] = {
        "name": "test",
        "kind": "shop",
        "items": {"table": "items.csv", "id": "id"},
        "interactions": {"table": "log.csv", "user": "u", "item": "i", "time": "t"},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return parse_catalogue(document)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def fault(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- items -------------------------------------------------------------------------------------


def test_items_keep_ids_and_categories_as_text(tmp_path: Path) -> None:
    spec = catalogue(
        items={
            "missing": ["", "N/A"],
            "text": ["title"],
            "attributes": {
                "zip": {"type": "category"},
                "tags": {"type": "set"},
                "price": {"type": "number"},
            },
        }
    )
    write(
        tmp_path,
        "items.csv",
        'id,title,zip,tags,price\n007,"A, b",02136-1522,x| y |,1e1\n1,N/A,1,,\n1.0,c,,z,N/A\n',
    )
    items = read_items(spec, tmp_path)
    assert items.to_dict(as_series=False) == {
        "item_id": ["007", "1", "1.0"],
        "title": ["A, b", None, "c"],
        "zip": ["02136-1522", "1", None],
        "tags": [["x", "y"], None, ["z"]],
        "price": [10.0, None, None],
    }


def test_one_table_in_three_formats(tmp_path: Path) -> None:
    rows = [{"id": n, "title": f"t{n}", "vec": [n / 2, 1.0], "tags": ["a", "b"]} for n in (3, 1, 2)]
    section = {"text": ["title"], "vectors": {"v": "vec"}, "attributes": {"tags": {"type": "set"}}}
    pl.DataFrame(rows).write_parquet(tmp_path / "items.parquet")
    write(tmp_path, "items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    frames = [
        read_items(catalogue(items={**section, "table": f"items.{ending}"}), tmp_path)
        for ending in ("parquet", "jsonl")
    ]
    assert frames[0].equals(frames[1])
    assert frames[0]["item_id"].to_list() == ["3", "1", "2"]
    assert frames[0].schema["vec"] == pl.List(pl.Float32)
    plain = pl.DataFrame(rows).select("id", "title")
    plain.write_csv(tmp_path / "items.csv")
    from_csv = read_items(catalogue(items={"text": ["title"]}), tmp_path)
    assert from_csv.equals(frames[0].select("item_id", "title"))


def test_where_sees_numbers_and_every_column(tmp_path: Path) -> None:
    write(tmp_path, "items.csv", "id,price,state\na,9,on\nb,10,off\nc,11,on\nd,oops,off\n")
    section = {"attributes": {"price": {"type": "number"}}, "where": "price > 9 AND state = 'on'"}
    assert read_items(catalogue(items=section), tmp_path)["item_id"].to_list() == ["c"]


@pytest.mark.parametrize("where", ["colour = 1", "price >< 3", "price ="])
def test_a_where_that_does_not_work(tmp_path: Path, where: str) -> None:
    write(tmp_path, "items.csv", "id,price\na,9\n")
    assert "items.where" in fault(read_items, catalogue(items={"where": where}), tmp_path)


def test_a_duplicate_id_names_both_rows(tmp_path: Path) -> None:
    write(tmp_path, "items.csv", "id\na\nb\nc\nb\n")
    message = fault(read_items, catalogue(), tmp_path)
    assert "item id 'b' stands in rows 2 and 4" in message


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"text": ["titel"]}, ["items.text", "'titel'", "did you mean 'title'?", "id, title, n"]),
        ({"table": "nowhere.csv"}, ["items.table", "'nowhere.csv' is no file"]),
        ({"table": "../outside.csv"}, ["'../outside.csv' leaves the source folder"]),
        ({"table": "items.xlsx"}, [".csv, .jsonl, .parquet"]),
        (
            {"attributes": {"n": {"type": "number"}}},
            ["items.csv: row 3: column 'n' is 'many'", "items.attributes.n must be a number"],
        ),
        ({"available": {"from": "title"}}, ["row 1", "'one'", "ISO 8601"]),
        ({"id": "n"}, ["row 2: column 'n' is empty; items.id"]),
        ({"vectors": {"v": "n"}}, ["items.vectors.v", "csv cannot hold vectors"]),
    ],
    ids=["column", "table", "outside", "ending", "number", "instant", "empty id", "vector"],
)
def test_bad_items_are_one_line(tmp_path: Path, section: dict[str, Any], parts: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(tmp_path, "outside.csv", "id\na\n")
    write(source, "items.csv", "id,title,n\na,one,1\nb,two,\nc,three,many\n")
    message = fault(read_items, catalogue(items=section), source)
    for part in parts:
        assert part in message


def test_a_link_out_of_the_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(tmp_path, "outside.csv", "id\na\n")
    (source / "items.csv").symlink_to(tmp_path / "outside.csv")
    assert "leaves the source folder" in fault(read_items, catalogue(), source)


def test_float_ids_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1.0, 2.0]}).write_parquet(tmp_path / "items.parquet")
    message = fault(read_items, catalogue(items={"table": "items.parquet"}), tmp_path)
    assert "Float64" in message and "text or whole numbers" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.csv", b""),
        ("items.csv", b"id,title\na,b,c,d\n"),
        ("items.jsonl", b'{"id": 1}\n{"id": \n'),
        ("items.parquet", b"PAR1 no parquet"),
    ],
    ids=["empty", "ragged", "cut json", "no parquet"],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in fault(read_items, catalogue(items={"table": name}), tmp_path)


def test_availability_in_unix_seconds(tmp_path: Path) -> None:
    write(tmp_path, "items.csv", "id,a,z\n1,1970-01-02,\n2,22 Nov 1995,100\n3,,N/A\n")
    section = {"available": {"from": "a", "until": "z"}, "missing": ["", "N/A"]}
    items = read_items(catalogue(items=section), tmp_path)
    start = int(datetime(1995, 11, 22, tzinfo=UTC).timestamp())
    assert items["available.from"].to_list() == items["a"].to_list() == [86400, start, None]
    assert items["available.until"].to_list() == [None, 100, None]


def test_media_paths_may_start_from_the_folder_of_their_table(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").touch()
    paths = ["pictures/a.jpg", "../pictures/a.jpg", "b.jpg", "../../out.jpg"]
    write(tmp_path / "tables", "items.csv", "id,image\n" + "".join(f"{p},{p}\n" for p in paths))
    spec = catalogue(items={"table": "tables/items.csv", "image": ["image"]})
    assert read_items(spec, tmp_path)["image"].to_list() == [
        "pictures/a.jpg",
        "pictures/a.jpg",
        "tables/b.jpg",
        "../../out.jpg",
    ]


def test_another_table_of_the_same_columns(tmp_path: Path) -> None:
    new = tmp_path / "elsewhere" / "new.jsonl"
    new.parent.mkdir()
    new.write_text('{"id": "n1"}\n', encoding="utf-8")
    assert read_items(catalogue(), tmp_path, table=new)["item_id"].to_list() == ["n1"]


# --- the log -----------------------------------------------------------------------------------

NOW = datetime(2024, 5, 20, 12, 0, tzinfo=UTC)
DAYS_AGO = {"1": 5, "3": 3, "5": 1}


@pytest.mark.parametrize("seed", range(4))
def test_worked_example_in_any_order(tmp_path: Path, seed: int) -> None:
    """A user (25, male, engineer) browses item 1, favourites item 3, clicks item 5."""
    rows = [
        f"7,{item},{event},{(NOW - timedelta(days=DAYS_AGO[item])).isoformat()}"
        for item, event in (("1", "browse"), ("3", "favourite"), ("5", "click"))
    ]
    random.Random(seed).shuffle(rows)
    write(tmp_path, "log.csv", "\n".join(["u,i,e,t", *rows]) + "\n")
    write(tmp_path, "users.csv", "id,age,gender,job\n7,25,male,engineer\n")
    spec = catalogue(
        interactions={"event": "e"},
        users={
            "table": "users.csv",
            "id": "id",
            "attributes": {
                "age": {"type": "number"},
                "gender": {"type": "category"},
                "job": {"type": "category"},
            },
        },
    )
    users = read_users(spec, tmp_path)
    assert users is not None
    assert users.rows() == [("7", 25.0, "male", "engineer")]
    log = read_interactions(spec, tmp_path)
    assert log["item_id"].to_list() == ["1", "3", "5"]
    assert log["event"].to_list() == ["browse", "favourite", "click"]
    ages = [(int(NOW.timestamp()) - time) / 86400 for time in log["time"].to_list()]
    assert ages == [5, 3, 1]


def test_no_users_table() -> None:
    assert read_users(catalogue(), Path("unused")) is None


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [
        ("b", "x", 5),
        ("a", "z", 2),
        ("a", "y", 1),
        ("b", "w", 5),
        ("a", "q", 2),
        ("a", "k", 2),
    ]
    write(tmp_path, "log.csv", "u,i,t\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    log = read_interactions(catalogue(), tmp_path)
    assert log.select("user_id", "item_id", "row").rows() == [
        ("a", "y", 3),
        ("a", "z", 2),
        ("a", "q", 5),
        ("a", "k", 6),
        ("b", "x", 1),
        ("b", "w", 4),
    ]


def test_order_decides_over_time(tmp_path: Path) -> None:
    write(tmp_path, "log.csv", "u,i,t,n\na,x,1,10\na,y,2,9\na,z,0,-1\n")
    spec = catalogue(interactions={"order": "n", "missing": {"t": 0}})
    log = read_interactions(spec, tmp_path)
    assert log["item_id"].to_list() == ["z", "y", "x"]
    assert log["order"].to_list() == [-1, 9, 10]
    assert log["time"].to_list() == [None, 2, 1]


def test_parts_of_a_second_order_the_log(tmp_path: Path) -> None:
    write(tmp_path, "log.csv", "u,i,t\na,x,2024-01-01T00:00:00.9Z\na,y,2024-01-01 00:00:00.1\n")
    log = read_interactions(catalogue(), tmp_path)
    assert log["item_id"].to_list() == ["y", "x"]
    assert log["time"].to_list() == [1704067200, 1704067200]


def test_types_of_the_log(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "u": [1, 1],
            "i": [10, 11],
            "t": [datetime(2024, 1, 1), datetime(2024, 1, 2)],
            "stars": [0, 4],
            "device": ["", "phone"],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    section = {
        "table": "log.parquet",
        "value": "stars",
        "missing": {"stars": 0},
        "context": ["device"],
    }
    log = read_interactions(catalogue(interactions=section), tmp_path)
    assert dict(log.schema) == {
        "user_id": pl.String,
        "item_id": pl.String,
        "row": pl.Int64,
        "time": pl.Int64,
        "value": pl.Float64,
        "context.device": pl.String,
    }
    assert log.rows() == [
        ("1", "10", 1, 1704067200, None, None),
        ("1", "11", 2, 1704153600, 4.0, "phone"),
    ]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("a,x,yesterday,1,1", ["row 2: column 't' is 'yesterday'", "interactions.time"]),
        ("a,x,1700000000000,1,1", ["row 2", "not milliseconds"]),
        ("a,x,1,good,1", ["row 2: column 'v' is 'good'", "interactions.value must be a number"]),
        ("a,x,1,1,1.5", ["row 2: column 'n' is '1.5'", "a whole number"]),
        ("a,x,1,1,", ["row 2: column 'n' is empty", "interactions.order"]),
    ],
    ids=["time", "milliseconds", "value", "order", "no order"],
)
def test_a_wrong_type_names_the_row(tmp_path: Path, row: str, parts: list[str]) -> None:
    write(tmp_path, "log.csv", f"u,i,t,v,n\na,x,1,1,1\n{row}\n")
    spec = catalogue(interactions={"value": "v", "order": "n"})
    message = fault(read_interactions, spec, tmp_path)
    for part in parts:
        assert part in message


def test_what_cannot_be_used_comes_back_with_its_reason(tmp_path: Path) -> None:
    lines = ["a,x,1", "a,gone,2", "a,y,3", "b,x,1", "b,gone,2", ",x,1", "a,,4", "a,z,"]
    write(tmp_path, "log.csv", "\n".join(["u,i,t", *lines]) + "\n")
    log = read_interactions(catalogue(), tmp_path)
    chosen = select_events(log, ["x", "y", "z"], min_events=2)
    assert chosen.events.select("user_id", "item_id").rows() == [("a", "x"), ("a", "y")]
    assert chosen.rejected.select("row", "kind", "reason").rows() == [
        (2, "interaction", "unknown item"),
        (4, "user", "user has fewer than 2 events: 1"),
        (5, "interaction", "unknown item"),
        (6, "interaction", "no user id"),
        (7, "interaction", "no item id"),
        (8, "interaction", "no time"),
    ]
    assert len(chosen.events) + len(chosen.rejected) == len(log)


def test_an_event_without_time_is_fine_where_order_decides(tmp_path: Path) -> None:
    write(tmp_path, "log.csv", "u,i,t,n\na,x,,1\na,y,3,2\n")
    log = read_interactions(catalogue(interactions={"order": "n"}), tmp_path)
    assert len(select_events(log, ["x", "y"], min_events=1).events) == 2


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.realdata
def test_movielens_1m(shared_data: Path) -> None:
    spec = load_catalogue(CONFIGS / "movielens-1m.yaml")
    source = shared_data / "ml-1m"
    items, users = read_items(spec, source), read_users(spec, source)
    assert users is not None
    assert (len(items), len(users)) == (3883, 6040)
    assert "02136-1522" in set(users["zip"]) or users["zip"].str.starts_with("0").any()
    log = read_interactions(spec, source)
    chosen = select_events(log, items["item_id"], min_events=spec.split.min_events)
    assert len(chosen.rejected) == 0
    events = chosen.events
    assert (len(events), events["user_id"].n_unique(), events["item_id"].n_unique()) == (
        999_611,
        6040,
        3416,
    )
    assert events["value"].is_not_null().sum() == events["time"].is_not_null().sum() == 487_344
    first = events.filter(pl.col("user_id") == "1")
    assert first["order"].to_list() == list(range(len(first)))


@pytest.mark.realdata
def test_movielens_100k(shared_data: Path) -> None:
    spec = load_catalogue(CONFIGS / "movielens-100k.yaml")
    items = read_items(spec, shared_data)
    posters = items["poster_file"].drop_nulls()
    assert len(posters) == 1425
    assert all((shared_data / path).is_file() for path in posters)
    log = read_interactions(spec, shared_data)
    chosen = select_events(log, items["item_id"], min_events=1)
    assert (len(chosen.events), chosen.events["user_id"].n_unique()) == (100_000, 943)
    assert chosen.events["time"].null_count() == 0
