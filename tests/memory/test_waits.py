"""Waiting ends when the write does, and no later than asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from django.db import Error as DatabaseError
from django.db import connection

from memory import delivery, waits, write
from memory.clock import Deadline
from memory.errors import Overloaded
from memory.models import Job, MemoryUser
from memory.tenancy.projects import policy
from memory.waits import Outcome
from memory.write import Write
from tests.live import eventually

pytestmark = pytest.mark.django_db(transaction=True)


def accept(scope) -> Job:
    return write.accept(Write("add", scope, {"memories": [{"text": "tea"}]}), policy(scope.project)).job


def meanwhile(work) -> threading.Thread:
    def run():
        work()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_wait_ends_when_the_job_is_completed(mem0, redis, ann):
    job = accept(ann)
    worker = meanwhile(lambda: delivery.deliver(job.lane_id))
    outcome = waits.until_stored(job, Deadline.after(10))
    worker.join()
    assert outcome.job.state == "completed"


def test_a_wait_ends_at_its_deadline_with_the_job_as_it_stands(mem0, redis, ann):
    outcome = waits.until_stored(accept(ann), Deadline.after(0.05))
    assert outcome == Outcome(outcome.job)
    assert outcome.job.state == "pending"


def test_many_wait_for_one_job(mem0, redis, ann):
    job = accept(ann)
    states: list[str] = []
    waiting = [
        meanwhile(lambda: states.append(waits.until_stored(job, Deadline.after(10)).job.state)) for _ in range(5)
    ]
    delivery.deliver(job.lane_id)
    for thread in waiting:
        thread.join()
    assert states == ["completed"] * 5


@pytest.mark.parametrize(
    ("column", "status"),
    [
        ("warmed_version", "completed"),
        ("warm_superseded_version", "superseded"),
        ("warm_failed_version", "failed"),
    ],
)
def test_a_wait_for_warmth_says_how_the_warm_ended(mem0, redis, ann, settings, column, status):
    settings.PROACTIVE_CACHE_ENABLED = True
    job = accept(ann)
    delivery.deliver(job.lane_id)
    version = Job.objects.get(pk=job.pk).version
    MemoryUser.objects.update(**{column: version})
    assert waits.until_warm(job, Deadline.after(10)).warm["status"] == status


def test_a_warm_of_an_older_version_does_not_end_the_wait(mem0, redis, ann, settings):
    settings.PROACTIVE_CACHE_ENABLED = True
    job = accept(ann)
    delivery.deliver(job.lane_id)
    MemoryUser.objects.update(warmed_version=Job.objects.get(pk=job.pk).version - 1)
    assert waits.until_warm(job, Deadline.after(0.1)).warm is None


def test_with_warming_off_a_wait_for_warmth_says_so(mem0, redis, ann, settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    job = accept(ann)
    delivery.deliver(job.lane_id)
    assert waits.until_warm(job, Deadline.after(10)).warm["status"] == "off"


def asked_by(ask=lambda keys: dict.fromkeys(keys, True)) -> tuple[waits._Watch, set[threading.Thread]]:
    """A watch, and the threads that have asked for it."""
    asking: set[threading.Thread] = set()

    def noted(keys):
        asking.add(threading.current_thread())
        return ask(keys)

    return waits._Watch(noted), asking


@pytest.fixture
def sleepy(monkeypatch):
    """A watch whose thread sleeps until somebody waits again, and the threads that have asked for it."""
    watch, asking = asked_by()
    over = threading.Event()

    def sleep(_seconds):
        eventually(lambda: watch._waiters or over.is_set())

    monkeypatch.setattr(waits, "time", SimpleNamespace(sleep=sleep))
    yield watch, asking
    over.set()
    for thread in asking:
        thread.join()


def test_who_comes_while_the_watcher_sleeps_is_asked_for_by_the_same_one(sleepy):
    watch, asking = sleepy
    assert all(watch.wait(key, Deadline.after(10)) for key in range(3))
    assert len(asking) == 1


def test_many_who_come_and_go_are_asked_for_by_one_thread(sleepy):
    watch, asking = sleepy

    def come_and_go(client: int) -> bool:
        return all(watch.wait((client, key), Deadline.after(10)) for key in range(3))

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(come_and_go, range(8)))
    assert len(asking) == 1


def test_the_watcher_ends_when_nobody_waits_and_the_next_wait_has_one_again():
    watch, asking = asked_by()
    for _ in range(2):
        assert watch.wait("k", Deadline.after(10))
        for thread in set(asking):
            thread.join(10)
    assert len(asking) == 2


def test_the_watcher_sleeps_without_a_connection(mem0, redis, ann, monkeypatch):
    held: list[object] = []
    slept = threading.Event()

    def sleep(seconds):
        held.append(connection.connection)
        slept.set()

    monkeypatch.setattr(waits, "time", SimpleNamespace(sleep=sleep))
    job = accept(ann)
    waiting = meanwhile(lambda: waits.until_stored(job, Deadline.after(10)))
    assert slept.wait(10)
    Job.objects.filter(pk=job.pk).update(state="completed")
    waiting.join()
    assert set(held) == {None}


@pytest.mark.parametrize("error", [DatabaseError("away"), KeyError("a bug")])
def test_a_failing_question_leaves_nobody_waiting_without_a_watcher(monkeypatch, error):
    monkeypatch.setattr(waits, "PAUSE_SECONDS", 0)
    failing = [error]

    def ask(keys):
        if failing:
            raise failing.pop()
        return dict.fromkeys(keys, True)

    watch, asking = asked_by(ask)
    assert watch.wait("k", Deadline.after(10))
    assert len(asking) == 1


def test_without_a_thread_to_be_had_a_wait_ends_at_once_and_the_next_tries_again(monkeypatch):
    watch, _ = asked_by()

    def none_left(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(Overloaded):
            watch.wait("k", Deadline.after(10))
    assert watch.wait("k", Deadline.after(10))
