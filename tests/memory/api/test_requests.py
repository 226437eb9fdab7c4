"""What every request gets: an id, problems instead of traces, a line in the log without what was said."""

from __future__ import annotations

import json
import logging
from io import BytesIO

import pytest
from django.test import Client

from memory import logs, read
from memory.errors import DatabaseUnavailable

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("sent", "kept"), [("abc-123", True), ("x" * 129, False), ("a b", False), ("", False)])
def test_a_usable_request_id_comes_back_and_another_is_replaced(api, sent, kept):
    response = api.get("/jobs", X_Request_ID=sent)
    assert (response["X-Request-ID"] == sent) is kept
    assert response["X-Request-ID"]


def test_a_problem_carries_the_requests_id(api):
    response = api.post("/memory/search", {}, X_Request_ID="abc")
    body = response.json()
    assert response["Content-Type"] == "application/problem+json"
    assert (body["request_id"], body["instance"], body["status"]) == ("abc", "/api/v1/memory/search", 400)
    assert body["type"].endswith(body["code"])


def test_answers_are_kept_by_no_cache_between(api):
    assert api.search()["Cache-Control"] == "no-store"


def test_an_unforeseen_error_is_a_problem_without_a_trace(api, monkeypatch, caplog):
    def fail(*args: object) -> None:
        raise ZeroDivisionError("secret of Ann")

    monkeypatch.setattr(read, "search", fail)
    response = api.search()
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert b"secret" not in response.content
    (record,) = [record for record in caplog.records if record.exc_info]
    line = logs.JSONFormatter().format(record)
    assert "secret" not in line
    assert json.loads(line)["error"] == "ZeroDivisionError"


def test_postgresql_away_is_503_with_retry_after(api, monkeypatch):
    def away(*args: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(read, "search", away)
    response = api.search()
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert int(response["Retry-After"]) >= 1


def test_a_body_in_chunks_is_read_and_counted(api, settings):
    """A chunked body has no Content-Length."""
    body = json.dumps({"user_id": "ann", "query": "tea"}).encode()
    for limit, status in ((1024, 200), (10, 413)):
        settings.MAX_BODY_BYTES = limit
        chunked = {"CONTENT_TYPE": "application/json", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": BytesIO(body)}
        response = Client().generic("POST", "/api/v1/memory/search", headers=api.headers, **chunked)
        assert response.status_code == status


def test_one_access_line_a_request_with_fixed_fields_and_no_text(api, caplog):
    caplog.set_level(logging.INFO, logger="memory.access")
    api.search("What tea does Ann like?")
    (record,) = [record for record in caplog.records if record.name == "memory.access"]
    line = json.loads(logs.JSONFormatter().format(record))
    assert {"at", "level", "logger", "event", "method", "route", "status", "ms"} <= line.keys()
    assert (line["route"], line["status"]) == ("memory-search", 200)


def test_nothing_said_reaches_the_log(api, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "canary-4711"
    api.search(secret)
    api.add(secret, wait="none")
    api.post("/memory/add", {"user_id": "ann", "memories": [secret, 7]})
    api.send("POST", "/memory/search", raw=f'{{"query": "{secret}'.encode())
    assert not [line for line in map(logs.JSONFormatter().format, caplog.records) if secret in line]


def test_a_log_line_is_one_line_of_json_whatever_it_is_given():
    record = logging.makeLogRecord({"msg": "two\nlines %s", "args": ("é",), "odd": object(), "text": "hidden"})
    line = logs.JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["event"] == "two\nlines é"
    assert "hidden" not in line


def test_an_error_of_our_own_tells_its_message_and_a_foreign_one_only_its_kind():
    for error, told in ((DatabaseUnavailable("gone"), "gone"), (ValueError("what Ann said"), None)):
        assert logs.describe(error).get("detail") == told


def test_the_description_needs_no_key_and_nothing_from_elsewhere():
    client = Client()
    assert client.get("/api/schema/").status_code == 200
    page = client.get("/api/docs/")
    assert page.status_code == 200
    assert b"https://" not in page.content
