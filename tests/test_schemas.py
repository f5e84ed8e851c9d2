"""The types of report.json and of a comparison: what they let pass, and that they do not drift."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mmrec.evaluation.schemas import ComparisonDocument, ReportDocument

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(ReportDocument, "report.schema.json", id="report"),
        pytest.param(ComparisonDocument, "comparison.schema.json", id="comparison"),
    ],
)
def test_the_schema_is_the_one_that_was_published(kind: type[BaseModel], name: str) -> None:
    """A key that comes, goes or changes its type shows here; readers outside rely on them."""
    assert without_words(kind.model_json_schema()) == json.loads((GOLDEN / name).read_text())


def without_words(schema: Any) -> Any:
    """A schema without its descriptions, which are docstrings."""
    if isinstance(schema, dict):
        return {key: without_words(own) for key, own in schema.items() if key != "description"}
    return [without_words(own) for own in schema] if isinstance(schema, list) else schema


def golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / "report.json").read_text())
    document["tests"] = [
        {
            "slice": "warm",
            "metric": "ndcg@10",
            "first": "mmrec",
            "second": "popularity",
            "difference": 0.1,
            "interval": [0.05, 0.15],
            "p_value": 0.01,
            "num_users": 3,
        }
    ]
    return document


def test_the_golden_report_has_the_schema() -> None:
    found = ReportDocument.model_validate_json(json.dumps(golden()))
    assert found.tests[0].interval == (0.05, 0.15)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("schema",), 2, id="version"),
        pytest.param(("surprise",), 1, id="unknown-key"),
        pytest.param(("learning", "surprise"), 1, id="unknown-key-within"),
        pytest.param(("tests", 0, "surprise"), 1, id="unknown-key-of-a-part"),
        pytest.param(("seed",), "5", id="text-for-a-number"),
        pytest.param(("tests", 0, "interval"), [0.1], id="half-an-interval"),
        pytest.param(("models", "mmrec", "warm", "hr@10"), None, id="no-figure"),
        pytest.param(("strips", 0, "met"), "i1", id="one-for-a-list"),
    ],
)
def test_another_shape_is_refused(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(golden())
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        ReportDocument.model_validate_json(json.dumps(document))


def test_a_missing_key_is_refused() -> None:
    document = golden()
    del document["learning"]["gap"]
    with pytest.raises(ValidationError, match=r"learning\.gap"):
        ReportDocument.model_validate_json(json.dumps(document))
