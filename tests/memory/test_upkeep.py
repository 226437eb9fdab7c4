"""The sweeper finds whatever messages were lost; counts add up over processes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from memory import delivery, identity, metrics, outbox, signals, upkeep, write
from memory.models import Heartbeat, IdempotencyRecord, Job, Lane
from memory.tenancy.projects import policy
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sent(monkeypatch):
    """The messages handed to the broker: none arrives."""
    messages: list[int] = []
    monkeypatch.setattr(outbox, "send", lambda task: messages.append(task.args[0]))
    return messages


def accept(scope) -> Job:
    return write.accept(Write("add", scope, {"memories": [{"text": "tea"}]}), policy(scope.project)).job


def swept() -> int:
    Heartbeat.objects.filter(name="duty:sweep").delete()
    return upkeep.sweep()


def test_a_lost_message_is_sent_again(mem0, redis, ann, sent):
    job = accept(ann)
    sent.clear()
    swept()
    assert sent == [job.lane_id]


def test_a_lane_just_woken_is_not_woken_again(mem0, redis, ann, sent):
    job = accept(ann)
    swept()
    sent.clear()
    swept()
    assert sent == []
    Lane.objects.filter(pk=job.lane_id).update(woken_at=Now() - timedelta(seconds=11))
    swept()
    assert sent == [job.lane_id]


def test_a_backlog_is_not_told_of_again_and_again(mem0, redis, ann, sent, monkeypatch):
    monkeypatch.setattr(upkeep, "MOST_WOKEN", 2)
    for name in ("Ann", "Bea", "Cem"):
        accept(replace(ann, user_id=name))
    sent.clear()
    assert [swept(), swept()] == [2, 0]
    assert delivery.deliver(sent[0]) == "done 1"
    assert swept() == 1
    assert len(set(sent)) == 3


def test_a_message_too_many_is_one_question_to_postgresql(mem0, redis, ann, sent, django_assert_num_queries):
    job = accept(ann)
    delivery.deliver(job.lane_id)
    with django_assert_num_queries(1):
        assert delivery.deliver(job.lane_id) == "done 0"


def test_a_write_that_waits_for_an_earlier_one_wakes_nobody(mem0, redis, ann, sent):
    first, second = accept(ann), accept(ann)
    Job.objects.filter(pk=first.pk).update(next_attempt_at=Now() + timedelta(minutes=1))
    assert swept() == 0
    assert delivery.deliver(second.lane_id) == "done 0"
    Job.objects.filter(pk=first.pk).update(next_attempt_at=Now())
    assert swept() == 1
    assert delivery.deliver(second.lane_id) == "done 2"


def test_what_is_not_due_is_left_alone(mem0, redis, ann, sent):
    accept(ann)
    sent.clear()
    Job.objects.update(next_attempt_at=Now() + timedelta(minutes=1))
    assert swept() == 0


def test_a_held_lane_is_left_alone_and_a_dead_holders_is_not(mem0, redis, ann, sent):
    accept(ann)
    sent.clear()
    Lane.objects.update(holder=identity.process(), lease_until=Now() + timedelta(minutes=1))
    assert swept() == 0
    here = identity.process().split("/")
    Lane.objects.update(holder="/".join((*here[:3], "999999999", "1")))
    assert swept() == 1


def test_one_sweep_at_a_time(redis, db):
    assert upkeep._claim_duty("sweep", 60) is True
    assert upkeep._claim_duty("sweep", 60) is False


def test_counts_of_all_processes_add_up(redis, project):
    metrics.drain()
    for _ in range(3):
        metrics.count("searches", 2, project=project.pk, layer="L2")
        upkeep.flush_counts()
    assert upkeep.totals(project.pk)["searches"] == {"layer=L2": 6}


def test_an_undeclared_metric_is_an_error():
    with pytest.raises(KeyError):
        metrics.count("made_up")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("searches", user="ann")


def test_old_idempotency_records_and_payloads_are_forgotten(mem0, redis, ann, settings):
    job = write.accept(Write("add", ann, {"memories": [{"text": "tea"}]}, idempotency_key="k"), policy(ann.project)).job
    long_ago = Now() - timedelta(hours=settings.IDEMPOTENCY_HOURS + 1)
    IdempotencyRecord.objects.update(created_at=long_ago)
    Job.objects.update(state="completed", completed_at=long_ago)
    upkeep.purge()
    assert IdempotencyRecord.objects.count() == 0
    assert Job.objects.get(pk=job.pk).payload is None


def test_a_failed_jobs_payload_is_kept_for_a_retry(mem0, redis, ann):
    accept(ann)
    Job.objects.update(state="failed", completed_at=Now() - timedelta(days=60))
    upkeep.purge()
    assert Job.objects.get().payload is not None


def test_workers_are_known_by_their_queues(db):
    upkeep.seen("warm")
    assert upkeep.workers() == {"warm"}
    Heartbeat.objects.update(at=Now() - timedelta(seconds=11))
    assert upkeep.workers() == set()


def test_nothing_that_fails_ends_the_upkeep(redis, db, monkeypatch):
    """Nobody would start it again, and what it sweeps would lie until the process ends."""
    monkeypatch.setattr(upkeep, "TICK_SECONDS", 0.0)
    ticks = iter([RuntimeError("a receiver's fault"), RuntimeError("and again"), SystemExit()])

    def fail(**_: object) -> None:
        raise next(ticks)

    signals.ticked.connect(fail)
    try:
        with pytest.raises(SystemExit):
            upkeep._run(frozenset())
    finally:
        signals.ticked.disconnect(fail)


def test_a_step_of_the_sweep_that_fails_keeps_no_other_from_being_done(mem0, redis, ann, sent, monkeypatch):
    def fail() -> None:
        raise ValueError("a fault of ours")

    job = accept(ann)
    sent.clear()
    monkeypatch.setattr(delivery, "complete_overdue", fail)
    assert swept() == 1
    assert sent == [job.lane_id]
