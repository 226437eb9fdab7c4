"""The operator's pages of projects, keys and jobs."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from memory import write
from memory.models import ApiKey, Heartbeat, Job, Project
from memory.tenancy import keys
from memory.tenancy.projects import policy
from memory.types import Scope
from memory.write import Write
from tests.operators import operator, told

pytestmark = pytest.mark.django_db

SECRET_FACT = "Mật khẩu <script>alert(1)</script>"
JOBS = "/admin/memory/job/"
KEYS = "/admin/memory/apikey/"


@pytest.fixture(autouse=True)
def no_broker(redis, monkeypatch) -> list[object]:
    """What would be handed to workers: nobody delivers here."""
    sent: list[object] = []
    monkeypatch.setattr("memory.outbox.send", sent.append)
    return sent


@pytest.fixture
def failed(ann) -> Job:
    job = write.accept(Write("add", ann, {"memories": [{"text": SECRET_FACT}]}), policy(ann.project)).job
    Job.objects.filter(pk=job.pk).update(
        state="failed",
        reason="outcome_unknown",
        error="<b>lost</b>",
        results=[{"index": 0, "id": "m1", "event": "ADD", "memory": SECRET_FACT}],
    )
    job.tries.create(number=1, fence=7, outcome="unknown")
    return job


def page(job: Job) -> str:
    return f"{JOBS}{job.pk}/change/"


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_the_list_shows_each_job_with_why_it_failed_and_never_its_text(failed, ann):
    shown = told(operator("memory.view_job").get(JOBS))
    assert str(failed.job_id) in shown
    assert "outcome_unknown &lt;b&gt;lost&lt;/b&gt;" in shown
    assert "Mật khẩu" not in shown


def test_a_list_of_many_jobs_costs_few_queries(ann, django_assert_max_num_queries):
    staff = operator("memory.view_job")
    for place in range(30):
        write.accept(
            Write("add", Scope(ann.project, f"user{place}"), {"memories": [{"text": "t"}]}), policy(ann.project)
        )
    with django_assert_max_num_queries(16):
        assert staff.get(JOBS).status_code == 200


def test_a_jobs_page_shows_its_attempts(failed):
    shown = told(operator("memory.view_job").get(page(failed)))
    assert "unknown" in shown
    assert "outcome_unknown" in shown


def test_what_a_job_writes_is_seen_only_with_the_permission_for_it(failed):
    assert "Mật khẩu" not in told(operator("memory.view_job").get(page(failed)))
    shown = told(operator("memory.view_job", "memory.view_payload").get(page(failed)))
    assert "Mật khẩu &lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script>alert" not in shown


def test_how_long_the_oldest_has_waited_is_told(ann):
    job = write.accept(Write("add", ann, {"memories": [{"text": "t"}]}), policy(ann.project)).job
    Job.objects.filter(pk=job.pk).update(accepted_at=timezone.now() - timedelta(hours=5))
    shown = told(operator("memory.view_job").get(JOBS))
    assert re.search(r"the oldest unsent waits <b>5 h</b>", shown)


def test_a_failed_job_is_retried_after_a_question(failed, no_broker):
    staff = operator("memory.view_job", "memory.change_job")
    assert f"{JOBS}{failed.pk}/retry/" in told(staff.get(page(failed)))
    question = staff.get(f"{JOBS}{failed.pk}/retry/")
    assert "sent again" in told(question)
    assert Job.objects.get().state == "failed"
    no_broker.clear()
    answer = staff.post(f"{JOBS}{failed.pk}/retry/", follow=True)
    assert Job.objects.get().state == "pending"
    assert "lane’s tail" in told(answer) or "lane&#x27;s tail" in told(answer)
    assert len(no_broker) == 1


def test_many_failed_jobs_are_dismissed_after_one_question_and_leave_the_list(failed):
    staff = operator("memory.view_job", "memory.change_job")
    ticked = {"action": "dismiss", "_selected_action": [failed.pk]}
    assert "leaves the list" in told(staff.post(JOBS, ticked))
    assert Job.objects.get().dismissed_at is None
    shown = told(staff.post(JOBS, {**ticked, "confirmed": "yes"}, follow=True))
    assert Job.objects.get().dismissed_at is not None
    assert "0 jobs" in shown
    assert str(failed.job_id) in told(staff.get(JOBS, {"dismissed": "only"}))


def test_who_may_only_look_is_offered_nothing_and_refused(failed):
    staff = operator("memory.view_job")
    assert "/retry/" not in told(staff.get(page(failed)))
    assert 'name="action"' not in told(staff.get(JOBS))
    assert staff.post(f"{JOBS}{failed.pk}/retry/").status_code == 403
    staff.post(JOBS, {"action": "retry", "_selected_action": [failed.pk], "confirmed": "yes"})
    assert Job.objects.get().state == "failed"


def test_acting_needs_the_token_that_only_our_own_pages_carry(failed):
    staff = operator("memory.view_job", "memory.change_job")
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = staff.cookies
    assert strict.post(f"{JOBS}{failed.pk}/retry/").status_code == 403
    assert Job.objects.get().state == "failed"


@pytest.mark.parametrize(
    "query",
    [{"state__exact": "failed"}, {"kind__exact": "add"}, {"q": "ann"}, {"state__exact": "failed", "q": "an"}],
)
def test_a_job_is_found_by_state_kind_user(failed, query):
    assert str(failed.job_id) in told(operator("memory.view_job").get(JOBS, query))


def test_a_job_is_found_by_its_id_and_no_other_with_it(failed, ann):
    other = write.accept(Write("add", ann, {"memories": [{"text": "t"}]}), policy(ann.project)).job
    shown = told(operator("memory.view_job").get(JOBS, {"q": str(failed.job_id)}))
    assert str(failed.job_id) in shown
    assert str(other.job_id) not in shown
    assert "0 jobs" in told(operator("memory.view_job").get(JOBS, {"q": str(uuid.uuid4())}))


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_keys_secret_is_shown_once_and_works(project):
    staff = operator("memory.add_apikey", "memory.view_apikey")
    asked = {"project": project.pk, "name": "Máy chủ", "scopes": ["read"], "user_id": "Ánh"}
    made = staff.post(f"{KEYS}add/", asked)
    (secret,) = re.findall(r"msk_[\w-]{40,}", told(made))
    assert "no-store" in made["Cache-Control"]
    caller = keys.authenticate(secret)
    assert (caller.scopes, caller.user_id) == ({"read"}, "Ánh")
    key = ApiKey.objects.get()
    for path in (KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/"):
        shown = told(staff.get(path, follow=True))
        assert secret not in shown
        assert key.digest not in shown


@pytest.mark.parametrize(
    "wrong",
    [{"scopes": []}, {"scopes": ["root"]}, {"user_id": "two words"}, {"name": ""}, {"project": 0}],
)
def test_a_key_that_makes_no_sense_is_not_made(project, wrong):
    asked = {"project": project.pk, "name": "n", "scopes": ["read"], "user_id": "", **wrong}
    answer = operator("memory.add_apikey", "memory.view_apikey").post(f"{KEYS}add/", asked)
    assert "errorlist" in told(answer)
    assert not ApiKey.objects.exists()


def test_a_revoked_key_is_refused(project):
    key, secret = keys.create(project, name="n", scopes=["read"])
    staff = operator("memory.view_apikey", "memory.change_apikey")
    assert "cannot be undone" in told(staff.get(f"{KEYS}{key.pk}/revoke/"))
    assert keys.authenticate(secret) is not None
    staff.post(f"{KEYS}{key.pk}/revoke/")
    keys.forget()
    assert keys.authenticate(secret) is None


# -- projects ---------------------------------------------------------------------------------------------------------


def form(project: Project, **changed: object) -> dict[str, object]:
    fields = (
        "name", "slug", "local_search", "local_ranking", "on_unknown", "extract_on", "extract_every_turns",
    )  # fmt: skip
    return {name: getattr(project, name) for name in fields} | changed


def test_b5_a_changed_policy_moves_the_generation_and_a_new_name_does_not(project):
    staff = operator("memory.view_project", "memory.change_project")
    path = f"/admin/memory/project/{project.pk}/change/"
    staff.post(path, form(project, name="Tên mới"))
    project.refresh_from_db()
    assert (project.name, project.generation) == ("Tên mới", 1)
    staff.post(path, form(project, local_search="off"))
    project.refresh_from_db()
    assert (project.local_search, project.generation) == ("off", 2)
    for ranking in ("like_upstream", "by taste"):
        staff.post(path, form(project, local_ranking=ranking))
    project.refresh_from_db()
    assert (project.local_ranking, project.generation) == ("like_upstream", 3)
    assert policy(project.pk).local_ranking == "like_upstream"


def test_a_project_made_here_has_ids_of_its_own_in_mem0(project):
    staff = operator("memory.view_project", "memory.add_project")
    for slug in ("second", "third"):
        staff.post("/admin/memory/project/add/", form(Project(name=slug, slug=slug)))
    assert len(set(Project.objects.values_list("namespace", flat=True))) == 3


def test_nobody_deletes_a_project_here(admin_client, project):
    assert admin_client.post(f"/admin/memory/project/{project.pk}/delete/", {"post": "yes"}).status_code == 403


# -- the front page ---------------------------------------------------------------------------------------------------


def test_the_front_page_tells_who_works_what_waits_and_what_failed(failed, django_assert_max_num_queries):
    Heartbeat.objects.create(name="worker:deliver:here", at=timezone.now())
    staff = operator("memory.view_job")
    with django_assert_max_num_queries(16):
        shown = told(staff.get("/admin/"))
    assert "1 at work" in shown
    assert "never seen" in shown
    assert '<span class="chip down">1</span>' in shown
    assert "missing_workers: 2" in shown


def test_the_front_page_stands_without_redis(dead_redis, project):
    shown = told(operator("memory.view_job").get("/admin/"))
    assert '<span class="chip down">down</span>' in shown


def test_the_front_page_tells_nothing_of_jobs_to_those_who_may_not_see_them(project):
    assert "at work" not in told(operator("memory.view_project").get("/admin/"))


def test_nobody_sees_anything_without_signing_in(client, failed):
    for path in ("/admin/", JOBS, page(failed), f"{JOBS}{failed.pk}/retry/", KEYS):
        assert client.get(path).status_code == 302
