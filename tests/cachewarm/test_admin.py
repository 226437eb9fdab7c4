"""The operator's pages of users, warming, topics and beat's schedule."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.db import connection, transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from redis import Redis

from cachewarm import rebuild, runs, schedule, topics
from cachewarm.models import RebuildRun, Topic, WarmRun
from memory import stack, versions
from memory.layers import l3_rows
from memory.layers.l3_summaries import Reading, Summary
from memory.models import Erasure, MemoryUser, PinVersion, Project
from memory.types import Scope, Version
from tests.live import eventually
from tests.operators import operator, told

pytestmark = pytest.mark.django_db

USERS = "/admin/memory/memoryuser/"
TOPICS = "/admin/cachewarm/topic/"
REBUILDS = "/admin/cachewarm/rebuildrun/"
LOOK = "memory.view_memoryuser"
ANH = "Nguyễn/Ánh <b>"
NEW = 7
FACT = "Tôi dị ứng với <script>tôm</script>"


@pytest.fixture(autouse=True)
def no_broker(redis, monkeypatch, settings) -> list[object]:
    """What would be handed to workers: nobody warms here."""
    settings.EMBEDDER = "none"
    sent: list[object] = []
    monkeypatch.setattr("memory.outbox.send", sent.append)
    return sent


@pytest.fixture
def anh(project) -> MemoryUser:
    return MemoryUser.objects.create(project=project, user_id=ANH)


def scope(user: MemoryUser) -> Scope:
    return Scope(user.project_id, user.user_id)


def page(user: MemoryUser) -> str:
    return f"{USERS}{user.pk}/change/"


def warm(user: MemoryUser, mem0) -> Version:
    """What a warm would leave, with one fact."""
    mem0.store(scope(user), FACT)
    with transaction.atomic():
        version = versions.move(scope(user).pins())[0]
        memories = [row for row in mem0.rows if row.user_id == user.user_id]
        reading = Reading(version.number, True, memories, {}, "", l3_rows.fingerprint(memories))
        summary = Summary({"food": [{"id": "1", "memory": FACT, "score": 0.5}]}, {}, [], {"memories": 1}, "")
        assert stack.L3.save({scope(user): (reading, summary)})
    run = runs.claim(runs.request(user.project_id, user.user_id, "manual").run_id)
    run.version = version.number
    assert runs.end([(run, "completed")])
    return version


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_tells_version_memories_and_the_last_warm(anh, mem0):
    version = warm(anh, mem0)
    shown = told(operator(LOOK).get(USERS))
    assert "Nguyễn/Ánh &lt;b&gt;" in shown
    assert str(version.number) in shown
    assert '<td class="field-memories">1</td>' in shown
    assert '<span class="chip hit">warm</span>' in shown
    assert re.search(r"completed, [\d.]+ (s|min) ago", shown)


def test_a_user_written_since_the_last_warm_is_behind_and_a_failed_one_says_so(anh, mem0, project):
    warm(anh, mem0)
    with transaction.atomic():
        versions.move(scope(anh).pins())
    assert '<span class="chip miss">behind</span>' in told(operator(LOOK).get(USERS))
    behind = versions.stored(scope(anh).pin).number
    run = runs.claim(runs.request(project.pk, anh.user_id, "manual", behind).run_id)
    runs.end([(run, "failed")], "origin_unavailable")
    shown = told(operator(LOOK).get(USERS))
    assert '<span class="chip down">failed</span>' in shown
    assert "failed origin_unavailable" in shown


def test_fifty_users_cost_as_few_queries_as_one(project, django_assert_max_num_queries):
    users = [MemoryUser(project=project, user_id=f"user{place}") for place in range(60)]
    MemoryUser.objects.bulk_create(users)
    PinVersion.objects.bulk_create(PinVersion(project_id=project.pk, kind="user", pin_id=u.user_id) for u in users)
    WarmRun.objects.bulk_create(WarmRun(project=project, user_id=u.user_id, reason="manual") for u in users)
    staff = operator(LOOK)
    with django_assert_max_num_queries(10):
        shown = told(staff.get(USERS))
    assert "60 memory users" in shown


def test_users_are_found_by_a_part_of_their_id_and_by_project(anh):
    MemoryUser.objects.create(project=Project.objects.create(name="B", slug="b", namespace="b"), user_id="ben")
    staff = operator(LOOK)
    assert "1 memory user" in told(staff.get(USERS, {"q": "/Ánh"}))
    assert "1 memory user" in told(staff.get(USERS, {"project__id__exact": anh.project_id}))


# -- one user ---------------------------------------------------------------------------------------------------------


def test_a_users_page_shows_what_the_layers_hold_and_escapes_it(anh, mem0, django_assert_max_num_queries):
    topics.ensure()
    version = warm(anh, mem0)
    staff = operator(LOOK)
    with django_assert_max_num_queries(20):
        shown = told(staff.get(page(anh)))
    assert "Nguyễn/Ánh &lt;b&gt;" in shown
    assert shown.count("Tôi dị ứng với &lt;script&gt;tôm&lt;/script&gt;") == 2  # its topic, and the rows
    assert "<script>tôm" not in shown
    assert f'<td class="number">{version.number}</td>' in shown
    assert "Warm set: 22 questions" in shown
    assert "no entry" in shown


def test_a_question_typed_in_tells_why_it_would_hit_or_miss(anh, mem0, settings):
    settings.LOCAL_SEARCH = "on"
    warm(anh, mem0)
    shown = told(operator(LOOK).post(page(anh), {"question": "tôm & <i>", "top_k": "5"}))
    assert "tôm &amp; &lt;i&gt;" in shown
    assert "answers: L3" in shown
    assert "rows are of the current version" in shown


@pytest.mark.parametrize("wrong", [{"question": "", "top_k": "5"}, {"question": "tea", "top_k": "0"}])
def test_a_question_that_makes_no_sense_is_told(anh, mem0, wrong):
    answer = operator(LOOK).post(page(anh), wrong)
    assert (answer.status_code, "errorlist" in told(answer)) == (200, True)


def test_a_question_leaves_no_trace_in_the_log(anh, mem0, caplog):
    with caplog.at_level(logging.DEBUG):
        operator(LOOK).post(page(anh), {"question": "tôm hùm?", "top_k": "5"})
    assert "tôm hùm" not in caplog.text


def test_mem0_is_asked_only_when_the_comparison_is_and_differences_are_shown(anh, mem0):
    warm(anh, mem0)
    new = mem0.store(scope(anh), "written behind our back")
    staff = operator(LOOK)
    staff.get(page(anh))
    assert mem0.calls == []
    shown = told(staff.post(page(anh), {"compare": "yes"}))
    assert mem0.calls == ["list"]
    assert "<b>1</b> only in Mem0" in shown
    assert new.id in shown
    assert "written behind our back" in shown


def test_the_page_stands_without_redis_and_without_mem0(anh, mem0, dead_redis):
    warm(anh, mem0)
    mem0.down = True
    shown = told(operator(LOOK).post(page(anh), {"compare": "yes"}))
    assert "Redis does not answer" in shown
    assert "Mem0 cannot be asked: origin_unavailable" in shown
    assert "rows are of the current version" in shown or "policy off" in shown


def test_a_user_never_warmed_has_a_page_too(anh, mem0):
    assert "this user was never warmed" in told(operator(LOOK).get(page(anh)))


def test_warming_by_hand_is_asked_first_and_makes_a_run_due(anh, mem0, no_broker):
    staff = operator(LOOK, "memory.warm_memoryuser")
    assert f"{USERS}{anh.pk}/warm/" in told(staff.get(page(anh)))
    staff.get(f"{USERS}{anh.pk}/warm/")
    assert not WarmRun.objects.exists()
    assert "is due" in told(staff.post(f"{USERS}{anh.pk}/warm/", follow=True))
    run = WarmRun.objects.get()
    assert (run.user_id, run.reason, run.state) == (ANH, "manual", "due")
    assert len(no_broker) == 1


def test_invalidating_moves_version_and_floor_and_a_warm_follows(anh, mem0):
    before = warm(anh, mem0)
    staff = operator(LOOK, "memory.invalidate_memoryuser")
    staff.post(f"{USERS}{anh.pk}/invalidate/")
    now = versions.stored(scope(anh).pin)
    assert now.number == now.floor > before.number
    assert WarmRun.objects.filter(state="due", reason="write", wanted_version=now.number).exists()


def test_erasing_asks_first_begins_an_erase_and_shows_its_receipt(anh, mem0):
    staff = operator(LOOK, "memory.erase_memoryuser", "memory.view_erasure")
    assert "cannot be undone" in told(staff.get(f"{USERS}{anh.pk}/erase/"))
    assert not Erasure.objects.exists()
    assert staff.post(f"{USERS}{anh.pk}/erase/").headers["Location"] == USERS
    erasure = Erasure.objects.get()
    assert (erasure.user_id, MemoryUser.objects.exists()) == (ANH, False)
    assert "pending" in told(staff.get(f"/admin/memory/erasure/{erasure.pk}/change/"))


def test_many_users_are_warmed_after_one_question(anh, mem0, project):
    ben = MemoryUser.objects.create(project=project, user_id="ben")
    staff = operator(LOOK, "memory.warm_memoryuser")
    ticked = {"action": "warm", "_selected_action": [anh.pk, ben.pk]}
    assert "ben" in told(staff.post(USERS, ticked))
    assert not WarmRun.objects.exists()
    staff.post(USERS, {**ticked, "confirmed": "yes"})
    assert set(WarmRun.objects.values_list("user_id", flat=True)) == {ANH, "ben"}


def test_who_may_only_look_is_offered_nothing_and_refused(anh, mem0):
    staff = operator(LOOK)
    assert "Warm now" not in told(staff.get(page(anh)))
    for act in ("warm", "invalidate", "erase"):
        assert staff.post(f"{USERS}{anh.pk}/{act}/").status_code == 403
    assert staff.post(f"{USERS}{anh.pk}/delete/").status_code == 403
    assert not WarmRun.objects.exists()
    assert versions.stored(scope(anh).pin).number == 0


def test_who_may_act_but_not_look_sees_no_user(anh, mem0):
    staff = operator("memory.warm_memoryuser")
    assert staff.get(page(anh)).status_code == 403
    assert staff.post(f"{USERS}{anh.pk}/warm/").status_code == 403


# -- warms and rebuilds -----------------------------------------------------------------------------------------------


def test_a_failed_warm_is_shown_with_its_step_and_error(anh):
    run = runs.claim(runs.request(anh.project_id, anh.user_id, "manual").run_id)
    runs.step_ended([run], "L3")
    runs.end([(run, "failed")], "layer_unavailable")
    shown = told(operator("cachewarm.view_warmrun").get("/admin/cachewarm/warmrun/"))
    assert "after L3 layer_unavailable" in shown


def test_a_rebuild_is_begun_stopped_and_resumed(anh, mem0, no_broker):
    look = "cachewarm.view_rebuildrun"
    staff = operator(look, "cachewarm.add_rebuildrun", "cachewarm.change_rebuildrun")
    staff.get(f"{REBUILDS}begin/")
    assert not RebuildRun.objects.exists()
    staff.post(f"{REBUILDS}begin/")
    run = RebuildRun.objects.get()
    assert (run.state, run.total, len(no_broker)) == ("running", 1, 1)
    assert "is still running" in told(staff.post(f"{REBUILDS}begin/", follow=True))
    staff.post(f"{REBUILDS}{run.pk}/stop/")
    assert "stopping" in told(staff.get(REBUILDS))
    rebuild.batch(run.pk)
    run.refresh_from_db()
    assert run.state == "stopped"
    staff.post(f"{REBUILDS}{run.pk}/resume/")
    while rebuild.batch(run.pk).startswith("done"):
        pass
    run.refresh_from_db()
    assert (run.state, run.done) == ("completed", 1)
    assert '<progress max="1" value="1">' in told(operator(look).get(REBUILDS))


def test_who_may_only_look_begins_and_stops_no_rebuild(mem0):
    run, _ = rebuild.begin("manual")
    staff = operator("cachewarm.view_rebuildrun")
    assert "Rebuild now" not in told(staff.get(REBUILDS))
    assert staff.post(f"{REBUILDS}begin/").status_code == 403
    assert staff.post(f"{REBUILDS}{run.pk}/stop/").status_code == 403
    run.refresh_from_db()
    assert not run.stop_requested


# -- topics -----------------------------------------------------------------------------------------------------------


def topic(**changed: object) -> dict[str, object]:
    whole = {"name": "food", "questions": "What does the user eat?\n\n  Món ăn nào? ", "limit": 5, "position": NEW}
    return {**whole, "enabled": "on", **changed}


def test_a_topic_is_made_and_its_questions_are_trimmed():
    staff = operator("cachewarm.view_topic", "cachewarm.add_topic")
    staff.post(f"{TOPICS}add/", topic())
    assert Topic.objects.get(name="food").asked() == ["What does the user eat?", "Món ăn nào?"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"questions": " \n "},
        {"questions": "x" * 501},
        {"questions": "\n".join(f"question {place}?" for place in range(9))},
        {"limit": 0},
        {"limit": 101},
        {"name": "two words"},
    ],
)
def test_a_topic_that_makes_no_sense_is_refused(wrong):
    answer = operator("cachewarm.view_topic", "cachewarm.add_topic").post(f"{TOPICS}add/", topic(**wrong))
    assert "errorlist" in told(answer)
    assert not Topic.objects.filter(position=NEW).exists()


def test_a_name_stands_once_for_all_projects():
    staff = operator("cachewarm.view_topic", "cachewarm.add_topic")
    staff.post(f"{TOPICS}add/", topic())
    assert "errorlist" in told(staff.post(f"{TOPICS}add/", topic(questions="Another?")))


# -- beat's schedule --------------------------------------------------------------------------------------------------


@pytest.fixture
def beat(no_broker) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Run a real beat until something is so, then end it."""
    database = connection.settings_dict
    url = f"postgresql:///{database['NAME']}?" + urlencode({"host": database["HOST"], "user": database["USER"]})
    words = (sys.executable, "-m", "celery", "-A", "memsvc", "beat", "--max-interval", "1")
    started: list[subprocess.Popen[bytes]] = []

    def run(until: Callable[[], object]) -> None:
        process = subprocess.Popen(words, env={**os.environ, "DATABASE_URL": url}, stderr=subprocess.DEVNULL)
        started.append(process)
        eventually(until)
        process.terminate()
        assert process.wait(timeout=30) == 0

    yield run
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def sent() -> Iterator[Callable[[], int]]:
    """How many rebuilds wait in BROKER."""
    broker = Redis(unix_socket_path=settings.BROKER_URL.partition("://")[2].partition("?")[0])
    broker.delete("rebuild")
    yield lambda: broker.llen("rebuild")
    broker.delete("rebuild")
    broker.close()


@pytest.mark.django_db(transaction=True)
def test_an_edited_schedule_survives_restarts_of_beat_and_of_the_service(admin_client, beat, sent):
    schedule.ensure()
    task = PeriodicTask.objects.get(name=schedule.REBUILD)
    second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    edited = {"name": task.name, "regtask": task.task, "interval": second.pk, "kwargs": "{}", "args": "[]"}
    path = f"/admin/django_celery_beat/periodictask/{task.pk}/change/"
    answer = admin_client.post(path, {**edited, "headers": "{}", "priority": "", "enabled": "on"})
    assert answer.status_code == 302, told(answer)
    for _ in range(2):
        before = sent()
        beat(lambda: sent() > before)  # noqa: B023  (asked while it is this one)
        schedule.ensure()
        task.refresh_from_db()
        assert (task.interval.every, task.interval.period, task.enabled) == (1, "seconds", True)
        assert PeriodicTask.objects.filter(task=task.task).count() == 1


@pytest.mark.django_db(transaction=True)
def test_beat_ends_when_told_to_even_while_postgresql_keeps_it_waiting(beat):
    schedule.ensure()

    def waits() -> object:
        cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE django_celery_beat_periodictask")
        beat(waits)


def test_a_schedule_switched_off_stays_off(admin_client):
    schedule.ensure()
    PeriodicTask.objects.filter(name=schedule.REBUILD).update(enabled=False)
    schedule.ensure()
    assert not PeriodicTask.objects.get(name=schedule.REBUILD).enabled
