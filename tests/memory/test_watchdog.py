"""What the watchdog measures, and from when it calls someone."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now

from memory import delivery, erase, upkeep, watchdog, write
from memory.models import Erasure, Heartbeat, Job, Lane, Project
from memory.status import QUEUES
from memory.tenancy.projects import policy
from memory.types import Scope
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def healthy(redis, mem0, settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.EMBEDDER = "none"
    for queue in QUEUES:
        upkeep.seen(queue)
    upkeep.sweep()


def accept(scope: Scope) -> Job:
    return write.accept(Write("add", scope, {"memories": [{"text": "tea"}]}), policy(scope.project)).job


def found(name: str, project: int | None = None) -> tuple[int, str]:
    one = next(one for one in watchdog.read(project).findings if one.name == name)
    return round(one.value), one.level


def older(seconds: float, *fields: str) -> None:
    Job.objects.update(**{field: F(field) - timedelta(seconds=seconds) for field in fields})


def test_when_all_is_well_nobody_is_called():
    assert watchdog.read().level == "ok"


def test_a_write_that_waits_is_looked_at_then_called_for(ann):
    accept(ann)
    for seconds, level in ((50, "ok"), (20, "look"), (600, "call")):
        older(seconds, "accepted_at")
        assert found("oldest_pending_seconds")[1] == level
    assert watchdog.read().level == "call"


def test_a_due_write_is_unattended_only_while_nobody_is_at_its_lane(ann):
    accept(ann)
    older(400, "next_attempt_at")
    assert found("unattended_seconds") == (400, "call")
    Lane.objects.update(lease_until=Now() + timedelta(minutes=1))
    assert found("unattended_seconds") == (0, "ok")
    assert watchdog.read().lanes_held == 1


def test_a_write_that_waits_its_time_is_not_unattended(ann):
    accept(ann)
    Job.objects.update(next_attempt_at=Now() + timedelta(minutes=1))
    assert found("unattended_seconds") == (0, "ok")


def test_failed_writes_are_looked_at_until_dismissed(ann):
    job = accept(ann)
    Job.objects.update(state="failed")
    assert found("failed_jobs") == (1, "look")
    write.dismiss(Job.objects.get(pk=job.pk))
    assert found("failed_jobs") == (0, "ok")


def test_late_looks_for_second_copies_are_told(ann):
    job = accept(ann)
    delivery.deliver(job.lane_id)
    Job.objects.update(reconcile_at=Now() - timedelta(seconds=1900))
    assert found("reconcile_late_seconds") == (1900, "call")
    assert watchdog.read().reconciles_waiting == 1


def test_an_erase_that_goes_on_and_on_is_called_for(ann):
    erase.accept(ann.pin, policy(ann.project))
    Erasure.objects.update(accepted_at=Now() - timedelta(hours=2))
    assert found("erase_seconds")[1] == "call"


def test_missing_workers_and_a_sweeper_at_rest_are_seen():
    Heartbeat.objects.filter(name__startswith="worker:warm").delete()
    assert found("missing_workers") == (1, "look")
    Heartbeat.objects.update(at=Now() - timedelta(hours=1))
    assert found("missing_workers") == (3, "call")
    assert found("sweep_seconds") == (3600, "call")


def test_a_project_is_told_of_its_own_writes_alone(ann):
    other = Project.objects.create(name="Other", slug="other", namespace="other")
    accept(ann)
    older(700, "accepted_at")
    assert found("oldest_pending_seconds", ann.project)[1] == "call"
    assert found("oldest_pending_seconds", other.pk) == (0, "ok")
