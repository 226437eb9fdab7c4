"""Warming over HTTP: whoever may write may ask for a warm, and nobody sees another project's."""

from __future__ import annotations

import pytest

from cachewarm import runs, tasks
from cachewarm.models import WarmRun
from memory.models import MemoryUser, Project
from memory.tenancy import keys
from tests.memory.api.conftest import Caller

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def stores(redis, settings):
    settings.PROACTIVE_CACHE_ENABLED = False


def caller(project, scopes=keys.SCOPES, **more) -> Caller:
    return Caller(keys.create(project, name="test", scopes=scopes, **more)[1])


def test_a_warm_that_was_asked_for_can_be_followed_to_its_end(mem0, project):
    app = caller(project)
    asked = app.send("post", "/users/ann/warm")
    assert asked.status_code == 202
    run_id = asked.json()["run_id"]
    assert asked.json()["status_url"].endswith(f"/warms/{run_id}")
    assert asked["Location"] == asked.json()["status_url"]
    assert app.send("get", f"/warms/{run_id}").json()["status"] == "due"
    for task in (tasks.warm_summaries, tasks.warm_results, tasks.warm_vectors, tasks.warm_record):
        task(run_id)
    told = app.send("get", f"/warms/{run_id}").json()
    assert (told["status"], told["reason"], told["step"], told["version"]) == ("completed", "api", "record", "user:0")
    assert MemoryUser.objects.get(user_id="ann").warmed_at is not None


def test_asking_twice_is_one_warm(mem0, project):
    app = caller(project)
    asked = [app.send("post", "/users/ann/warm").json()["run_id"] for _ in range(2)]
    assert asked[0] == asked[1]


def test_an_id_may_hold_anything(mem0, project):
    assert caller(project).send("post", "/users/auth0%7C4%2Fb/warm").status_code == 202
    assert WarmRun.objects.get().user_id == "auth0|4/b"


def test_warms_are_listed_newest_first_by_user_and_state(project):
    for name in ("ann", "ben"):
        runs.request(project.pk, name, "manual")
    WarmRun.objects.filter(user_id="ben").update(state="completed")
    app = caller(project)
    listed = app.send("get", "/warms").json()
    assert (listed["count"], [row["user_id"] for row in listed["results"]]) == (2, ["ben", "ann"])
    assert app.send("get", "/warms?user_id=ann").json()["count"] == 1
    assert app.send("get", "/warms?status=completed").json()["results"][0]["user_id"] == "ben"
    assert app.send("get", "/warms?page_size=1").json()["next"] is not None


@pytest.mark.parametrize("path", ["warms?status=tepid", "warms?page_size=1001", "warms?page=0", "warms?colour=red"])
def test_bad_questions_are_named(project, path):
    assert caller(project).send("get", f"/{path}").status_code == 400


@pytest.mark.parametrize("run_id", ["nonsense", "00000000-0000-4000-8000-000000000000"])
def test_an_unknown_warm_is_404(project, run_id):
    assert caller(project).send("get", f"/warms/{run_id}").status_code == 404


def test_another_projects_warms_do_not_exist(project):
    run_id = runs.request(project.pk, "ann", "manual").run_id
    other = caller(Project.objects.create(name="Other", slug="other", namespace="other"))
    assert other.send("get", f"/warms/{run_id}").status_code == 404
    assert other.send("get", "/warms").json()["count"] == 0


def test_a_key_of_one_user_warms_and_sees_that_user_only(project):
    run_id = runs.request(project.pk, "ben", "manual").run_id
    ann = caller(project, user_id="ann")
    assert ann.send("post", "/users/ann/warm").status_code == 202
    assert ann.send("post", "/users/ben/warm").status_code in (403, 404)
    assert ann.send("get", f"/warms/{run_id}").status_code == 404
    assert {row["user_id"] for row in ann.send("get", "/warms").json()["results"]} == {"ann"}


def test_a_key_that_only_reads_may_not_warm(project):
    assert caller(project, scopes=("read",)).send("post", "/users/ann/warm").status_code == 403
    assert Caller(None).send("post", "/users/ann/warm").status_code == 401
