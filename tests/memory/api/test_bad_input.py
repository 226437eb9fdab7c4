"""Bad input is told field by field, and goes no further: nothing is stored and Mem0 is not called."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from memory.models import Job

pytestmark = pytest.mark.django_db

LONE, NUL, WIDE = "a\ud800", "a\0b", "x" * 513
ADD = {"user_id": "ann", "memories": ["tea"]}
EXTRACT = {"user_id": "ann", "messages": [{"role": "user", "content": "tea"}]}
SEARCH = {"user_id": "ann", "query": "tea"}
MEMORY = f"/memory/{uuid.uuid4()}"


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


BAD_IDS = ["", " ", "a b", " a", "a\u00a0b", "a\n", NUL, LONE, WIDE, "ễ" * 501, "*", 7, 1.5, True, [], {}, None]
BAD_TEXTS = ["", " \n", NUL, LONE, 7, True, [], {}, None]
BAD_DATES = ["2026-02-30", "2026-1-1", "20260101", "2026-W01-1", "2026-01-01T00:00:00", "soon", 20260101, True]
BAD_METADATA = [
    "x",
    [],
    7,
    {"memsvc_job": "x"},
    {"user_id": "ben"},
    {"data": "x"},
    {"hash": "x"},
    {"a": NUL},
    {NUL: "a"},
    {"a": LONE},
    {"a": 2**64},
    {"a": "x" * 20_000},
    deep(40),
]
BAD_FILTERS = [
    "x",
    [],
    {"user_id": "ben"},
    {"AND": [{"agent_id": "x"}]},
    {"memsvc_job": "x"},
    {"created_at": "x"},
    {"a": {"like": "x"}},
    {"a": {}},
    {"a": None},
    {"a": [1, 2]},
    {"a": {"gt": "x"}},
    {"a": {"gt": True}},
    {"a": {"in": "x"}},
    {"a": {"in": []}},
    {"a": {"contains": 7}},
    {"AND": {}},
    {"AND": []},
    {"OR": [7]},
    {"OR": [{}]},
    {"OR": [{"NOT": [{"a": 1}]}]},
    {"AND": [{"OR": [{"a": 1}]}, {"OR": [{"a": 2}]}]},
    {"AND": [{"a": 1}, {"a": 2}]},
    {"$or": []},
    {"": 1},
    {"a": NUL},
    {str(n): n for n in range(51)},
    deep(9),
]


def table() -> list[Any]:
    """(method, path, body, fields)"""
    rows: list[tuple[str, str, Any, set[str]]] = []
    for path, good in (("/memory/add", ADD), ("/memory/extract", EXTRACT), ("/memory/search", SEARCH)):
        rows += [("POST", path, good | {"user_id": value}, {"user_id"}) for value in BAD_IDS]
        rows += [("POST", path, {k: v for k, v in good.items() if k != "user_id"}, {"user_id"})]
        rows += [
            ("POST", path, good | {name: value}, {name})
            for name in ("agent_id", "run_id")
            for value in BAD_IDS
            if value is not None
        ]
        rows += [("POST", path, value, {"body"}) for value in ([], "x", 7, [good])]
        rows += [("POST", path, good | {"timeout_ms": value}, {"timeout_ms"}) for value in (0, 55_001, "1", 1.5, True)]
        rows += [("POST", path, good | {"app_id": "x"}, {"app_id"})]
        rows += [("POST", path, {}, {"user_id", next(name for name in good if name != "user_id")})]
        rows += [("POST", f"{path}?wait=warm", good, {"wait"})]
    for path, good in (("/memory/add", ADD), ("/memory/extract", EXTRACT)):
        rows += [("POST", path, good | {"wait": value}, {"wait"}) for value in ("soon", "", True, 1)]
    rows += [
        ("POST", "/memory/add", ADD | {"memories": value}, {"memories"}) for value in ([], "tea", {}, ["x"] * 1001)
    ]
    rows += [
        ("POST", "/memory/add", ADD | {"memories": ["tea", value]}, {"memories[1].text"}) for value in ("", " ", NUL)
    ]
    rows += [
        ("POST", "/memory/add", ADD | {"memories": ["tea", value]}, {"memories[1]"}) for value in (7, None, [], LONE)
    ]
    for value in BAD_TEXTS:
        rows += [("POST", "/memory/add", ADD | {"memories": [{"text": value}]}, {"memories[0].text"})]
        rows += [("POST", "/memory/search", SEARCH | {"query": value}, {"query"})]
        message = {"role": "user", "content": value}
        rows += [("POST", "/memory/extract", EXTRACT | {"messages": [message]}, {"messages[0].content"})]
    rows += [("POST", "/memory/add", ADD | {"memories": [{"text": "x", "id": 1}]}, {"memories[0].id"})]
    for value in BAD_DATES:
        rows += [("POST", "/memory/add", ADD | {"expiration_date": value}, {"expiration_date"})]
        rows += [("PUT", MEMORY, {"expiration_date": value}, {"expiration_date"})]
    for value in BAD_METADATA:
        rows += [("POST", "/memory/add", ADD | {"metadata": value}, {"metadata"})]
        rows += [("POST", "/memory/extract", EXTRACT | {"metadata": value}, {"metadata"})]
        rows += [("PUT", MEMORY, {"metadata": value}, {"metadata"})]
    messages = [([], "messages"), ("hello", "messages"), (["hello"], "messages[0]")]
    messages += [([{"role": role, "content": "x"}], "messages[0].role") for role in ("me", "", 7, None)]
    messages += [([{"role": "user", "content": "x", "name": "y"}], "messages[0].name")]
    rows += [("POST", "/memory/extract", EXTRACT | {"messages": value}, {field}) for value, field in messages]
    search: list[tuple[dict[str, Any], str]] = [
        *(({"top_k": value}, "top_k") for value in (0, -1, 1001, "10", 1.0, True)),
        *(({"threshold": value}, "threshold") for value in (-0.1, 1.1, "0.5", True)),
        *(({"consistency": value}, "consistency") for value in ("loose", "", 1, True)),
        ({"consistency": "bounded"}, "max_age_ms"),
        ({"max_age_ms": 100}, "max_age_ms"),
        *(({"consistency": "bounded", "max_age_ms": value}, "max_age_ms") for value in (-1, 5001, "1", True)),
        *(
            ({"min_version": value}, "min_version")
            for value in ("7", "user:x", "agent:7", "user:-1", 7, "user:" + "9" * 20)
        ),
        *(({"filters": value}, "filters") for value in BAD_FILTERS),
        *(({"explain": value}, "explain") for value in (1, "true")),
        ({"session_id": "a b"}, "session_id"),
    ]
    rows += [("POST", "/memory/search", SEARCH | more, {field}) for more, field in search]
    rows += [("PUT", MEMORY, body, {"body"}) for body in ({}, {"wait": "none"}, [], "x")]
    rows += [("PUT", MEMORY, {"text": value}, {"text"}) for value in BAD_TEXTS if value is not None]
    rows += [("PUT", MEMORY, {"text": "x", "user_id": "ben"}, {"user_id"})]
    rows += [("DELETE", f"{MEMORY}?{query}", None, {field}) for query, field in (("wait=x", "wait"), ("x=1", "x"))]
    rows += [("DELETE", f"{MEMORY}?timeout_ms={value}", None, {"timeout_ms"}) for value in ("0", "x", "1&timeout_ms=2")]
    for route in ("summary", "memories", "invalidate"):
        method = "POST" if route == "invalidate" else "GET"
        rows += [
            (method, f"/users/{id_}/{route}", None, {"user_id"}) for id_ in ("", "a%20b", "a%00b", WIDE, "a%0A", "*")
        ]
        rows += [(method, f"/users/ann/{route}?x=1", None, {"x"})]
    for path in ("/jobs", "/users/ann/memories", f"{MEMORY}/history"):
        rows += [("GET", f"{path}?page={value}", None, {"page"}) for value in ("0", "-1", "x", "")]
        rows += [("GET", f"{path}?page_size={value}", None, {"page_size"}) for value in ("0", "1001", "1e2")]
    rows += [("GET", "/jobs?status=done", None, {"status"}), ("GET", "/jobs?user_id=a%20b", None, {"user_id"})]
    rows += [("GET", "/stats?x=1", None, {"x"}), ("POST", "/users/ann/invalidate", {"x": 1}, {"x"})]
    return rows


def test_every_bad_field_is_named_and_nothing_happens(api, mem0):
    """One test for the whole table: its rows share nothing that a row could spoil."""
    wrong = []
    for method, path, body, fields in table():
        response = api.send(method, path, body)
        told = response.json()
        named = {error["field"] for error in told.get("errors", [])}
        # What is wrong inside metadata and filters is named with its place in them.
        inside = {name for name in named if any(name.startswith((f"{field}.", f"{field}[")) for field in fields)}
        if (
            response.status_code != 400
            or told["code"] != "invalid"
            or not (named == fields or named == inside != set())
        ):
            wrong.append((method, path[:60], str(body)[:80], response.status_code, named))
    assert wrong == []
    assert Job.objects.count() == 0
    assert mem0.calls == []


def test_all_bad_fields_are_named_at_once(api):
    response = api.post("/memory/search", {"user_id": "", "query": 7, "top_k": 0, "nonsense": 1})
    assert {error["field"] for error in response.json()["errors"]} == {"user_id", "query", "top_k", "nonsense"}


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'\xef\xbb\xbf{"user_id": "a"}', b'{"user_id": "a"} x', b"[" * 5000],
)
@pytest.mark.parametrize("path", ["/memory/add", "/memory/extract", "/memory/search"])
def test_what_is_no_json_is_400(api, mem0, path, raw):
    response = api.send("POST", path, raw=raw)
    assert response.status_code == 400
    assert response.json()["code"] in ("malformed", "invalid")
    assert (Job.objects.count(), mem0.calls) == (0, [])


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_none_are_named(api, value):
    response = api.send("POST", "/memory/search", raw=b'{"user_id": "ann", "query": "x", "threshold": ' + value + b"}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "threshold"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml"]
)
def test_another_content_type_is_415(api, kind):
    response = api.send("POST", "/memory/add", raw=b'{"user_id": "ann"}', Content_Type=kind)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_a_body_over_the_limit_is_413_and_one_at_it_is_read(api, settings):
    settings.MAX_BODY_BYTES = 2000
    over = api.post("/memory/add", ADD | {"memories": ["x" * 2000]})
    assert (over.status_code, over.json()["code"]) == (413, "body_too_large")
    assert Job.objects.count() == 0
    body = b'{"user_id": "ann", "memories": ["tea"]}'
    assert api.send("POST", "/memory/add", raw=body.ljust(2000)).status_code == 202


@pytest.mark.parametrize("path", ["/memory", "/nonsense", "/memory/a/b/c", "/users", "/jobs/7"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_a_404_problem(api, method, path):
    response = api.send(method, path)
    assert (response.status_code, response["Content-Type"]) == (404, "application/problem+json")


def test_another_method_is_a_405_problem(api):
    response = api.get("/memory/search")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response["Allow"] == "POST, OPTIONS"


def test_what_is_asked_for_is_answered_whatever_is_accepted(api):
    assert api.get("/jobs", Accept="text/html").status_code == 200
