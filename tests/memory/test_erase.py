"""PROTOCOL D and G6: after an erase nothing of the user's earlier life is served, replayed, refilled or kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from cachewarm import learned, runs, tasks
from cachewarm.models import LearnedQuery, Topic, WarmRun
from memory import delivery, erase, keys, nearness, pending, read, stack, upkeep, versions, write
from memory.clock import Deadline
from memory.errors import OriginRejected
from memory.layers.base import encode
from memory.layers.l0_process import ProcessLayer
from memory.models import Attempt, Erasure, Feedback, Job, Lane, MemoryUser, Message, PinVersion, Session, Snapshot
from memory.stm import lifecycle, store
from memory.stm.store import Said
from memory.tenancy.projects import policy
from memory.types import MARK_ATTEMPT, MARK_JOB, Answer, Listing, Pin, Query, Scope
from memory.write import Write
from tests.failing_mem0 import FailingMem0, answer_lost, never_arrived

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "zebrafish7"
CANARY_USER = "canary-person-9"


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def plain(redis, settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    learned.forget()


def add(scope: Scope, *texts: str) -> Job:
    payload = {"memories": [{"text": text} for text in texts]}
    return write.accept(Write("add", scope, payload), policy(scope.project)).job


def begin(scope: Scope) -> Erasure:
    return erase.accept(scope.pin, policy(scope.project))


def deliver(scope: Scope) -> str:
    return delivery.deliver(Lane.objects.get(project_id=scope.project, kind="user", pin_id=scope.user_id).pk)


def pass_time(seconds: float) -> None:
    back = timedelta(seconds=seconds)
    Job.objects.update(next_attempt_at=F("next_attempt_at") - back, reconcile_at=F("reconcile_at") - back)
    Attempt.objects.update(started_at=F("started_at") - back)
    Erasure.objects.update(due_at=F("due_at") - back)
    Lane.objects.update(lease_until=F("lease_until") - back)


def finish(scope: Scope) -> Erasure:
    """What workers and the sweeper do until the receipt stands."""
    for _ in range(8):
        deliver(scope)
        pass_time(300)
        delivery.complete_erasures()
    erasure = Erasure.objects.latest("id")
    assert erasure.completed_at is not None, Job.objects.filter(kind="erase").values("state", "reason")
    return erasure


def ask(scope: Scope, text: str = "drink?") -> Answer:
    return read.search(Query(scope, text), policy(scope.project), Deadline.after(30))


def texts(answer: Answer) -> list[str]:
    return [item["memory"] for item in orjson.loads(answer.entry.results)]


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def meanwhile(work: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def everything_said() -> Iterator[tuple[str, str]]:
    """Every row of PostgreSQL and every key and value of Redis, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            for (row,) in cursor.fetchall():
                yield table, row
    cache = erase.cache()
    for name in cache.scan_iter():
        value = cache.get(name) if cache.type(name) == b"string" else b""
        yield name.decode(errors="replace"), (value or b"").decode(errors="replace")


def where(text: str) -> set[str]:
    """The tables and keys that hold a text."""
    return {place for place, said in everything_said() if text in said or text in place}


# -- what goes --------------------------------------------------------------------------------------------------------


def test_after_the_receipt_no_store_holds_a_word_of_the_user(sdk, project, redis, settings, monkeypatch):
    """The real Mem0 in process, its history too; sessions, warmed layers, questions, pending writes, feedback."""
    settings.EMBEDDER, settings.LOCAL_SEARCH, settings.PROACTIVE_CACHE_ENABLED = "local", "on", True
    monkeypatch.setattr(stack, "_build", lambda: sdk)
    Topic.objects.exclude(name="pet").delete()
    user = Scope(project.pk, CANARY_USER)
    rules = policy(project.pk)
    done = add(user, f"{CANARY} one", f"{CANARY} two")
    deliver(user)
    mixed = write.accept(
        Write("add", Scope(project.pk, CANARY_USER, "cook", "r1"), {"memories": [{"text": f"{CANARY} agent"}]}), rules
    ).job
    deliver(user)
    change = {"text": f"{CANARY} changed"}
    write.accept(Write("update", user, change, fresh(done).results[0]["id"]), rules)
    deliver(user)
    run = WarmRun.objects.get(state="due")
    WarmRun.objects.update(due_at=F("due_at") - timedelta(hours=1))
    for step in (tasks.warm_summaries, tasks.warm_results, tasks.warm_vectors, tasks.warm_record):
        step(str(run.run_id))
    ask(user, f"{CANARY}?")
    ask(Scope(project.pk, agent_id="cook"), "cook?")
    learned.note(Query(user, f"{CANARY} learned?"))
    learned.save()
    store.add("chat", CANARY_USER, [Said("user", f"{CANARY} said", {})], rules)
    Feedback.objects.create(project=project, memory_id="m1", user_id=CANARY_USER, feedback="NEGATIVE", reason=CANARY)
    Feedback.objects.create(project=project, memory_id=fresh(mixed).results[0]["id"], feedback="NEGATIVE")
    waiting = add(user, f"{CANARY} waiting")
    nearness.warm([f"{CANARY} waiting", f"{CANARY} said"], project.pk)
    pending.current(user.pin, rules.generation)
    ask(user, f"{CANARY}?")
    assert {"memory_job", "memory_message", "memory_snapshotmemory", "mem0_memories"} <= where(CANARY)
    named = [f"{CANARY} {word}" for word in ("one", "changed", "agent", "said", "waiting", "learned?")]
    embedded = {key for key in erase.vector_keys(project.pk, named) if redis.exists(key)}
    assert len(embedded) >= 5

    begin(user)
    receipt = erase.receipt(finish(user))

    assert where(CANARY) == set()
    assert not redis.exists(*embedded)
    left = {place for place in where(CANARY_USER) if not place.endswith("}:v")}
    assert left == {"memory_erasure", "memory_pinversion", "memory_lane", "memory_job"}
    assert fresh(waiting).reason == "erased"
    assert Feedback.objects.count() == 0
    assert receipt["removed"] == {
        **{"memories": 3, "jobs": 1, "sessions": 1, "messages": 1, "summaries": 1, "feedback": 2, "questions": 2},
        "vectors": receipt["removed"]["vectors"],
    }
    assert receipt["removed"]["vectors"] > 0
    assert CANARY not in orjson.dumps(receipt, default=str).decode()
    assert sdk.list(user, Deadline.after(5)).memories == []


def test_nobody_else_loses_anything(mem0, redis, ann, ben):
    other = Pin(ann.project, "user", "ann2")
    for scope in (ann, ben):
        add(scope, f"{scope.user_id}'s")
        deliver(scope)
        ask(scope)
        store.add(f"s-{scope.user_id}", scope.user_id, [Said("user", "hello", {})], policy(ann.project))
    redis.set(keys.result(other, 1, "x"), b"kept")
    begin(ann)
    finish(ann)
    assert mem0.texts() == ["ben's"]
    assert Session.objects.get().user_id == "ben"
    assert ask(ben).layer in ("L0", "L2")
    assert redis.get(keys.result(other, 1, "x")) == b"kept"
    assert MemoryUser.objects.get().user_id == "ben"


def test_answers_under_an_agent_of_the_users_memories_go_too(mem0, redis, ann, monkeypatch):
    cook = Scope(ann.project, agent_id="cook")
    add(Scope(ann.project, "ann", "cook"), "soup")
    deliver(ann)
    assert texts(ask(cook)) == ["soup"]
    held = version(cook)
    begin(ann)
    finish(ann)
    assert version(cook)[1] > held[0]
    assert [name for name in redis.keys("*") if b"agent.cook" in name and b":q:" in name] == []
    assert texts(ask(cook)) == []


def version(scope: Scope) -> tuple[int, int]:
    row = PinVersion.objects.get(project_id=scope.project, kind=scope.pin.kind, pin_id=scope.pin.id)
    return row.version, row.floor


def test_a_cut_listing_moves_the_whole_project(mem0, ann, ben, monkeypatch):
    add(ann, "tea")
    deliver(ann)
    add(ben, "milk")
    deliver(ben)
    monkeypatch.setattr(mem0, "list", lambda scope, deadline: Listing(mem0._of(scope), False))
    before, generation = version(ben)[0], policy(ann.project).generation
    begin(ann)
    finish(ann)
    assert version(ben)[1] > before
    ann_project = Job.objects.get(kind="erase").project
    assert ann_project.generation == generation + 1


# -- writes -----------------------------------------------------------------------------------------------------------


def test_what_waits_ends_erased_and_is_never_sent(mem0, ann):
    waiting = [add(ann, "one"), add(ann, "two")]
    begin(ann)
    finish(ann)
    assert mem0.calls.count("add") == 0
    assert [(fresh(job).state, fresh(job).reason, fresh(job).payload) for job in waiting] == [
        ("failed", "erased", None)
    ] * 2
    assert [write.retry(fresh(job)) for job in waiting] == [False, False]
    assert pending.current(ann.pin, 1).items == ()


def test_what_waited_shows_under_its_agent_no_more(mem0, redis, ann):
    """No listing of Mem0 names an agent of whom nothing has arrived."""
    cook = Pin(ann.project, "agent", "cook")
    add(Scope(ann.project, "ann", "cook"), "soup")
    assert [item.text for item in pending.current(cook, 1).items] == ["soup"]
    copy = redis.get(keys.pending(cook, 1))
    begin(ann)
    assert pending.current(cook, 1).items == ()
    redis.set(keys.pending(cook, 1), copy)  # a publication that was lost
    finish(ann)
    assert pending.current(cook, 1).items == ()


def test_what_comes_after_begins_a_new_life_and_survives(mem0, ann):
    add(ann, "old")
    deliver(ann)
    begin(ann)
    new = add(ann, "new")
    store.add("chat", "ann", [Said("user", "hello again", {})], policy(ann.project))
    finish(ann)
    assert mem0.texts() == ["new"]
    assert fresh(new).state == "completed"
    assert Session.objects.get().turns == 1
    assert texts(ask(ann)) == ["new"]


def test_a_delivery_under_way_is_waited_out_and_its_memory_goes(mem0, ann):
    arrived, answer = threading.Event(), threading.Event()

    def slow(work):
        arrived.set()
        answer.wait(10)
        return work()

    mem0.faults = [slow]
    job = add(ann, "old")
    worker = meanwhile(lambda: deliver(ann))
    arrived.wait(10)
    begin(ann)
    assert deliver(ann) == "held"
    answer.set()
    worker.join()
    assert mem0.texts() == []  # by the same worker, at once: the answer has come
    finish(ann)
    assert (fresh(job).state, fresh(job).results) == ("failed", [])


def test_after_a_lost_answer_mem0_is_emptied_only_when_the_attempt_has_settled(mem0, ann, settings):
    mem0.faults = [answer_lost]
    add(ann, "old")
    deliver(ann)
    begin(ann)
    assert deliver(ann) == "waiting"
    assert "delete_all" not in mem0.calls
    pass_time(settings.MEM0_ADD_SETTLE_SECONDS + 1)
    deliver(ann)
    assert mem0.texts() == []


def test_what_an_attempt_thought_over_stores_later_is_found_by_its_mark(mem0, ann):
    mem0.faults = [never_arrived]
    job = add(ann, "old")
    deliver(ann)
    begin(ann)
    finish_until_completed(ann)
    new = add(ann, "new")
    deliver(ann)
    mem0.store(ann, "old", {MARK_JOB: str(job.job_id), MARK_ATTEMPT: "1"})
    mem0.store(ann, "somebody else's")
    before = version(ann)
    pass_time(3600)
    deliver(ann)
    assert mem0.texts() == ["new", "somebody else's"]
    assert version(ann)[1] > before[0]
    assert Erasure.objects.get().looked_again_at is not None
    assert fresh(new).state == "completed"


def test_a_worker_that_dies_after_it_removed_a_late_copy_leaves_no_reader_behind(mem0, ann, monkeypatch):
    mem0.faults = [never_arrived]
    job = add(ann, "old")
    deliver(ann)
    begin(ann)
    finish_until_completed(ann)
    mem0.store(ann, "old", {MARK_JOB: str(job.job_id), MARK_ATTEMPT: "1"})
    before, remove = version(ann), mem0.delete

    def dies(*args):
        remove(*args)
        raise SystemExit

    monkeypatch.setattr(mem0, "delete", dies)
    pass_time(3600)
    with pytest.raises(SystemExit):
        deliver(ann)
    monkeypatch.setattr(mem0, "delete", remove)
    pass_time(3600)
    deliver(ann)
    assert version(ann)[1] > before[0]


def finish_until_completed(scope: Scope) -> None:
    deliver(scope)
    pass_time(31)
    deliver(scope)
    pass_time(10)
    delivery.complete_erasures()
    assert Erasure.objects.get().completed_at is not None


def test_a_session_that_is_ended_late_makes_no_job_of_what_was_said_before(mem0, ann, project):
    project.extract_on = "end"
    project.save()
    store.add("chat", "ann", [Said("user", "old secret", {})], policy(ann.project))
    row = Session.objects.get().pk
    begin(ann)
    assert lifecycle.end(row) is False
    assert Job.objects.exclude(kind="erase").count() == 0


def test_a_message_that_is_being_added_is_waited_for_and_goes_too(mem0, ann):
    session = store.add("chat", "ann", [Said("user", "one", {})], policy(ann.project)).session
    began: list[Erasure] = []
    with transaction.atomic():
        held = Session.objects.select_for_update(no_key=True).get(pk=session.pk)
        eraser = meanwhile(lambda: began.append(begin(ann)))
        until_somebody_waits_for_a_lock()
        store._append(held, [Said("user", "two", {})])
    eraser.join()
    assert (began[0].removed["sessions"], began[0].removed["messages"]) == (1, 2)
    assert (Session.objects.count(), Message.objects.count()) == (0, 0)


def until_somebody_waits_for_a_lock() -> None:
    for _ in range(500):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.02), count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[1]:
                return
    raise AssertionError("nobody does")


def test_an_earlier_idempotency_key_answers_that_its_user_was_erased(mem0, ann):
    first = Write("add", ann, {"memories": [{"text": "tea"}]}, None, "k1", "digest")
    write.accept(first, policy(ann.project))
    begin(ann)
    with pytest.raises(write.Erased):
        write.accept(first, policy(ann.project))


# -- reads and warms --------------------------------------------------------------------------------------------------


def test_a_slow_read_begun_before_fills_nothing(mem0, redis, ann, monkeypatch):
    add(ann, "old")
    deliver(ann)
    mem0.stall = threading.Event()
    said: list[Answer] = []
    reader = meanwhile(lambda: said.append(ask(ann)))
    mem0.searching.wait(5)
    begin(ann)
    finish(ann)
    old = Query(ann, "drink?")
    mem0.stall.set()
    reader.join()
    mem0.stall = None
    late = encode([], version=said[0].entry.version, as_of=0, ranking="upstream")
    assert stack.L2.put(old, late, 1, 1) is False
    assert texts(ask(ann)) == []
    monkeypatch.setattr(stack, "L0", ProcessLayer())
    assert texts(ask(ann)) == []


def test_a_warm_that_listed_before_saves_nothing(mem0, redis, ann, settings):
    settings.PROACTIVE_CACHE_ENABLED = True
    add(ann, "old")
    deliver(ann)
    run = WarmRun.objects.get(state="due")
    WarmRun.objects.update(due_at=F("due_at") - timedelta(hours=1))
    mem0.before = lambda kind: erased.append(begin(ann)) if kind == "list" and not erased else None
    erased: list[Erasure] = []
    tasks.warm_summaries(str(run.run_id))
    mem0.before = lambda kind: None
    finish(ann)
    assert Snapshot.objects.count() == 0
    assert runs.running(run.run_id) is None


def test_a_warm_between_the_tombstone_and_the_emptying_leaves_nothing(mem0, redis, ann):
    add(ann, "old")
    deliver(ann)
    begin(ann)
    run = runs.request(ann.project, "ann", "hand").run_id
    tasks.warm_summaries(str(run))
    assert Snapshot.objects.count() == 1
    finish(ann)
    assert Snapshot.objects.count() == 0


def test_a_question_noted_before_is_not_learned_after(mem0, ann):
    learned.note(Query(ann, "old question?"))
    begin(ann)
    learned.save()
    assert LearnedQuery.objects.count() == 0
    assert MemoryUser.objects.count() == 0
    learned.note(Query(ann, "new question?"))
    learned.save()
    assert LearnedQuery.objects.get().query["text"] == "new question?"


# -- what is away -----------------------------------------------------------------------------------------------------


def test_with_mem0_away_it_waits_visibly_and_ends_later(mem0, ann):
    add(ann, "old")
    deliver(ann)
    mem0.down = True
    begin(ann)
    for _ in range(6):
        deliver(ann)
        pass_time(60)
    shown = erase.receipt(Erasure.objects.get())
    assert (shown["status"], shown["reason"], shown["completed_at"]) == ("pending", "origin_unavailable", None)
    mem0.down = False
    finish(ann)
    assert mem0.texts() == []


def test_a_mem0_that_refuses_is_asked_again(mem0, ann):
    def refuse(work):
        raise OriginRejected("forbidden", status=403)

    add(ann, "old")
    deliver(ann)
    mem0.faults = [refuse] * 3
    begin(ann)
    finish(ann)
    assert mem0.texts() == []


def test_without_redis_it_is_not_completed_until_what_it_held_is_gone(mem0, ann, request):
    add(ann, "old")
    deliver(ann)
    begin(ann)
    request.getfixturevalue("dead_redis")
    deliver(ann)
    pass_time(3600)
    delivery.complete_erasures()
    shown = erase.receipt(Erasure.objects.get())
    assert (shown["status"], shown["reason"]) == ("stored", "cache_unavailable")
    from memory import redis_client

    redis_client.cache.cache_clear()


def test_it_is_completed_no_sooner_than_bounded_readers_know(mem0, ann, settings):
    begin(ann)
    deliver(ann)
    assert delivery.complete_erasures() == 0
    pass_time(settings.BOUNDED_MAX_AGE_MS / 1000 - 1)
    assert delivery.complete_erasures() == 0
    pass_time(1)
    assert delivery.complete_erasures() == 1


@pytest.mark.parametrize("at", ["list", "delete_all", "list again", "forget"])
def test_killed_at_any_call_to_mem0_another_worker_ends_it(mem0, ann, at):
    add(ann, "old")
    deliver(ann)
    begin(ann)
    new = add(ann, "new")
    seen: list[str] = []

    def kill(kind: str) -> None:
        seen.append(kind)
        if at == kind or (at == "list again" and seen == ["list", "delete_all", "list"]):
            raise Killed

    mem0.before = kill
    with pytest.raises(Killed):
        deliver(ann)
    mem0.before = lambda kind: None
    finish(ann)
    assert mem0.texts() == ["new"]
    assert fresh(new).state == "completed"


@pytest.mark.parametrize("step", ["publish", "drop"])
def test_killed_after_the_commit_the_sweeper_ends_it(mem0, redis, ann, step, monkeypatch):
    from memory.delivery import erasing

    add(ann, "old")
    deliver(ann)
    ask(ann)
    begin(ann)

    def kill(*args: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((versions, "publish", kill) if step == "publish" else (erase, "drop_cached", kill)))
        with pytest.raises(Killed):
            deliver(ann)
    assert Erasure.objects.get().emptied_at is not None
    upkeep.sweep()
    pass_time(60)
    assert delivery.complete_erasures() == 1
    assert [name for name in redis.keys("*") if b"user.ann" in name and not name.endswith(b"}:v")] == []
    assert erasing.complete_erasures() == 0


# -- again ------------------------------------------------------------------------------------------------------------


def test_asked_twice_it_is_one_erase_until_something_new_was_accepted(mem0, ann):
    first = begin(ann)
    assert begin(ann).pk == first.pk
    add(ann, "new")
    second = begin(ann)
    assert second.pk != first.pk
    finish(ann)
    assert mem0.texts() == []
    assert Erasure.objects.filter(completed_at=None).count() == 0


def test_a_user_never_seen_can_be_erased(mem0, ann):
    begin(ann)
    assert finish(ann).removed["memories"] == 0


def test_more_than_one_listing_holds_are_all_deleted(mem0, ann, monkeypatch):
    """Mem0 deletes what it lists, and it lists so many."""
    for number in range(5):
        mem0.store(ann, f"m{number}")
    kept = FailingMem0.delete_all

    def two(self, scope, deadline):
        rest = self._of(scope)[2:]
        kept(self, scope, deadline)
        self.rows += rest

    monkeypatch.setattr(FailingMem0, "delete_all", two)
    begin(ann)
    deliver(ann)
    assert mem0.texts() == []


def test_a_mem0_that_deletes_nothing_is_not_asked_without_end(mem0, ann, monkeypatch):
    mem0.store(ann, "stays")
    monkeypatch.setattr(mem0, "delete_all", lambda scope, deadline: mem0.calls.append("delete_all"))
    begin(ann)
    assert deliver(ann) == "waiting"
    assert mem0.calls.count("delete_all") == 2
    assert erase.receipt(Erasure.objects.get())["reason"] == "settling"


def test_receipts_outlive_the_records_of_jobs(mem0, ann, settings):
    job = add(ann, "old")
    begin(ann)
    finish(ann)
    Job.objects.update(completed_at=Now() - timedelta(days=settings.JOB_KEEP_DAYS + 1))
    upkeep.purge()
    assert not Job.objects.filter(pk=job.pk).exists()
    shown = erase.receipt(Erasure.objects.get())
    assert (shown["status"], shown["user_id"]) == ("completed", "ann")
