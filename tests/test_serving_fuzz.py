"""Requests drawn from the service's own OpenAPI: no 5xx, and answers of the types it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from live_servers import serving
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]
CHECKS = [not_a_server_error, response_schema_conformance]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_whatever_is_sent_is_answered(tiny_run: Path, tmp_path: Path) -> None:
    statuses: dict[str, set[int]] = {}

    def draw_from(operation: Any, mode: GenerationMode) -> None:
        @seed(0)
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            answer = case.call()
            case.validate_response(answer, checks=CHECKS)
            statuses.setdefault(operation.path, set()).add(answer.status_code)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"code", "message", "field"}

        send()

    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    with serving(ServiceSettings(path=tiny_run, database=url)) as (address, service):
        document = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()
            draw_from(operation, GenerationMode.POSITIVE)
            if operation.path.startswith("/v1"):
                draw_from(operation, GenerationMode.NEGATIVE)
        assert service.live is not None
    assert statuses.keys() == document.raw_schema["paths"].keys()
    assert 200 in statuses["/v1/recommend"] and 422 in statuses["/v1/recommend"]
    assert not any(status >= 500 for found in statuses.values() for status in found)
