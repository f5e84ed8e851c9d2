"""Reads the columns of a table (csv, jsonl, parquet) as what the catalogue says they are.

    scan ──► typed columns + the texts that did not fit ──► where ──► collect ──► check

Nothing is inferred: a csv is text throughout, ids and categories stay text whatever they look like
(zip code 02136), and what cannot be read as asked is an error that names the row. Rows are counted
from 1, the header of a csv not counted. Instants are kept in microseconds until they have ordered
the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from data_prep.catalogue import Scalar
from data_prep.errors import DataError

ENDINGS = (".csv", ".jsonl", ".parquet")
ROW = "__row"
# The year 3000 in Unix seconds: beyond it lie timestamps given in milliseconds.
LAST_SECOND = 32_503_680_000

_ISO_FORMS = (
    "%Y-%m-%dT%H:%M:%S%.f%:z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
    "%d %b %Y",  # 22 Nov 1995
)

Kind = Literal["id", "text", "set", "number", "whole", "instant", "vector"]

_EXPECTED = {
    "number": "a number",
    "whole": "a whole number",
    "instant": "an instant: Unix seconds (not milliseconds) or ISO 8601",
}


@dataclass(frozen=True)
class Field:
    """One column to read.

    Attributes:
        name: name in the result.
        column: name in the table.
        key: place in the catalogue file, for messages.
        kind: what its values are.
        missing: values that mean "not known".
        separator: what parts the members of a set.
        required: an empty value is an error.
    """

    name: str
    column: str
    key: str
    kind: Kind
    missing: Sequence[Scalar] = field(default=())
    separator: str = "|"
    required: bool = False


def table_path(source: Path, name: str, key: str) -> Path:
    """Finds a table under the source folder.

    Raises:
        DataError: the path leaves the folder, is no file, or its ending is unknown.
    """
    path = (source / name).resolve()
    if not path.is_relative_to(source.resolve()):
        raise DataError(f"{key}: {name!r} leaves the source folder {source}; move the table there")
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{key}: {name!r} must end in one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"{key}: {name!r} is no file under the source folder {source}")
    return path


def read_table(
    path: Path, fields: Sequence[Field], *, where: str | None, section: str
) -> pl.DataFrame:
    """Reads some columns of a table, in the table's order.

    ``where`` sees every column of the table; those read as numbers are numbers there even in csv.

    Returns:
        A column a field (id, text: String; set: List(String); number: Float64; whole: Int64;
        instant: Int64 microseconds; vector: List(Float32)) and `ROW`, Int64, 1-based.

    Raises:
        DataError: an unknown column, a value of the wrong type, a bad condition, a broken file.
    """
    try:
        frame = _scan(path)
        schema = frame.collect_schema()
        _require_columns(fields, schema, path)
        values = [_value(f, schema[f.column], path).alias(f"value:{f.name}") for f in fields]
        faults = [
            _fault(f, schema[f.column]).alias(f"fault:{f.name}") for f in fields if _can_fail(f)
        ]
        frame = frame.with_columns(values).with_columns(faults)
        if where is not None:
            frame = _filter(frame, fields, schema, where)
        result = frame.select(
            pl.col(ROW).cast(pl.Int64),
            pl.col("^value:.*$"),
            pl.col("^fault:.*$"),
            # A csv row with too many cells is noticed only where the last column is read.
            pl.col(schema.names()[-1]).is_null().alias("__last"),
        ).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise DataError(_explain(error, path, where, section)) from None
    for spec in fields:
        _check(result, spec, path)
    return result.sort(ROW).select(ROW, *(pl.col(f"value:{f.name}").alias(f.name) for f in fields))


def refuse_duplicates(table: pl.DataFrame, column: str, *, path: Path, what: str) -> None:
    """Refuses an id that stands in two rows.

    Raises:
        DataError: names the id and both rows.
    """
    again = table.filter(~pl.col(column).is_first_distinct())
    if len(again) == 0:
        return
    value, second = again[column][0], again[ROW][0]
    first = table.filter(pl.col(column) == value)[ROW][0]
    more = f" (and {len(again) - 1} more)" if len(again) > 1 else ""
    raise DataError(
        f"{path.name}: {what} {value!r} stands in rows {first} and {second}; "
        f"ids must be unique: remove one{more}"
    )


def _scan(path: Path) -> pl.LazyFrame:
    ending = path.suffix.lower()
    if ending == ".csv":
        frame = pl.scan_csv(path, infer_schema=False)
    elif ending == ".jsonl":
        # The whole file decides: a first hundred whole-number ids must not break on a later "a1".
        frame = pl.scan_ndjson(path, infer_schema_length=None)
    else:
        frame = pl.scan_parquet(path)
    return frame.with_row_index(ROW, offset=1)


def _require_columns(fields: Sequence[Field], schema: pl.Schema, path: Path) -> None:
    there = [name for name in schema.names() if name != ROW]
    for spec in fields:
        if spec.column not in there:
            near = difflib.get_close_matches(spec.column, there, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"{spec.key}: {path.name} has no column {spec.column!r}; {hint}"
                f"columns there: {', '.join(there)}"
            )


def _can_fail(spec: Field) -> bool:
    return spec.required or spec.kind in _EXPECTED


def _refuse(spec: Field, dtype: pl.DataType, path: Path, wanted: str) -> DataError:
    return DataError(f"{spec.key}: column {spec.column!r} of {path.name} is {dtype}, not {wanted}")


def _value(spec: Field, dtype: pl.DataType, path: Path) -> pl.Expr:
    """What a column holds, null where it is missing or does not fit."""
    column = pl.col(spec.column)
    if spec.kind == "vector":
        if not isinstance(dtype, pl.List | pl.Array) or not dtype.inner.is_numeric():
            raise _refuse(spec, dtype, path, "a list of numbers (csv cannot hold vectors)")
        return column.cast(pl.List(pl.Float32))
    if spec.kind == "set" and isinstance(dtype, pl.List | pl.Array):
        return column.cast(pl.List(pl.String))
    if dtype.is_nested() or dtype == pl.Binary:
        raise _refuse(spec, dtype, path, "plain values")
    if spec.kind == "id" and (dtype.is_float() or dtype == pl.Boolean):
        raise _refuse(spec, dtype, path, "ids: store them as text or whole numbers")
    if spec.kind in ("id", "text"):
        return _text(spec, column)
    if spec.kind == "set":
        return _text(spec, column).str.split(spec.separator).list.eval(_members())
    if spec.kind == "instant":
        return pl.when(_is_missing(spec, dtype)).then(None).otherwise(_instant(column, dtype))
    if not (dtype == pl.String or dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise _refuse(spec, dtype, path, _EXPECTED[spec.kind])
    number = _number(column, pl.Int64 if spec.kind == "whole" else pl.Float64, dtype)
    return pl.when(_is_missing(spec, dtype)).then(None).otherwise(number)


def _text(spec: Field, column: pl.Expr) -> pl.Expr:
    text = column.cast(pl.String)
    return pl.when(text.is_in([str(value) for value in spec.missing])).then(None).otherwise(text)


def _members() -> pl.Expr:
    member = pl.element().str.strip_chars()
    return member.filter(member != "")


def _number(column: pl.Expr, kind: type[pl.DataType], dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        column = column.str.strip_chars()
    number = column.cast(pl.Float64, strict=False)
    if kind == pl.Float64:
        return pl.when(number.is_finite()).then(number)
    whole = column.cast(pl.Int64, strict=False)
    return pl.when(number.is_null() | (number == number.floor())).then(
        whole if not dtype == pl.String else pl.coalesce(whole, number.cast(pl.Int64, strict=False))
    )


def _instant(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Microseconds since 1970, UTC; null where the value is no instant."""
    if dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("us")
    if dtype == pl.String:
        text = column.str.strip_chars()
        number = text.cast(pl.Float64, strict=False)
    else:
        number = column.cast(pl.Float64, strict=False)
    in_range = number.is_finite() & (number.abs() < LAST_SECOND)
    # Rounded before the cast: 0.1 + 0.2 s must not fall into the microsecond below.
    seconds = pl.when(in_range).then((number * 1e6).round().cast(pl.Int64, strict=False))
    if dtype != pl.String:
        return seconds
    iso = text.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"Z$", "+00:00")
    return pl.coalesce(
        seconds,
        *(
            iso.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")
            for form in _ISO_FORMS
        ),
    )


def _is_missing(spec: Field, dtype: pl.DataType) -> pl.Expr:
    """Whether a value means "not known": given as such, empty text, or NaN."""
    column = pl.col(spec.column)
    numbers = [float(value) for value in spec.missing if not isinstance(value, str)]
    texts = [str(value) for value in spec.missing]
    if dtype.is_temporal():
        return column.is_null() | column.cast(pl.String).is_in(texts)
    number = column.cast(pl.Float64, strict=False)
    missing = column.is_null() | (number.is_nan() | number.is_in(numbers)).fill_null(False)
    return missing | column.cast(pl.String).str.strip_chars().is_in(["", *texts])


def _fault(spec: Field, dtype: pl.DataType) -> pl.Expr:
    """The text of a value that does not fit, null where all is well."""
    value = pl.col(f"value:{spec.name}")
    text = pl.col(spec.column).cast(pl.String).fill_null("")
    if spec.required:
        return pl.when(value.is_null()).then(text)
    return pl.when(value.is_null() & ~_is_missing(spec, dtype).fill_null(True)).then(text)


def _filter(
    frame: pl.LazyFrame, fields: Sequence[Field], schema: pl.Schema, where: str
) -> pl.LazyFrame:
    numbers = [
        pl.col(spec.column).cast(pl.Float64, strict=False)
        for spec in {f.column: f for f in fields if f.kind in ("number", "whole")}.values()
        if schema[spec.column] == pl.String
    ]
    return frame.with_columns(numbers).filter(pl.sql_expr(where))


def _check(result: pl.DataFrame, spec: Field, path: Path) -> None:
    if not _can_fail(spec):
        return
    bad = result.filter(pl.col(f"fault:{spec.name}").is_not_null())
    if len(bad) == 0:
        return
    row, text = bad[ROW][0], bad[f"fault:{spec.name}"][0]
    more = f" (and {len(bad) - 1} rows more)" if len(bad) > 1 else ""
    found = repr(text) if text else "empty"
    expected = _EXPECTED.get(spec.kind, "a value")
    raise DataError(
        f"{path.name}: row {row}: column {spec.column!r} is {found}; "
        f"{spec.key} must be {expected}{more}"
    )


def _explain(error: Exception, path: Path, where: str | None, section: str) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "unreadable")
    in_condition = (pl.exceptions.SQLInterfaceError, pl.exceptions.SQLSyntaxError)
    in_columns = (pl.exceptions.ColumnNotFoundError, pl.exceptions.InvalidOperationError)
    if where is not None and isinstance(error, in_condition + in_columns):
        return f"{section}.where: {where!r} does not work on {path.name}: {reason}"
    return f"{path.name}: cannot be read as {path.suffix.lower()[1:]}: {reason}"
