"""Mem0's open-source server as its callers know it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from memory.models import Job, Project
from memory.tenancy import keys

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Server:
    """A caller of what it takes for Mem0's server."""

    def __init__(self, project: Project, **options: Any) -> None:
        secret = keys.create(project, name="test", scopes=keys.SCOPES, **options)[1]
        self._headers = {"X-API-Key": secret}
        self._client = Client(raise_request_exception=False)

    def send(self, method: str, path: str, body: Any = None) -> HttpResponse:
        content, kind = (b"", "") if body is None else (json.dumps(body).encode(), "application/json")
        response = self._client.generic(method, path, content, kind, headers=self._headers)
        assert response["Content-Type"] == "application/json"
        return response

    def add(self, *texts: str, **more: Any) -> list[dict[str, Any]]:
        messages = [{"role": "user", "content": text} for text in texts]
        response = self.send("POST", "/memories", {"messages": messages, "user_id": "ann", "infer": False, **more})
        assert response.status_code == 200, response.content
        return response.json()["results"]


@pytest.fixture
def server(api, project, worker) -> Server:
    return Server(project)


def texts(response: HttpResponse) -> list[str]:
    assert response.status_code == 200, response.content
    return [row["memory"] for row in response.json()["results"]]


def test_an_add_answers_with_what_is_stored(server, mem0):
    assert [(one["memory"], one["event"]) for one in server.add("tea", "milk")] == [("tea", "ADD"), ("milk", "ADD")]
    assert mem0.texts("ann") == ["tea", "milk"]


def test_a_conversation_is_extracted(server, mem0):
    server.send("POST", "/memories", {"messages": [{"role": "user", "content": "tea"}], "run_id": "r1"})
    assert "extract" in mem0.calls
    assert mem0.rows[0].run_id == "r1"


def test_a_memory_has_the_servers_fields_and_ids_only_where_set(server):
    (one,) = server.add("tea", metadata={"mood": "calm"})
    row = server.send("GET", f"/memories/{one['id']}").json()
    assert row.keys() == {"id", "memory", "hash", "metadata", "created_at", "updated_at", "user_id", "score"}
    assert row["hash"] == hashlib.md5(b"tea").hexdigest()
    assert (row["metadata"], row["score"]) == ({"mood": "calm"}, None)


def test_a_search_takes_ids_in_filters_in_the_platforms_form_or_beside_the_query(server):
    server.add("tea")
    for ids in ({"filters": {"user_id": "ann"}}, {"filters": {"AND": [{"user_id": "ann"}]}}, {"user_id": "ann"}):
        (row,) = server.send("POST", "/search", {"query": "tea?", **ids}).json()["results"]
        assert (row["memory"], row["score"]) == ("tea", 1.0)


def test_twenty_are_listed_and_found_unless_asked_otherwise(server):
    server.add(*(f"fact {n}" for n in range(25)))
    assert len(texts(server.send("GET", "/memories?user_id=ann"))) == 20
    assert len(texts(server.send("GET", "/memories?user_id=ann&top_k=1000&show_expired=true"))) == 25
    assert len(texts(server.send("POST", "/search", {"query": "fact", "user_id": "ann"}))) == 20


def test_an_unknown_memory_is_null_with_200(server):
    for unknown in (UNKNOWN, "no-uuid"):
        response = server.send("GET", f"/memories/{unknown}")
        assert (response.status_code, response.json()) == (200, None)
    assert server.send("GET", f"/memories/{UNKNOWN}/history").json() == []
    assert server.send("PUT", f"/memories/{UNKNOWN}", {"text": "x"}).status_code == 404
    assert server.send("DELETE", f"/memories/{UNKNOWN}").status_code == 404


def test_a_memory_is_changed_and_deleted(server, mem0):
    (one,) = server.add("tea")
    changed = server.send("PUT", f"/memories/{one['id']}", {"text": "green tea"})
    assert changed.json() == {"message": "Memory updated successfully!"}
    assert mem0.texts() == ["green tea"]
    assert server.send("DELETE", f"/memories/{one['id']}").json() == {"message": "Memory deleted successfully"}
    assert mem0.texts() == []


def test_everything_under_an_id_is_deleted(server, mem0):
    server.add("tea")
    server.add("milk", user_id="ben", agent_id="cook")
    assert server.send("DELETE", "/memories?user_id=ann").json() == {"message": "All relevant memories deleted"}
    assert mem0.texts() == ["milk"]
    entities = server.send("GET", "/entities").json()
    assert {(row["type"], row["id"]) for row in entities} == {("user", "ben"), ("agent", "cook")}
    assert server.send("DELETE", "/entities/agent/cook").status_code == 200
    assert mem0.texts() == []


@pytest.mark.parametrize("path", ["/entities/user/a%2F", "/entities/user/a%2Fb/", "/entities/user/a/"])
def test_an_entity_with_a_slash_at_its_end_is_404_and_nobodys_memories_are_deleted(server, mem0, path):
    for name in ("a", "a/", "a/b"):
        server.add(name, user_id=name)
    response = server.send("DELETE", path)
    assert (response.status_code, "detail" in response.json()) == (404, True)
    assert mem0.texts() == ["a", "a/", "a/b"]
    assert server.send("DELETE", "/entities/user/a%2Fb").status_code == 200
    assert server.send("DELETE", "/memories?user_id=a%2F").status_code == 200
    assert mem0.texts() == ["a"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/memories", {"messages": [{"role": "user", "content": "tea"}]}, 400),
        ("POST", "/memories", {"user_id": "ann"}, 422),
        ("POST", "/memories", {"messages": "tea", "user_id": 7}, 422),
        ("POST", "/memories", {"messages": "tea", "user_id": "ann", "memory_type": "procedural_memory"}, 400),
        ("POST", "/search", {"query": "tea"}, 400),
        ("POST", "/search", {"query": " ", "user_id": "ann"}, 422),
        ("POST", "/search", {"query": "tea", "user_id": "*"}, 422),
        ("PUT", f"/memories/{UNKNOWN}", {}, 400),
        ("DELETE", "/memories", None, 400),
        ("DELETE", "/memories?users=ann", None, 400),
        ("DELETE", "/memories?user_id=ann&metadata=x", None, 400),
        ("GET", "/memories", None, 501),
        ("POST", "/reset", None, 501),
        ("GET", "/configure", None, 501),
        ("GET", "/memories/a/b", None, 404),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_kept(api, project, method, path, body, status):
    response = Server(project).send(method, path, body)
    assert response.status_code == status
    assert response.json()["detail"]
    assert not Job.objects.exists()


def test_a_bad_field_is_named_in_a_list(api, project):
    (told,) = Server(project).send("POST", "/search", {"user_id": "ann"}).json()["detail"]
    assert told["loc"] == ["body", "query"]


def test_nobody_sees_anothers(server, api, project, mem0):
    (one,) = server.add("tea")
    other = Server(Project.objects.create(name="Other", slug="other", namespace="other"))
    bound = Server(project, user_id="ben")
    for stranger in (other, bound):
        assert server.send("GET", f"/memories/{one['id']}").json() is not None
        assert stranger.send("GET", f"/memories/{one['id']}").json() is None
        assert stranger.send("GET", f"/memories/{one['id']}/history").json() == []
        assert stranger.send("DELETE", f"/memories/{one['id']}").status_code == 404
        assert stranger.send("GET", "/entities").json() == []
    assert texts(other.send("GET", "/memories?user_id=ann")) == []
    for method, path, body in (
        ("GET", "/memories?user_id=ann", None),
        ("POST", "/search", {"query": "tea", "user_id": "ann"}),
        ("DELETE", "/memories?user_id=ann", None),
        ("DELETE", "/entities/user/ann", None),
    ):
        assert bound.send(method, path, body).status_code == 403
    assert other.send("DELETE", "/memories?user_id=ann").status_code == 200
    assert mem0.texts() == ["tea"]
