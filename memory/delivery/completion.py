"""The end of a job: its record, the versions it moves and who is told (PROTOCOL B2, B5, B7)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from memory import clock, db, metrics, pending, signals, stack, versions, write
from memory.delivery import deletes, lanes
from memory.delivery.lanes import Hold
from memory.errors import OriginError
from memory.models import Job
from memory.tenancy import projects
from memory.tenancy.projects import Policy, policy
from memory.types import Memory, Scope, Version

log = logging.getLogger(__name__)

MOVED_GENERATION = "generation_moved"
UNCONFIRMED = timedelta(seconds=1)
"""After which whoever stored a job is not about to publish its version any more."""


def complete(job: Job, moved: Sequence[Version]) -> bool:
    """End a stored job once Redis has confirmed its version (PROTOCOL B7); otherwise the sweeper does, later."""
    if not versions.publish(moved):
        return False
    return _complete(job)


def complete_unconfirmed() -> int:
    """End stored jobs whose versions Redis did not confirm at their commit and confirms now (PROTOCOL B7). A delete by
    user, agent or run waits for its lease to pass: whom else it touched cannot be told any more."""
    late = Job.objects.filter(stored_at__lt=Now() - UNCONFIRMED, state="stored").exclude(kind__in=write.SWEEPING)
    ended = 0
    for job in late.order_by("stored_at")[:1000]:
        if not complete(job, list(versions.stored_each(write.scope(job).pins()).values())):
            break  # Redis is still away
        ended += 1
    return ended


def complete_overdue() -> int:
    """End stored jobs of unconfirmed publication, and those that moved the generation, once a whole lease has passed
    since their commit (PROTOCOL B7): so long a process without PostgreSQL may go by what it last read (B5)."""
    lease = timedelta(seconds=settings.VERSION_LEASE_SECONDS + versions.MARGIN_SECONDS)
    overdue = Job.objects.filter(stored_at__lt=Now() - lease, state="stored").exclude(kind=write.ERASE)
    return sum(_complete(job) for job in overdue[:1000])


def finish(job: Job, hold: Hold, rules: Policy, reason: str = "") -> bool:
    """Record the end in one transaction with version, L3's rows and the due warm; publish; complete (PROTOCOL B7)."""
    whole = not job.failed and not reason
    target = write.scope(job)
    touched = whole or bool(job.results) or bool(reason)
    written = _read_back(job, rules) if whole and job.results else None
    vectors = stack.L3.vectors_for(job.project_id, [memory.text for memory in written]) if written else None
    with transaction.atomic():
        lanes.assert_held(hold, job)
        # A delete by user, agent or run locks all it touches at once, in lock order.
        before = 0 if job.kind == write.DELETE_ALL else _lock_before(target)
        moved = move(job) if touched else []
        tell(moved)
        job.version = next((one.number for one in moved if one.pin == target.pin), None)
        if job.version is not None and whole and job.kind == "delete":
            stack.L3.apply_removed(target, before, job.version, [job.memory_id or ""])
        elif job.version is not None and written is not None:
            stack.L3.apply_added(target, before, job.version, written, vectors)
        job.state = "stored" if whole else "failed"
        Job.objects.filter(pk=job.pk).update(
            state=job.state,
            results=job.results,
            failed=job.failed,
            version=job.version,
            reason=reason or _ended(job, whole),
            error="" if whole else _first_error(job, reason),
            stored_at=Now() if whole else None,
            completed_at=None if whole else Now(),
        )
    if whole and not everyones(job):
        complete(job, moved)
    elif not whole:
        versions.publish(moved)
        _left_pending(job)
        metrics.count("jobs", project=job.project_id, kind=job.kind, outcome="failed")
    log.info("job ended", extra={"job": str(job.job_id), "user_id": job.user_id, "outcome": job.state})
    return True


def _lock_before(target: Scope) -> int:
    """The version that the next move is from, other moves kept out until then."""
    versions.lock(target.pins(), "move")
    return versions.stored(target.pin).number


def _ended(job: Job, whole: bool) -> str:
    """The reason a job shows at its end."""
    if not whole:
        return "rejected"
    return MOVED_GENERATION if everyones(job) else ""


def _takes_away(job: Job) -> bool:
    """Whether something an older answer may hold is no longer so: then the floor rises too (PROTOCOL B9)."""
    return any(item["event"] != "ADD" for item in job.results) or job.kind in ("update", "delete", *write.SWEEPING)


def everyones(job: Job) -> bool:
    """Whether a delete may have changed anyone's answers, so that the project moved as a whole."""
    return job.kind in write.SWEEPING and bool((job.payload or {}).get("everyone"))


def move(job: Job) -> list[Version]:
    """Move the version of every id whose answers the job may have changed (PROTOCOL B2, B5), in the transaction that
    records it."""
    floor = _takes_away(job)
    target = write.scope(job)
    touched = deletes.pins(job) if job.kind in write.SWEEPING else list(target.pins())
    if touched is not None:
        return versions.move(touched, floor=floor)
    job.payload = {**(job.payload or {}), "everyone": True}
    versions.move_all(job.project_id)
    projects.move_generation(job.project_id)
    return [versions.stored(target.pin)]


def _complete(job: Job) -> bool:
    done = bool(Job.objects.filter(pk=job.pk, state="stored").update(state="completed", completed_at=Now()))
    _left_pending(job)
    if done:
        metrics.count("jobs", project=job.project_id, kind=job.kind, outcome="completed")
        took = (clock.wall() - job.accepted_at).total_seconds()  # two hosts' clocks, for a chart
        metrics.observe("delivery_seconds", max(0.0, took), kind=job.kind)
    return done


def _left_pending(job: Job) -> None:
    """Only now, after its version was published: a reader finds the fact in Mem0's answer or among the pending (C1)."""
    known = policy(job.project_id).generation
    pending.changed(write.scope(job).pins(), versions.generation(job.project_id, known))


def tell(moved: Sequence[Version]) -> None:
    for version in moved:
        if version.pin.kind == "user":
            signals.memories_changed.send(
                sender=None,
                project_id=version.pin.project,
                user_id=version.pin.id,
                version=version.number,
            )


def _read_back(job: Job, rules: Policy) -> list[Memory] | None:
    """What Mem0 has stored of this job, for L3's rows (PROTOCOL C4); None where reading it would cost a listing."""
    backend = stack.backend(rules)
    if not backend.in_process or job.user_id is None or job.kind in ("delete", write.DELETE_ALL):
        return None
    db.release()
    deadline = lanes.look_deadline()
    ids = {item["id"] for item in job.results}
    try:
        if job.kind == "update":
            changed = backend.get(job.memory_id or "", deadline)
            rows = [changed] if changed else []
        else:
            marked = backend.find_marked(write.scope(job), str(job.job_id), [], deadline)
            rows = [memory for memory in marked.memories if memory.id in ids]
    except OriginError:
        return None
    return rows if len(rows) == len(ids) else None


def _first_error(job: Job, reason: str) -> str:
    return (job.failed[0]["error"] if job.failed else reason)[:300]
