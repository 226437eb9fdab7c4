"""How what was said reaches Mem0, and how a session ends."""

from __future__ import annotations

import threading

import pytest
from celery import current_app
from django.db import connection
from django.utils import timezone

from memory import delivery, outbox, pending, upkeep
from memory.models import Heartbeat, Job, Message, Session, Snapshot, SnapshotMemory
from memory.stm import lifecycle, store, tiers
from memory.tasks import keep_session

pytestmark = pytest.mark.django_db(transaction=True)


def handed_over() -> list[str]:
    return [message["content"] for job in Job.objects.order_by("number") for message in job.payload["messages"]]


def sweep() -> None:
    Heartbeat.objects.all().delete()
    upkeep.sweep()


def test_a_session_ends_when_its_time_is_over(say, long_ago, ann):
    say("one")
    sweep()
    assert store.find(ann.project, "s") is not None
    long_ago()
    assert store.find(ann.project, "s") is None
    sweep()
    assert (Session.objects.count(), Message.objects.count(), Job.objects.count()) == (0, 0, 0)


def test_what_was_not_extracted_is_when_it_ends_and_the_project_asks(say, long_ago, extract_on):
    extract_on("end")
    say("one", "two")
    long_ago()
    sweep()
    assert (handed_over(), Session.objects.count()) == (["one", "two"], 0)
    sweep()
    assert handed_over() == ["one", "two"]


def test_a_message_after_its_time_begins_a_new_session(say, long_ago, extract_on):
    extract_on("end")
    say("one")
    long_ago()
    assert say("two").turns == (1,)
    assert handed_over() == ["one"]


def test_every_n_turns_what_came_since_is_extracted_once(say, extract_on):
    extract_on("turns", 2)
    for text in ("one", "two", "three"):
        keep_session(say(text).session.pk)
    assert handed_over() == ["one", "two"]
    assert lifecycle.end(Session.objects.get().pk)
    assert handed_over() == ["one", "two", "three"]


def test_what_is_due_is_extracted_though_compression_fails(say, extract_on, monkeypatch):
    extract_on("turns", 2)
    session = say("one", "two").session
    monkeypatch.setattr(tiers, "compress", lambda pk: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keep_session(session.pk)
    assert handed_over() == ["one", "two"]


def test_workers_are_told_of_a_late_session_once_in_a_while(say, monkeypatch, settings):
    sent: list[int] = []
    monkeypatch.setattr(outbox, "send", lambda task: sent.append(task.args[0]))
    late = [say(*map(str, range(40)), session=name).session.pk for name in ("s", "t", "u")]
    say("in time", session="v")
    sent.clear()
    monkeypatch.setattr(lifecycle, "MOST_WOKEN", 2)
    for _ in range(3):
        sweep()
    assert sorted(sent) == late[:2]
    for pk in sent:
        keep_session(pk)
    sweep()
    assert sorted(sent) == late
    Session.objects.update(woken_at=timezone.now() - timezone.timedelta(seconds=settings.RESEND_SECONDS + 1))
    sweep()
    assert sent[3:] == late[2:]


def test_a_session_that_a_worker_keeps_is_not_sent_again(say, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(outbox, "send", lambda task: sent.append(task.args[0]))
    say(*map(str, range(40)))
    sent.clear()
    Session.objects.update(busy_until=timezone.now() + timezone.timedelta(seconds=60))
    sweep()
    assert sent == []


def test_sessions_are_kept_where_no_delivery_waits_behind_them():
    assert current_app.amqp.router.route({}, keep_session.name)["queue"].name == "warm"
    assert current_app.amqp.router.route({}, "memory.deliver")["queue"].name == "deliver"


def test_what_will_be_extracted_is_pending_from_when_it_is_said(mem0, say, extract_on, ann):
    extract_on("end")
    session = say("tea").session
    assert [item.text for item in pending.current(ann.pin, 1).items] == ["tea"]
    lifecycle.end(session.pk)
    (item,) = pending.current(ann.pin, 1).items
    job = Job.objects.get()
    assert (item.text, item.job) == ("tea", str(job.job_id))
    delivery.deliver(job.lane_id)
    assert mem0.texts("ann") == ["tea"]
    assert pending.current(ann.pin, 1).items == ()


def test_memories_the_assistant_was_given_are_not_extracted_again(say, extract_on, ann):
    extract_on("end")
    held = Snapshot.objects.create(
        project_id=ann.project, user_id="ann", version=1, complete=True, summary_version=1, fingerprint=""
    )
    row = {"text_hash": b"", "digest": b"", "metadata": {}}
    SnapshotMemory.objects.create(snapshot=held, memory_id="m", text="Ann thích trà xanh", **row)
    say("Known of the user:\n- Ann thích trà xanh.\n- Ann has a dog", role="system")
    say("ANN THÍCH TRÀ XANH.", role="assistant")
    session = say("Ann thích trà xanh", "and cake").session
    lifecycle.end(session.pk)
    assert handed_over() == ["Known of the user:\n- Ann has a dog", "Ann thích trà xanh", "and cake"]


def test_c1_what_is_handed_over_while_the_pending_set_is_read_is_in_it(say, extract_on, ann):
    """Between its two questions to PostgreSQL the messages become a job."""
    extract_on("end")
    session = say("tea").session
    asked: list[str] = []

    def hand_over_after_the_first(execute, sql, params, many, context):
        done = execute(sql, params, many, context)
        asked.append(sql)
        if len(asked) == 1:
            thread = threading.Thread(target=lambda: (lifecycle.end(session.pk), connection.close()))
            thread.start()
            thread.join()
        return done

    with connection.execute_wrapper(hand_over_after_the_first):
        found = pending.stored(ann.pin)
    assert len(asked) == 2
    assert {item.text for item in found.items} == {"tea"}
