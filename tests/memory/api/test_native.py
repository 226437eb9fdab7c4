"""The native API's answers, as the people who call it see them."""

from __future__ import annotations

import threading
import unicodedata
import uuid
from urllib.parse import quote

import pytest
from django.db import OperationalError

from memory import bulkhead
from memory.errors import OriginRejected
from memory.models import Job
from memory.types import Stored

pytestmark = pytest.mark.django_db(transaction=True)

NFC = "Nguyễn"
NFD = unicodedata.normalize("NFD", NFC)
FACT = {"user_id": "ben", "memories": ["tea"]}
KEY = {"Idempotency_Key": "abc-1"}
ODD_IDS = ["a/b", "a/summary", NFC, "auth0|4", "..", "100%", "a+b", "x?y#z", "%2F", "a/", "😀"]


def rejected(work) -> list[Stored]:
    raise OriginRejected("no")


def errors(response) -> set[str]:
    return {error["field"] for error in response.json()["errors"]}


def test_an_add_is_accepted_with_a_job_that_says_where_to_ask(api):
    response = api.add("tea", wait="none")
    body = response.json()
    assert response.status_code == 202
    assert set(body) == {"job_id", "status", "status_url"}
    assert body["status"] == "pending"
    assert response["Location"] == body["status_url"]
    assert body["status_url"].endswith(f"/api/v1/jobs/{body['job_id']}/status")
    told = api.get(f"/jobs/{body['job_id']}/status").json()
    assert (told["status"], told["attempts"], told["results"]) == ("pending", 0, [])


def test_a_waited_add_answers_with_what_was_stored_and_its_version(api, worker):
    response = api.add("tea", "coffee")
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "completed"
    assert body["version"].startswith("user:")
    assert [(one["memory"], one["event"]) for one in body["results"]] == [("tea", "ADD"), ("coffee", "ADD")]
    assert "warm" not in body


def test_wait_warm_with_warming_off_says_so(api, worker):
    assert api.add("tea", wait="warm").json()["warm"]["status"] == "off"


def test_a_wait_past_its_deadline_answers_with_the_job(api):
    response = api.add("tea", timeout_ms=50)
    assert response.status_code == 202
    assert Job.objects.get(job_id=response.json()["job_id"]).state == "pending"


def test_a_warm_that_is_late_is_202_of_a_completed_job(api, worker, settings):
    settings.PROACTIVE_CACHE_ENABLED = True
    response = api.add("tea", wait="warm", timeout_ms=1500)
    assert (response.status_code, response.json()["status"]) == (202, "completed")


@pytest.mark.parametrize("wait", ["stored", "warm"])
def test_a_write_is_accepted_although_postgresql_goes_away_while_it_is_waited_for(api, monkeypatch, wait):
    def gone(*_, **__):
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Job.objects, "get", gone)
        response = api.add("tea", wait=wait, timeout_ms=50)
    assert response.status_code == 202
    assert response.json()["job_id"] == str(Job.objects.get().job_id)


def test_a_waited_write_that_mem0_refuses_is_a_problem_with_its_job(api, worker, mem0):
    mem0.faults.append(rejected)
    response = api.add("tea")
    body = response.json()
    assert (response.status_code, body["code"]) == (502, "job_failed")
    assert body["failed"][0]["index"] == 0
    assert api.get(f"/jobs/{body['job_id']}/status").json()["status"] == "failed"


def test_facts_take_the_requests_metadata_and_their_own_first(api, worker):
    one = {"text": "tea", "metadata": {"room": "kitchen", "n": 1}}
    api.post(
        "/memory/add",
        {"user_id": "ann", "memories": [one, "coffee"], "metadata": {"room": "hall"}, "wait": "stored"},
    )
    found = {item["memory"]: item["metadata"] for item in api.get("/users/ann/memories").json()["results"]}
    assert found == {"tea": {"room": "kitchen", "n": 1}, "coffee": {"room": "hall"}}


def test_a_conversation_is_accepted(api, worker):
    messages = [{"role": "user", "content": "I drink tea"}, {"role": "assistant", "content": "Noted"}]
    response = api.post(
        "/memory/extract", {"user_id": "ann", "messages": messages, "session_id": "s", "wait": "stored"}
    )
    assert response.status_code == 200


def test_a_search_says_where_its_answer_came_from(api, worker):
    version = api.add("tea").json()["version"]
    first, second = api.search(), api.search()
    meta = first.json()["meta"]
    assert meta["layer"] == "L4"
    assert meta["ranking"] == "upstream"
    assert meta["version"] == version
    assert (meta["stale"], meta["degraded"], meta["reason"]) == (False, False, None)
    assert (meta["pending_jobs"], meta["upstream_calls"]) == (0, 1)
    item = first.json()["results"][0]
    assert (item["memory"], item["source"], item["pending"], item["user_id"]) == ("tea", "ltm", False, "ann")
    assert first["Cache-Status"] == "memsvc; fwd=miss; detail=L4"
    assert first["Server-Timing"].startswith("search;dur=")
    assert second.json()["meta"]["layer"] == "L0"
    assert second["Cache-Status"] == "memsvc; hit; detail=L0"
    assert second.json()["results"] == first.json()["results"]


def test_a_search_counts_the_writes_that_wait(api):
    api.add("tea", wait="none")
    assert api.search().json()["meta"]["pending_jobs"] == 1


def test_marks_never_leave(api, worker):
    api.add("tea")
    memory = api.get("/users/ann/memories").json()["results"][0]
    shown = [memory, api.search().json()["results"][0], api.get(f"/memory/{memory['id']}").json()]
    assert not any("memsvc" in key for one in shown for key in one["metadata"])


def test_a_version_not_reached_is_409_and_one_of_another_kind_400(api, worker):
    version = api.add("tea").json()["version"]
    assert api.search(min_version=version).status_code == 200
    later = api.search(min_version=f"user:{int(version.split(':')[1]) + 1}")
    assert (later.status_code, later.json()["code"]) == (409, "version_unknown")
    assert errors(api.search(min_version="agent:1")) == {"min_version"}


def test_a_memory_is_read_changed_and_deleted(api, worker):
    memory = api.add("tea").json()["results"][0]["id"]
    assert api.get(f"/memory/{memory}").json()["memory"] == "tea"
    changed = api.put(f"/memory/{memory}", {"text": "coffee"})
    assert (changed.status_code, changed.json()["status"]) == (200, "completed")
    assert api.get(f"/memory/{memory}").json()["memory"] == "coffee"
    assert api.delete(f"/memory/{memory}").status_code == 200
    assert api.get(f"/memory/{memory}").status_code == 404
    assert api.search().json()["results"] == []


def test_a_delete_takes_its_wait_from_query_or_body(api, worker):
    one, two = (fact["id"] for fact in api.add("tea", "coffee").json()["results"])
    assert api.delete(f"/memory/{one}?wait=none&timeout_ms=5").status_code == 202
    assert api.delete(f"/memory/{two}", {"wait": "none"}).status_code == 202


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PUT", {"text": "x"}), ("DELETE", None)])
def test_an_unknown_memory_is_404(api, method, body):
    for memory_id in (str(uuid.uuid4()), "no-uuid", "pending"):
        response = api.send(method, f"/memory/{memory_id}", body)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert Job.objects.count() == 0


def test_history_is_a_list(api, worker):
    memory = api.add("tea").json()["results"][0]["id"]
    history = api.get(f"/memory/{memory}/history").json()
    assert set(history) == {"count", "next", "previous", "results"}
    assert api.get(f"/memory/{uuid.uuid4()}/history").status_code == 404


def test_a_user_never_seen_is_a_user_without_memories(api):
    for user_id in ODD_IDS:
        path = f"/users/{quote(user_id, safe='')}"
        assert api.search(user_id=user_id).json()["results"] == []
        assert api.get(f"{path}/memories").json()["results"] == []
        summary = api.get(f"{path}/summary").json()
        assert (summary["user_id"], summary["built_at"], summary["topics"]) == (user_id, None, {})
        assert (summary["version"], summary["stale"]) == ("user:0", False)


def test_an_id_in_a_path_is_the_id_in_a_body(api, worker):
    for user_id in ODD_IDS:
        path = f"/users/{quote(user_id, safe='')}"
        api.add(f"tea of {user_id}", user_id=user_id)
        found = api.get(f"{path}/memories").json()["results"]
        assert [(item["memory"], item["user_id"]) for item in found] == [(f"tea of {user_id}", user_id)]
        assert api.post(f"{path}/invalidate").json()["user_id"] == user_id


def test_ids_are_never_normalised(api, worker):
    api.add("tea", user_id=NFC)
    assert api.get(f"/users/{quote(NFD)}/memories").json()["count"] == 0
    assert api.get(f"/users/{quote(NFC)}/memories").json()["count"] == 1


def test_texts_are_composed_and_keep_their_case(api, worker):
    api.add(f"{NFD} uống TRÀ")
    assert api.get("/users/ann/memories").json()["results"][0]["memory"] == f"{NFC} uống TRÀ"


def test_a_query_in_either_form_is_one_query(api, worker, mem0):
    api.add("tea")
    assert [api.search(text).json()["meta"]["layer"] for text in (NFC, f" {NFD} ")] == ["L4", "L0"]


def test_lists_have_pages(api, worker):
    api.add(*(f"fact {n}" for n in range(5)))
    seen, url = [], "/users/ann/memories?page_size=2"
    while url:
        page = api.get(url).json()
        assert page["count"] == 5
        seen += [item["memory"] for item in page["results"]]
        url = page["next"] and page["next"].split("/api/v1")[1]
    assert sorted(seen) == [f"fact {n}" for n in range(5)]
    last = api.get("/users/ann/memories?page_size=2&page=9").json()
    assert (last["results"], last["next"]) == ([], None)
    assert "page=3" in last["previous"]


def test_jobs_are_listed_by_user_and_state(api, worker):
    api.add("tea")
    api.add("tea", user_id="ben")
    assert api.get("/jobs").json()["count"] == 2
    (job,) = api.get("/jobs?user_id=ben").json()["results"]
    assert (job["user_id"], job["status"]) == ("ben", "completed")
    assert api.get("/jobs?status=failed").json()["count"] == 0


def test_an_unknown_job_is_404(api):
    assert [api.get(f"/jobs/{job_id}/status").status_code for job_id in (uuid.uuid4(), "17")] == [404, 404]


def test_invalidate_makes_what_is_cached_unreachable(api, worker):
    version = api.add("tea").json()["version"]
    assert [api.search().json()["meta"]["layer"] for _ in range(2)] == ["L4", "L0"]
    later = api.post("/users/ann/invalidate").json()["version"]
    assert int(later.split(":")[1]) > int(version.split(":")[1])
    assert api.search().json()["meta"]["layer"] == "L4"


def test_an_outage_is_told_apart_from_no_memories(api, mem0):
    mem0.down = True
    response = api.search()
    assert (response.status_code, response.json()["code"]) == (503, "origin_unavailable")
    assert int(response["Retry-After"]) >= 1


def test_the_same_key_and_body_is_the_same_job(api, worker):
    first = api.post("/memory/add", FACT, **KEY)
    again = api.post("/memory/add", FACT, **KEY)
    assert again.status_code == first.status_code == 202
    assert again.json() == first.json()
    assert again["Idempotent-Replayed"] == "true"
    assert Job.objects.filter(user_id="ben").count() == 1


def test_the_same_key_with_another_body_is_422(api):
    api.post("/memory/add", FACT, **KEY)
    response = api.post("/memory/add", FACT | {"memories": ["coffee"]}, **KEY)
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")


def test_a_replayed_delete_needs_no_memory_any_more(api, worker):
    memory = api.add("tea").json()["results"][0]["id"]
    first, again = (api.delete(f"/memory/{memory}", **KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["job_id"] == first.json()["job_id"]


def test_a_bad_idempotency_key_is_named(api):
    for key in ("", " ", "a b", "é", "x" * 256):
        response = api.post("/memory/add", FACT, Idempotency_Key=key)
        assert (response.status_code, errors(response)) == (400, {"Idempotency-Key"})
    assert Job.objects.count() == 0


def test_stats_count_what_happened_in_this_project(api, worker, other):
    api.add("tea")
    api.search()
    api.search()
    stats = api.get("/stats").json()
    assert stats["searches"] == {"L0": 1, "L2": 0, "L3": 0, "L4": 1}
    assert stats["upstream_calls"]["search"] == 1
    assert stats["jobs"]["completed"] == 1
    assert other.get("/stats").json()["searches"] == {"L0": 0, "L2": 0, "L3": 0, "L4": 0}


def test_a_slash_at_the_end_is_the_same_route(api):
    assert api.post("/memory/search/", {"user_id": "ann", "query": "tea"}).status_code == 200


def test_asking_mem0_whose_memory_it_is_takes_a_place_of_those_that_may_wait(api, monkeypatch):
    """PROTOCOL E: whose memory it is may have to be asked of Mem0, and asking may wait."""
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(bulkhead, "_places", lambda: full)
    response = api.delete(f"/memory/{uuid.uuid4()}")
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response["Retry-After"] == "1"


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_a_fact_on_its_way_is_found_and_its_id_answers_409_with_its_job(api, other, method):
    job = api.add("tea", wait="none").json()["job_id"]
    found = api.search().json()
    (one,) = found["results"]
    assert (one["pending"], one["job_id"], found["meta"]["pending_jobs"]) == (True, job, 1)
    body = [{"text": "coffee"}] if method == "put" else []
    response = getattr(api, method)(f"/memory/{one['id']}", *body)
    assert (response.status_code, response.json()["code"]) == (409, "pending")
    assert response.json()["job_id"] == job
    assert getattr(other, method)(f"/memory/{one['id']}", *body).status_code == 404


def test_explained_scores_say_what_they_are_made_of(api, worker):
    api.add("tea")
    api.add("more tea", wait="none")
    for one in api.search(explain=True).json()["results"]:
        assert set(one.get("parts", {"ltm", "stm", "bonus"})) == {"ltm", "stm", "bonus"}
