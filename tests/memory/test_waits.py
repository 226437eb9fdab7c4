"""Waiting ends when the write does, and no later than asked."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from memory import delivery, waits, write
from memory.clock import Deadline
from memory.models import Job, MemoryUser
from memory.tenancy.projects import policy
from memory.waits import Outcome
from memory.write import Write

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
