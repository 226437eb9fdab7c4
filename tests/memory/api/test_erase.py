"""`DELETE /users/{id}`: who may, what is answered, and when."""

from __future__ import annotations

import threading
import uuid

import pytest
from django.db import OperationalError, connection
from django.db.models.functions import Now

from memory import upkeep
from memory.models import Erasure, Job

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def soon(settings):
    settings.SWEEP_SECONDS = 0.05


@pytest.fixture
def sweeper(worker):
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(0.05):
            Erasure.objects.update(due_at=Now())
            upkeep.sweep()
        connection.close()

    thread = threading.Thread(target=sweep)
    thread.start()
    yield
    done.set()
    thread.join()


def test_the_receipt_is_answered_when_nothing_can_be_read_any_more(api, sweeper, mem0):
    api.add("tea")
    answer = api.delete("/users/ann")
    assert answer.status_code == 200
    receipt = answer.json()
    assert (receipt["status"], receipt["user_id"], receipt["removed"]["memories"]) == ("completed", "ann", 1)
    assert mem0.texts("ann") == []
    assert api.search().json()["results"] == []
    assert api.get(f"/erasures/{receipt['erasure_id']}").json() == receipt


def test_at_its_deadline_it_says_where_to_ask(api, mem0):
    answer = api.delete("/users/ann?timeout_ms=1")
    assert answer.status_code == 202
    assert answer["Location"] == answer.json()["status_url"]
    shown = api.get(answer["Location"].partition("/api/v1")[2])
    assert (shown.status_code, shown.json()["status"]) == (200, "pending")
    assert api.delete("/users/ann?wait=none").json()["erasure_id"] == answer.json()["erasure_id"]


def test_an_erase_is_accepted_although_postgresql_goes_away_while_it_is_waited_for(api, monkeypatch):
    def gone(*_, **__):
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Job.objects, "get", gone)
        patch.setattr(Erasure.objects, "select_related", gone)
        answer = api.delete("/users/ann?timeout_ms=1")
    assert answer.status_code == 202
    assert answer.json()["erasure_id"] == str(Erasure.objects.get().erasure_id)


def test_without_a_user_nothing_is_erased(api):
    assert api.delete("/users/").status_code == 400
    assert api.delete("/users").status_code == 404
    assert api.delete("/users/%20").status_code == 400
    assert Erasure.objects.count() == 0


@pytest.mark.parametrize("path", ["/users/ann/", "/users/ann%2F?wait=none", "/users//"])
def test_a_slash_at_the_end_is_never_taken_for_part_of_an_id_that_nobody_has(api, path):
    refused = api.delete(path)
    assert refused.status_code == 400
    (error,) = refused.json()["errors"]
    assert (error["field"], "slash" in error["message"], "admin" in error["message"]) == ("user_id", True, True)
    assert Erasure.objects.count() == 0


def test_a_key_of_one_user_erases_that_one_alone(api, make_key):
    ben = make_key("write", user_id="ben")
    refused = ben.delete("/users/ann?wait=none")
    assert (refused.status_code, refused.json()["code"]) == (403, "key_bound")
    assert ben.delete("/users/ben?wait=none").status_code == 202
    assert make_key("read").delete("/users/ann?wait=none").status_code == 403


def test_a_receipt_is_seen_by_its_project_and_by_the_users_own_key_alone(api, other, make_key):
    made = api.delete("/users/ann?wait=none").json()["erasure_id"]
    for caller in (other, make_key("read", user_id="ben")):
        assert caller.get(f"/erasures/{made}").status_code == 404
    assert make_key("read", user_id="ann").get(f"/erasures/{made}").status_code == 200
    for none in (uuid.uuid4(), "x"):
        assert api.get(f"/erasures/{none}").status_code == 404


def test_an_idempotency_key_of_the_earlier_life_is_gone(api):
    sent = {"user_id": "ann", "memories": ["tea"]}
    api.post("/memory/add", sent, Idempotency_Key="k1")
    first = api.delete("/users/ann?wait=none", Idempotency_Key="e1").json()
    answer = api.post("/memory/add", sent, Idempotency_Key="k1")
    assert (answer.status_code, answer.json()["code"]) == (410, "erased")
    api.post("/memory/add", sent)
    assert api.delete("/users/ann?wait=none", Idempotency_Key="e1").json()["erasure_id"] == first["erasure_id"]
    assert api.delete("/users/ann?wait=none").json()["erasure_id"] != first["erasure_id"]


@pytest.mark.parametrize("name", ["auth0|4", "a%2Fb", "Nguy%E1%BB%85n"])
def test_any_id_can_be_erased(api, name):
    assert api.delete(f"/users/{name}?wait=none").status_code == 202


def test_the_erase_is_a_job_like_others(api):
    api.add("tea", wait="none")
    api.delete("/users/ann?wait=none")
    jobs = api.get("/jobs?user_id=ann").json()["results"]
    assert [(job["kind"], job["status"], job["reason"]) for job in jobs] == [
        ("erase", "pending", None),
        ("add", "failed", "erased"),
    ]
