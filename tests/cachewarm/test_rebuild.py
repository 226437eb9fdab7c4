"""The rebuild repairs what is not warm, leaves what is, and survives whoever works on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cachewarm import learned, rebuild, summarise, warmset
from cachewarm.models import RebuildRun, Topic, WarmRun
from memory import delivery, embedders, read, stack, versions, write
from memory.clock import Deadline
from memory.errors import EmbedderError, OriginUnavailable
from memory.models import MemoryUser, Snapshot
from memory.tenancy import projects
from memory.tenancy.projects import policy
from memory.types import Listing, Query, Scope
from memory.write import Write
from tests.live import ROOT, eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def small(redis, settings, project, monkeypatch):
    settings.LOCAL_SEARCH = "on"
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.REBUILD_CALLS_PER_SECOND = 100_000
    settings.REBUILD_BATCH_USERS = 3
    monkeypatch.setattr(rebuild, "PAGE_USERS", 3)
    Topic.objects.exclude(name="pet").delete()


def know(project, *names: str) -> list[Scope]:
    """Users memsvc knows of, the last the most active."""
    for name in names:
        write.touch_user(project.pk, name)
        MemoryUser.objects.filter(user_id=name).update(active_at=timezone.now())
    return [Scope(project.pk, name) for name in names]


def add(scope: Scope, text: str) -> None:
    job = write.accept(Write("add", scope, {"memories": [{"text": text}]}), policy(scope.project)).job
    delivery.deliver(job.lane_id)


def run(**more: Any) -> RebuildRun:
    """A whole rebuild in this process."""
    begun, _ = rebuild.begin("manual", full=True, **more)
    work = rebuild.claim(begun.pk)
    for _ in rebuild.run_here(work):
        pass
    begun.refresh_from_db()
    return begun


def database_url() -> str:
    """The test's own database, for a process of its own."""
    url, _, query = os.environ["DATABASE_URL"].partition("?")
    return f"{url.rpartition('/')[0]}/{connection.settings_dict['NAME']}?{query}"


def layers(scope: Scope) -> Counter[str]:
    rules = policy(scope.project)
    return Counter(read.search(query, rules, Deadline.after(20)).layer for query in warmset.of(scope))


def test_it_warms_everybody(mem0, project):
    scopes = know(project, *(f"u{number}" for number in range(7)))
    for scope in scopes:
        mem0.store(scope, "I keep two cats")
    done = run()
    assert (done.state, done.total, done.done, done.unchanged, done.failed) == ("completed", 7, 7, 0, 0)
    assert all(set(layers(scope)) == {"L2"} for scope in scopes)
    assert set(WarmRun.objects.values_list("state", flat=True)) == {"completed"}
    assert WarmRun.objects.count() == 7


def test_the_active_come_first(mem0, project):
    know(project, "quiet", "busy", "busiest")
    run()
    assert list(WarmRun.objects.order_by("id").values_list("user_id", flat=True)) == ["busiest", "busy", "quiet"]


def test_whoever_is_warm_is_left_alone(mem0, project):
    know(project, "ann", "ben")
    run()
    mem0.calls.clear()
    again = run()
    assert (again.done, again.unchanged) == (2, 2)
    assert mem0.calls == ["list", "list"]


def test_after_redis_lost_everything_every_warm_question_is_a_hit_again(mem0, project, redis):
    (ann,) = know(project, "ann")
    mem0.store(ann, "I keep two cats")
    run()
    redis.flushall()
    again = run()
    assert (again.done, again.unchanged) == (1, 0)
    mem0.calls.clear()
    assert set(layers(ann)) == {"L2"}
    assert mem0.calls == []


def test_an_answer_that_will_not_last_until_the_next_rebuild_is_renewed(mem0, project, settings, redis):
    know(project, "ann")
    run()
    late(mem0, Scope(project.pk, "ann"), redis)
    assert run().unchanged == 0
    assert run().unchanged == 1


@pytest.mark.parametrize("change", ["topics", "embedder", "failure", "version"])
def test_whoever_is_no_longer_warm_is_warmed(mem0, project, settings, change):
    (ann,) = know(project, "ann")
    mem0.store(ann, "I keep two cats")
    run()
    if change == "topics":
        Topic.objects.update(questions="Which animals live with the user?")
    elif change == "embedder":
        settings.EMBEDDER = "none"
    elif change == "failure":
        MemoryUser.objects.update(warm_failure="origin_timeout")
    else:
        with transaction.atomic():
            versions.publish(versions.move(ann.pins()))
    assert run().unchanged == 0
    assert run().unchanged == 1
    assert set(layers(ann)) == {"L2"}


def test_what_others_wrote_to_mem0_is_found_and_nothing_older_served(mem0, project):
    (ann,) = know(project, "ann")
    add(ann, "I keep two cats")
    run()
    before = versions.stored(ann.pin)
    mem0.rows[0] = replace(mem0.rows[0], text="I keep three dogs")
    assert run().unchanged == 0
    after = versions.stored(ann.pin)
    assert after.floor > before.number
    answer = read.search(warmset.of(ann)[0], policy(project.pk), Deadline.after(20))
    assert b"three dogs" in answer.entry.results


def test_over_rest_listing_is_spared_where_mem0s_totals_are_as_before(mem0, project, settings):
    settings.REBUILD_FULL_EVERY = 8
    ann, ben = know(project, "ann", "ben")
    mem0.store(ann, "tea")
    run()
    mem0.store(ben, "written by others")
    mem0.entities = lambda deadline: (
        [{"type": "user", "id": name, "total_memories": 1} for name in ("ann", "ben")],
        True,
    )
    mem0.calls.clear()
    begun, _ = rebuild.begin("beat")
    for _ in rebuild.run_here(rebuild.claim(begun.pk)):
        pass
    assert not begun.full
    assert set(mem0.calls) == {"list"}
    assert list(WarmRun.objects.filter(rebuild=begun).values_list("user_id", flat=True)) == ["ben"]


def lightly() -> RebuildRun:
    """A rebuild that lists nobody without a reason."""
    begun, _ = rebuild.begin("beat")
    assert not begun.full
    for _ in rebuild.run_here(rebuild.claim(begun.pk)):
        pass
    begun.refresh_from_db()
    return begun


def test_over_rest_whoever_is_warm_costs_neither_a_listing_nor_statements_of_their_own(
    mem0, project, settings, monkeypatch
):
    settings.REBUILD_FULL_EVERY = 8
    monkeypatch.setattr(rebuild, "PAGE_USERS", 100)
    know(project, *(f"u{number}" for number in range(4)))
    run()
    with CaptureQueriesContext(connection) as few:
        assert lightly().unchanged == 4
    know(project, *(f"v{number}" for number in range(8)))
    run()
    mem0.calls.clear()
    with CaptureQueriesContext(connection) as many:
        done = lightly()
    assert (done.done, done.unchanged, "list" in mem0.calls) == (12, 12, False)
    assert len(many) < len(few) + 8


def moved(mem0, scope: Scope, redis) -> None:
    with transaction.atomic():
        versions.publish(versions.move(scope.pins()))


def late(mem0, scope: Scope, redis) -> None:
    """So much later that an answer's end is near."""
    left = django_settings.REBUILD_PERIOD_SECONDS - 1
    redis.expire(redis.keys("*:q:*")[0], left)
    MemoryUser.objects.update(answers_until=Now() + timedelta(seconds=left))


def evicted(mem0, scope: Scope, redis) -> None:
    redis.delete(redis.keys("*:q:*")[0])


def asked(mem0, scope: Scope, redis) -> None:
    learned.note(Query(scope, "Where do my cats sleep?"))
    learned.save()


def another_policy(mem0, scope: Scope, redis) -> None:
    projects.move_generation(scope.project)
    projects.forget()


CHANGES = {
    "topics": lambda *_: Topic.objects.update(questions="Which animals live with the user?"),
    "a failed warm": lambda *_: MemoryUser.objects.update(warm_failure="origin_timeout"),
    "a write": moved,
    "an empty Redis": lambda mem0, scope, redis: redis.flushall(),
    "an answer that ends soon": late,
    "an answer that was evicted": evicted,
    "a new question": asked,
    "another policy": another_policy,
    "written by others": lambda mem0, scope, redis: mem0.store(scope, "written by others"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_over_rest_too_whoever_is_no_longer_warm_is_warmed(mem0, project, settings, redis, change):
    settings.REBUILD_FULL_EVERY = 8
    (ann,) = know(project, "ann")
    mem0.store(ann, "I keep two cats")
    run()
    assert lightly().unchanged == 1
    CHANGES[change](mem0, ann, redis)
    assert lightly().unchanged == 0
    assert lightly().unchanged == 1
    assert set(layers(ann)) == {"L2"}


def test_without_local_search_who_comes_back_to_nothing_is_left_alone_with_an_empty_redis_too(
    mem0, project, settings, redis
):
    settings.LOCAL_SEARCH = "degraded"
    settings.REBUILD_FULL_EVERY = 8
    ann, _ = know(project, "ann", "ben")
    run()
    redis.flushall()
    mem0.calls.clear()
    assert lightly().unchanged == 2
    for _ in range(2):
        asked(mem0, ann, redis)
    assert (lightly().unchanged, lightly().unchanged) == (1, 2)
    assert mem0.calls.count("search") == 1


def test_over_rest_a_user_of_more_memories_than_a_listing_holds_is_left_alone_too(mem0, project, settings, redis):
    """Mem0 counts more than it lists; of such a user what comes again is searched, and nothing else is kept."""
    settings.REBUILD_FULL_EVERY = 8
    (ann,) = know(project, "ann")
    mem0.store(ann, "I keep two cats")
    whole = mem0.list
    mem0.list = lambda *words: Listing(whole(*words).memories, complete=False)
    total = {"type": "user", "id": "ann", "total_memories": 1500}
    mem0.entities = lambda deadline: ([total], True)
    run()
    asked(mem0, ann, redis)
    mem0.calls.clear()
    assert lightly().unchanged == 1
    asked(mem0, ann, redis)
    assert (lightly().unchanged, lightly().unchanged) == (0, 1)
    evicted(mem0, ann, redis)
    assert (lightly().unchanged, lightly().unchanged) == (0, 1)
    assert mem0.calls == ["list", "search"] * 2
    total["total_memories"] = 0
    assert lightly().unchanged == 0


def test_over_rest_a_question_that_only_mem0_evaluates_is_searched_when_it_comes_again(mem0, project, settings):
    settings.REBUILD_FULL_EVERY = 8
    (ann,) = know(project, "ann")
    run()
    filters = '{"dish":{"icontains":"Phở"}}'
    searches = []
    for _ in range(2):
        learned.note(Query(ann, "Where?", filters=filters))
        learned.save()
        run()
        assert lightly().unchanged == 1
        searches.append(mem0.calls.count("search"))
    assert searches == [0, 1]


def test_over_rest_an_answer_that_expires_with_a_memory_of_its_own_is_kept_until_then(mem0, project, settings):
    settings.REBUILD_FULL_EVERY = 8
    (ann,) = know(project, "ann")
    mem0.store(ann, "I keep two cats", expiration_date="2100-01-01")
    run()
    assert lightly().unchanged == 1


def test_over_rest_every_so_many_rebuilds_list_everybody(mem0, project, settings):
    settings.REBUILD_FULL_EVERY = 3
    fulls = []
    for _ in range(5):
        begun, _ = rebuild.begin("beat")
        fulls.append(begun.full)
        for _ in rebuild.run_here(rebuild.claim(begun.pk)):
            pass
    assert fulls == [True, False, False, True, False]


def test_a_cut_scan_of_mem0s_totals_is_not_trusted(mem0, project):
    run()
    mem0.entities = lambda deadline: ([], False)
    begun, _ = rebuild.begin("beat")
    assert begun.totals is None


def test_one_users_failure_is_counted_and_the_rest_go_on(mem0, project):
    know(project, "ann", "ben", "cy")
    real = mem0.list

    def not_ben(scope, deadline):
        if scope.user_id == "ben":
            raise OriginUnavailable("down", sent=False)
        return real(scope, deadline)

    mem0.list = not_ben
    done = run()
    assert (done.state, done.done, done.failed) == ("completed", 3, 1)
    assert MemoryUser.objects.get(user_id="ben").warm_failure == "origin_unavailable"
    assert Snapshot.objects.count() == 2


def test_a_text_that_cannot_be_embedded_fails_its_user_alone(mem0, project, monkeypatch):
    ann, ben, cy = know(project, "ann", "ben", "cy")
    for scope, text in ((ann, "tea"), (ben, "coffee"), (cy, "unreadable")):
        mem0.store(scope, text)
    embedder = embedders.get()
    real = type(embedder).embed

    def embed(self, texts, action):
        if "unreadable" in texts:
            raise EmbedderError("no")
        return real(self, texts, action)

    monkeypatch.setattr(type(embedder), "embed", embed)
    done = run()
    assert (done.done, done.failed) == (3, 1)
    assert MemoryUser.objects.get(warm_failure="embedder_unavailable").user_id == "cy"
    assert set(layers(ann)) == set(layers(ben)) == {"L2"}


def test_users_with_more_memories_than_are_taken_in_hand_together_are_all_warmed(mem0, project, monkeypatch):
    monkeypatch.setattr(summarise, "MOST_LISTED", 1)
    scopes = know(project, "ann", "ben", "cy")
    for scope in scopes:
        mem0.store(scope, f"{scope.user_id} drinks tea")
        mem0.store(scope, f"{scope.user_id} keeps cats")
    assert run().failed == 0
    for scope in scopes:
        assert set(layers(scope)) == {"L2"}
        assert len(stack.L3.listing(scope, versions.stored(scope.pin))) == 2


def test_users_nobody_has_asked_about_for_long_are_left_asleep(mem0, project, settings):
    (ann,) = know(project, "ann")
    mem0.store(ann, "tea")
    run()
    MemoryUser.objects.update(active_at=Now() - timedelta(days=settings.L3_ACTIVE_DAYS + 1))
    mem0.calls.clear()
    assert run().total == 0
    assert mem0.calls == []
    assert Snapshot.objects.get().memories.get().vector is None


def test_whoever_becomes_active_meanwhile_is_neither_missed_nor_done_twice(mem0, project):
    know(project, *(f"u{number}" for number in range(9)))
    begun, _ = rebuild.begin("manual", full=True)
    for count, _ in enumerate(rebuild.run_here(rebuild.claim(begun.pk)), start=1):
        if count == 1:
            MemoryUser.objects.filter(user_id__in=["u0", "u8"]).update(active_at=Now() + timedelta(seconds=1))
    done = Counter(WarmRun.objects.filter(state="completed").values_list("user_id", flat=True))
    assert done == Counter({f"u{number}": 1 for number in range(9)})


def test_one_at_a_time(mem0, project):
    know(project, "ann")
    first, made = rebuild.begin("beat")
    second, again = rebuild.begin("manual")
    assert (made, again, first.pk == second.pk) == (True, False, True)
    assert rebuild.claim(first.pk) is not None
    assert rebuild.claim(first.pk) is None


def test_it_stops_when_asked_to(mem0, project):
    know(project, *(f"u{number}" for number in range(6)))
    begun, _ = rebuild.begin("manual")
    for count, _ in enumerate(rebuild.run_here(rebuild.claim(begun.pk)), start=1):
        if count == 1:
            assert rebuild.request_stop(begun.pk)
    begun.refresh_from_db()
    assert (begun.state, begun.done) == ("stopped", 3)
    assert not rebuild.request_stop(begun.pk)


def test_a_worker_that_was_paused_past_its_lease_stops_at_once(mem0, project):
    know(project, "ann", "ben")
    begun, _ = rebuild.begin("manual")
    paused = rebuild.claim(begun.pk)
    progress = rebuild.run_here(paused)
    next(progress)
    RebuildRun.objects.update(lease_until=Now() - timedelta(seconds=1))
    assert rebuild.claim(begun.pk) is not None
    with pytest.raises(rebuild.LeaseLost):
        next(progress)


def test_beats_job_does_nothing_where_warming_by_itself_is_off(mem0, project, settings):
    assert rebuild.by_beat() == "off"
    settings.PROACTIVE_CACHE_ENABLED = True
    assert [rebuild.by_beat(), rebuild.by_beat()] == ["begun", "running"]


def test_a_batch_works_and_hands_on_until_all_is_done(mem0, project, settings):
    know(project, *(f"u{number}" for number in range(7)))
    begun, _ = rebuild.begin("beat")
    assert [rebuild.batch(begun.pk) for _ in range(4)] == ["done 3", "done 6", "completed", "busy"]


def test_the_sweeper_goes_on_with_what_a_dead_worker_left(mem0, project, settings):
    know(project, "ann")
    settings.PROACTIVE_CACHE_ENABLED = True
    begun, _ = rebuild.begin("beat")
    rebuild.claim(begun.pk)
    *host, _, _ = RebuildRun.objects.get().holder.split("/")
    RebuildRun.objects.update(holder="/".join([*host, "999999999", "1"]))
    rebuild.resume_abandoned()
    assert rebuild.batch(begun.pk) == "completed"


def test_calls_to_mem0_keep_to_the_rate():
    waited: list[float] = []
    pace = rebuild.Pace(10, wait=waited.append)
    for _ in range(4):
        pace()
    assert waited == pytest.approx([0.1, 0.2, 0.3], abs=0.05)


# -- from the command line --------------------------------------------------------------------------------------------


def test_the_command_tells_its_outcome_as_json(mem0, project):
    know(project, "ann", "ben")
    out = StringIO()
    call_command("rebuild", json=True, stdout=out)
    told = json.loads(out.getvalue())
    assert (told["state"], told["total"], told["done"], told["failed"]) == ("completed", 2, 2, 0)


def test_the_command_exits_1_when_users_failed(mem0, project):
    know(project, "ann")
    mem0.down = True
    with pytest.raises(SystemExit) as ended:
        call_command("rebuild", quiet=True)
    assert ended.value.code == 1


def test_warm_warms_one_user(mem0, project):
    mem0.store(Scope(project.pk, "ann"), "tea")
    out = StringIO()
    call_command("warm", "ann", stdout=out)
    assert out.getvalue().startswith("ann: completed")
    assert MemoryUser.objects.get(user_id="ann").warmed_at is not None


def test_warm_says_why_it_failed(mem0, project):
    mem0.down = True
    with pytest.raises(CommandError, match="origin_unavailable"):
        call_command("warm", "ann")
    with pytest.raises(CommandError, match="no project"):
        call_command("warm", "ann", project="unknown")


def test_killed_in_the_middle_it_resumes_and_everybody_has_one_completed_run(project):
    """A real process with the real Mem0, killed with -9; the next one goes on."""
    know(project, *(f"u{number}" for number in range(40)))
    command = [sys.executable, "manage.py", "rebuild", "--quiet"]
    env = {**os.environ, "LOCAL_SEARCH": "on", "REBUILD_BATCH_USERS": "7", "DATABASE_URL": database_url()}
    first = subprocess.Popen(command, cwd=ROOT, env=env)
    eventually(lambda: WarmRun.objects.filter(state="completed").count() >= 10)
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed_at = WarmRun.objects.filter(state="completed").count()
    assert 10 <= killed_at < 40
    second = subprocess.run(command, cwd=ROOT, env=env, check=False, timeout=120)
    assert second.returncode == 0
    done = RebuildRun.objects.get()
    assert (done.state, done.total) == ("completed", 40)
    completed = Counter(WarmRun.objects.filter(state="completed").values_list("user_id", flat=True))
    assert completed == Counter({f"u{number}": 1 for number in range(40)})
