"""Nobody sees another's: projects, keys bound to one user, scopes."""

from __future__ import annotations

import pytest

from memory import stack
from memory.models import Job

pytestmark = pytest.mark.django_db(transaction=True)

FACT = {"user_id": "ann", "memories": ["tea"]}
ASK = {"user_id": "ann", "query": "tea"}


def test_another_projects_user_of_the_same_name_has_nothing(api, other, worker):
    api.add("tea")
    assert api.search().json()["results"]
    assert other.search().json()["results"] == []
    assert other.get("/users/ann/memories").json()["count"] == 0
    assert other.get("/users/ann/summary").json()["counts"] == {}
    assert other.get("/jobs").json()["count"] == 0
    assert other.get("/jobs?user_id=ann").json()["count"] == 0


def test_another_projects_things_are_answered_like_unknown_ones(api, other, worker, mem0, django_assert_num_queries):
    done = api.add("tea").json()
    memory, job = done["results"][0]["id"], done["job_id"]
    unknown = "00000000-0000-4000-8000-000000000000"
    for method, path, body in [
        ("GET", "/memory/{}", None),
        ("GET", "/memory/{}/history", None),
        ("PUT", "/memory/{}", {"text": "mine"}),
        ("DELETE", "/memory/{}", None),
        ("GET", "/jobs/{}/status", None),
    ]:
        foreign_id = job if "jobs" in path else memory
        told = []
        for id_ in (foreign_id, unknown):
            stack.L0.held.clear()
            mem0.calls.clear()
            response = other.send(method, path.format(id_), body, X_Request_ID="same")
            told.append((response.status_code, response.content.replace(id_.encode(), b"ID"), list(mem0.calls)))
        assert told[0] == told[1]
        assert told[0][0] == 404
    assert mem0.texts() == ["tea"]
    assert Job.objects.count() == 1


def test_the_same_idempotency_key_in_two_projects_is_two_writes(api, other):
    jobs = {caller.post("/memory/add", FACT, Idempotency_Key="k").json()["job_id"] for caller in (api, other)}
    assert len(jobs) == 2


def test_a_bound_key_serves_its_user_alone(api, make_key, worker):
    bens = api.add("tea", user_id="ben").json()
    bound = make_key(user_id="ann")
    assert bound.post("/memory/add", FACT).status_code == 202
    assert bound.search().status_code == 200
    for response in (
        bound.search(user_id="ben"),
        bound.add("tea", user_id="ben"),
        bound.get("/users/ben/memories"),
        bound.get("/users/ben/summary"),
        bound.post("/users/ben/invalidate"),
        bound.get("/jobs?user_id=ben"),
        bound.get("/stats"),
    ):
        assert (response.status_code, response.json()["code"]) == (403, "key_bound")
    memory = bens["results"][0]["id"]
    assert bound.get(f"/memory/{memory}").status_code == 404
    assert bound.put(f"/memory/{memory}", {"text": "x"}).status_code == 404
    assert bound.delete(f"/memory/{memory}").status_code == 404
    assert bound.get(f"/jobs/{bens['job_id']}/status").status_code == 404
    assert {job["user_id"] for job in bound.get("/jobs").json()["results"]} == {"ann"}


def test_a_key_does_what_its_scopes_say(api, make_key):
    reader, writer = make_key("read"), make_key("write")
    assert (reader.search().status_code, writer.post("/memory/add", FACT).status_code) == (200, 202)
    for response in (reader.post("/memory/add", FACT), reader.post("/users/ann/invalidate"), writer.search()):
        assert (response.status_code, response.json()["code"]) == (403, "missing_scope")


def test_no_key_and_a_bad_key_are_401(api):
    secret = api.headers["Authorization"].partition(" ")[2]
    for headers in (
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Bearer {secret[:-1]}_"},
        {"Authorization": f"Basic {secret}"},
        {"X-API-Key": "nonsense"},
    ):
        api.headers = headers
        response = api.search()
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        assert response["WWW-Authenticate"].startswith("Bearer")


def test_three_ways_to_send_a_key_are_the_same(api):
    secret = api.headers["Authorization"].partition(" ")[2]
    for headers in ({"Authorization": f"Token {secret}"}, {"X-API-Key": secret}, {"Authorization": f"bearer {secret}"}):
        api.headers = headers
        assert api.search().status_code == 200


def test_only_an_admins_key_learns_which_process_answered(api, make_key):
    assert api.get("/stats")["X-Memsvc-Process"] == api.get("/jobs")["X-Memsvc-Process"] != ""
    assert "X-Memsvc-Process" not in make_key("read", "write").get("/jobs")
