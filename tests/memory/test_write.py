"""PROTOCOL A1, A10, A11: accepting needs PostgreSQL and nothing else."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from memory import delivery, write
from memory.errors import OriginUnavailable
from memory.models import Job, MemoryUser
from memory.tenancy import projects
from memory.tenancy.projects import policy
from memory.types import Scope
from memory.write import BacklogFull, IdempotencyMismatch, OwnerUnknown, Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def fresh_backlog(settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    write._backlog.clear()


def tea(scope: Scope, **more) -> Write:
    return Write("add", scope, {"memories": [{"text": "tea"}]}, **more)


def test_a_write_is_durable_while_redis_and_mem0_are_down(mem0, ann, dead_redis):
    mem0.down = True
    job = write.accept(tea(ann), policy(ann.project)).job
    assert Job.objects.get(pk=job.pk).state == "pending"
    assert mem0.calls == []


def test_an_idempotency_key_makes_one_job(mem0, redis, ann):
    first = write.accept(tea(ann, idempotency_key="k", body_digest="d"), policy(ann.project))
    again = write.accept(tea(ann, idempotency_key="k", body_digest="d"), policy(ann.project))
    assert (again.job.pk, again.replayed) == (first.job.pk, True)
    assert Job.objects.count() == 1


def test_an_idempotency_key_with_another_body_is_refused(mem0, redis, ann):
    write.accept(tea(ann, idempotency_key="k", body_digest="d"), policy(ann.project))
    with pytest.raises(IdempotencyMismatch):
        write.accept(tea(ann, idempotency_key="k", body_digest="other"), policy(ann.project))


def test_g4_the_same_key_sent_by_many_at_once_is_one_job(mem0, redis, ann):
    gate = threading.Barrier(8)
    accepted = []

    rules = policy(ann.project)

    def send():
        gate.wait(5)
        accepted.append(write.accept(tea(ann, idempotency_key="k", body_digest="d"), rules).job.pk)
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(accepted) == 8
    assert len(set(accepted)) == Job.objects.count() == 1


def test_another_project_may_use_the_same_key(mem0, redis, ann):
    from memory.models import Project

    other = Project.objects.create(name="Other", slug="other", namespace="2")
    write.accept(tea(ann, idempotency_key="k", body_digest="d"), policy(ann.project))
    there = write.accept(tea(Scope(other.pk, user_id="ann"), idempotency_key="k", body_digest="x"), policy(other.pk))
    assert there.replayed is False


def test_a10_a_full_backlog_is_refused_with_a_time_to_come_back(mem0, redis, ann, project):
    project.backlog_max_jobs = 1
    project.save()
    projects.forget()
    write.accept(tea(ann), policy(ann.project))
    write._backlog.clear()
    with pytest.raises(BacklogFull) as refused:
        write.accept(tea(ann), policy(ann.project))
    assert refused.value.retry_after > 0
    assert Job.objects.count() == 1


def test_a_write_makes_its_user_known(mem0, redis, ann):
    write.accept(tea(ann), policy(ann.project))
    assert MemoryUser.objects.get().user_id == "ann"


def test_one_user_has_one_lane_whoever_else_is_named(mem0, redis, ann):
    first = write.accept(tea(ann), policy(ann.project)).job
    second = write.accept(tea(Scope(ann.project, "ann", "bot", "run-1")), policy(ann.project)).job
    agent = write.accept(tea(Scope(ann.project, None, "bot")), policy(ann.project)).job
    assert first.lane_id == second.lane_id != agent.lane_id


def test_a11_the_owner_is_asked_of_mem0_where_l3_does_not_know(mem0, redis, ann):
    memory_id = mem0.store(Scope(ann.project, "ann", "bot"), "tea").id
    assert write.owner(memory_id, policy(ann.project)) == Scope(ann.project, "ann", "bot")
    assert write.owner("nowhere", policy(ann.project)) is None


def test_a11_an_owner_that_nobody_can_tell_is_an_outage_not_a_404(mem0, redis, ann):
    mem0.down = True
    with pytest.raises(OwnerUnknown):
        write.owner("some-id", policy(ann.project))


def test_g1_another_projects_memory_has_no_owner_here(mem0, redis, ann):
    memory_id = mem0.store(Scope(0, "memsvc~2~ann"), "foreign").id
    assert write.owner(memory_id, policy(ann.project)) is None


def test_a_job_waits_while_mem0_is_away_and_is_stored_when_it_is_back(mem0, redis, ann):
    mem0.down = True
    job = write.accept(tea(ann), policy(ann.project)).job
    delivery.deliver(job.lane_id)
    assert Job.objects.get(pk=job.pk).state == "pending"
    mem0.down = False
    Job.objects.update(next_attempt_at="2026-01-01T00:00Z")
    delivery.deliver(job.lane_id)
    assert mem0.texts("ann") == ["tea"]


def test_dismissing_and_retrying_touch_failed_jobs_only(mem0, redis, ann):
    job = write.accept(tea(ann), policy(ann.project)).job
    assert write.dismiss(job) is False
    assert write.retry(job) is False


def test_a_refused_connection_is_the_error_of_the_tree():
    assert OriginUnavailable("x").retryable


def test_accepting_and_ending_jobs_of_one_user_at_once_never_lock_each_other_out(mem0, redis, ann):
    """Both need the lane's row and the user's version; taken crosswise they would deadlock."""
    gate = threading.Barrier(5)
    failures: list[BaseException] = []

    def each(work) -> None:
        try:
            gate.wait(5)
            for _ in range(25):
                work()
        except BaseException as error:  # noqa: BLE001  (told to the test's own thread)
            failures.append(error)
        finally:
            connection.close()

    rules = policy(ann.project)
    lane = write.accept(tea(ann), rules).job.lane_id
    works = [lambda: write.accept(tea(ann), rules)] * 4 + [lambda: delivery.deliver(lane)]
    threads = [threading.Thread(target=each, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    delivery.deliver(lane)
