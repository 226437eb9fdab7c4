"""What the description promises holds for whatever fits it, and for much that does not: generated requests to every
operation of the OpenAPI schema but the import, whose lines are no JSON. No server error, and no answer that the schema
does not name."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

pytestmark = pytest.mark.django_db(transaction=True)

EXAMPLES = 6
"""Of each operation, and as many of what does not fit it."""
TAKEN = {"add", "extract", "search"}
"""No memory has such an id: these are routes of their own, with methods of their own."""
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]


def test_every_operation_answers_as_the_schema_says(api, worker):
    schema = schemathesis.openapi.from_wsgi("/api/schema/?format=json", get_wsgi_application())
    operations = [operation.ok() for operation in schema.exclude(operation_id="memory_import").get_all_operations()]
    operations.sort(key=lambda operation: operation.method == "delete")
    assert len(operations) > 15
    there = _something(api)
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            _ask(operation, mode, api.headers, there if mode.is_positive else {})


def _something(api: Any) -> dict[str, str]:
    """Ids of what exists."""
    added = api.add("tea", user_id="ann").json()
    said = {"user_id": "ann", "session_id": "s", "role": "user", "content": "hello"}
    return {
        "user_id": "ann",
        "memory_id": added["results"][0]["id"],
        "job_id": added["job_id"],
        "session_id": api.post("/stm/add_message", said).json()["session_id"],
        "run_id": api.post("/users/ann/warm").json()["run_id"],
    }


def _ask(operation: Any, mode: Any, headers: dict[str, str], there: dict[str, str]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        assume(case.path_parameters.get("memory_id") not in TAKEN)
        if known:
            case.path_parameters |= {name: there[name] for name in case.path_parameters if name in there}
        for sent in (case.body, case.query):
            if isinstance(sent, dict) and sent.get("wait", "stored") in ("stored", "warm") and case.method != "GET":
                sent |= {"wait": "none"} if _waits(operation, sent is case.query) else {}
        case.call_and_validate(headers=headers, checks=CHECKS)

    ask()


def _waits(operation: Any, by_query: bool) -> bool:
    """Whether the operation takes `wait` there; how long a write takes is not of the schema."""
    raw = operation.definition.raw
    if by_query:
        return any(one["name"] == "wait" for one in raw.get("parameters", ()))
    body = raw.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return "wait" in body.get("properties", {})
