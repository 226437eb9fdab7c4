"""Whatever is sent, the answer is never a server's error, and a bad one stores nothing."""

from __future__ import annotations

import json
import uuid
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.models import Job

pytestmark = pytest.mark.django_db

WORDS = st.sampled_from(["ann", "tea", "a b", "", " ", "a\0b", "\ud800", "Nguyễn", "*", "../x", "user:7", "2026-02-30"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("user_id", "agent_id", "run_id", "session_id", "memories", "messages", "query", "text", "metadata"),
        *("filters", "top_k", "threshold", "consistency", "max_age_ms", "min_version", "expiration_date"),
        *("timeout_ms", "explain", "odd"),
    ],
)
GOOD = {"user_id": "ann", "memories": ["tea"], "messages": [{"role": "user", "content": "tea"}], "query": "tea"}
ROUTES = [
    ("POST", "/memory/add", ("user_id", "memories")),
    ("POST", "/memory/extract", ("user_id", "messages")),
    ("POST", "/memory/search", ("user_id", "query")),
    ("PUT", f"/memory/{uuid.uuid4()}", ()),
    ("DELETE", f"/memory/{uuid.uuid4()}", ()),
    ("POST", "/users/ann/invalidate", ()),
]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(ROUTES), changes=st.dictionaries(FIELDS, VALUES, max_size=3), wait=st.just("none"))
def test_any_body(api, route, changes, wait):
    method, path, needed = route
    body = {name: GOOD[name] for name in needed} | changes
    if path.startswith("/memory") and method == "POST" and "search" not in path:
        body["wait"] = wait
    before = Job.objects.count()
    response = api.send(method, path, raw=json.dumps(body).encode())
    assert response.status_code < 500
    assert response.status_code == 202 or Job.objects.count() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(ROUTES), raw=st.binary(max_size=60))
def test_any_bytes(api, route, raw):
    response = api.send(route[0], route[1], raw=raw)
    assert response.status_code in (200, 400, 404)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(
        ["/jobs", "/stats", "/users/ann/memories", "/users/{}/summary", "/memory/{}", "/jobs/{}/status"]
    ),
    text=st.text(max_size=30),
    query=st.dictionaries(st.sampled_from(["page", "page_size", "user_id", "status", "x"]), st.text(max_size=12)),
)
def test_any_path_and_query(api, path, text, query):
    try:
        url = path.format(quote(text, safe=""))
        words = urlencode(query)
    except UnicodeEncodeError:
        return
    assert api.get(f"{url}?{words}").status_code < 500
