"""A user's erase, from the head of the lane (PROTOCOL D). Every step can be done again: a killed worker costs time.

The job never fails: while Mem0 or Redis is away it waits, and says why. It is `stored` once Mem0 lists nothing and the
floor has risen: then the lane goes on with the new life. It is `completed` when nobody can go by what was before.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import timedelta

import redis
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from memory import db, erase, metrics, stack, versions, write
from memory.backends.base import Backend
from memory.delivery import attempts, completion, deletes, lanes, settle
from memory.delivery.attempts import Part
from memory.delivery.lanes import Hold
from memory.errors import OriginError
from memory.models import Attempt, Erasure, Feedback, Job
from memory.tenancy.projects import policy
from memory.types import Memory, Pin, Scope, Version

log = logging.getLogger(__name__)

MOST_DUE = 200


def work(job: Job, hold: Hold, backend: Backend) -> bool:
    """Empty Mem0 of the user and record it; False when the lane has to wait."""
    running = Attempt.objects.filter(
        job__lane_id=job.lane_id, job__number__lte=job.number, outcome__in=settle.UNRESOLVED
    ).select_related("job")
    if (seconds := settle.settling(list(running))) > 0:
        return lanes.wait(job, hold, seconds, "settling")
    running.update(outcome="settled", ended_at=Now())
    went_wrong = deletes.note_touched(job, hold, backend) or attempts.send(job, Part([0]), hold, backend)
    if went_wrong is None:
        return _emptied(job, hold)
    if not went_wrong.sent:
        return lanes.wait(job, hold, attempts.backoff(job, went_wrong), went_wrong.code)
    with transaction.atomic():  # what was deleted of it shows at once (PROTOCOL B2)
        lanes.assert_held(hold, job)
        moved = completion.move(job)
    versions.publish(moved)
    return lanes.wait(job, hold, settle.settle_seconds(job), "settling")


def complete_erasures() -> int:
    """Drop what is still cached of erased users, and end the erases after which no reader can be behind."""
    due = Erasure.objects.filter(emptied_at__isnull=False, completed_at=None).select_related("job")
    for erasure in due.filter(dropped_at=None)[:MOST_DUE]:
        _drop(erasure)
    ended = due.filter(dropped_at__isnull=False, due_at__lte=Now())[:MOST_DUE]
    return sum(_complete(erasure) for erasure in ended)


def look_again(job: Job, hold: Hold) -> None:
    """Remove what an attempt that was thought over has stored since, and drop once more what a late reader has cached:
    whatever carries the mark of a job before this one (PROTOCOL A7)."""
    target, backend = write.scope(job), stack.backend(policy(job.project_id))
    db.release()
    gone: set[Pin] = erase.touched(job) if job.removing else set()
    again = None
    try:
        late = _of_before(job, backend.list(target, lanes.look_deadline()).memories)
        if late:
            lanes.note_removing(job, hold)
        for memory in late:
            lanes.renew(hold, settings.MEM0_LOOK_TIMEOUT_SECONDS)
            gone.update(Scope(job.project_id, memory.user_id, memory.agent_id, memory.run_id).pins())
            deletes.one(backend, memory.id)
            metrics.count("surplus_removed", project=job.project_id)
        if gone:
            backend.forget(target, lanes.look_deadline())
    except OriginError as error:
        again = Now() + timedelta(seconds=attempts.backoff(job, error))
    with transaction.atomic():
        lanes.assert_held(hold)
        moved = versions.move(gone, floor=True)
        completion.tell(moved)
        Job.objects.filter(pk=job.pk).update(removing=False)
    versions.publish(moved)
    touched = _touched(job)
    try:
        erase.drop_cached(job.project_id, touched and touched | gone)
    except redis.RedisError:
        again = again or Now() + timedelta(seconds=settings.RETRY_MAX_SECONDS)
    if again is not None:
        Job.objects.filter(pk=job.pk).update(reconcile_at=again)
        return
    Job.objects.filter(pk=job.pk).update(reconcile_at=None, payload=None)
    Erasure.objects.filter(job=job).update(looked_again_at=Now())


def _emptied(job: Job, hold: Hold) -> bool:
    """Mem0 lists nothing of the user: in one transaction the floor rises, and what was kept meanwhile goes."""
    target = write.scope(job)
    with transaction.atomic():
        lanes.assert_held(hold, job)
        moved = completion.move(job)
        noted = job.payload or {}
        erasure = Erasure.objects.select_for_update().get(job=job)
        removed, vectors = erase.forget(target.pin, sessions=False)
        removed["feedback"] += Feedback.objects.filter(
            project_id=job.project_id, memory_id__in=noted.get("deleted", [])
        ).delete()[0]
        for name, count in removed.items():
            erasure.removed[name] = erasure.removed.get(name, 0) + count
        erasure.removed["memories"] = noted.get("listed", 0)
        erasure.vector_keys = sorted({*erasure.vector_keys, *vectors})
        erasure.remains = _remains(stack.backend(policy(job.project_id)))
        erasure.save(update_fields=["removed", "vector_keys", "remains"])
        Erasure.objects.filter(pk=erasure.pk).update(emptied_at=Now(), due_at=Now() + _unconfirmed())
        job.payload = {name: noted[name] for name in ("touched", "everyone")}
        Job.objects.filter(pk=job.pk).update(
            state="stored",
            reason="",
            stored_at=Now(),
            results=[],
            payload=job.payload,
            version=next((one.number for one in moved if one.pin == target.pin), None),
            reconcile_at=settle.look_again_at(job),
        )
    _publish(erasure, moved, everyone=noted["everyone"])
    _drop(erasure)
    log.info("erase emptied Mem0", extra={"project": job.project_id, "user_id": job.user_id})
    return True


def _publish(erasure: Erasure, moved: Sequence[Version], *, everyone: bool) -> None:
    """Once every version is confirmed, only `bounded` readers can be behind, and only so long (PROTOCOL B12). A moved
    generation is known everywhere a whole lease later (B5)."""
    if versions.publish(moved) and not everyone:
        Erasure.objects.filter(pk=erasure.pk).update(due_at=Now() + _bounded())


def _drop(erasure: Erasure) -> None:
    """Remove what CACHE holds of the user. Without Redis the sweeper tries again."""
    job = erasure.job
    if job is None:
        return
    try:
        erase.drop_cached(job.project_id, _touched(job), erasure.vector_keys)
    except redis.RedisError:
        Job.objects.filter(pk=job.pk).update(reason="cache_unavailable")
        return
    Job.objects.filter(pk=job.pk).update(reason="")
    erasure.removed["vectors"] = len(erasure.vector_keys)
    Erasure.objects.filter(pk=erasure.pk).update(dropped_at=Now(), vector_keys=[], removed=erasure.removed)


def _complete(erasure: Erasure) -> bool:
    with transaction.atomic():
        done = Job.objects.filter(erasure=erasure, state="stored").update(state="completed", completed_at=Now())
        Erasure.objects.filter(pk=erasure.pk).update(completed_at=Now())
    if done:
        metrics.count("jobs", project=erasure.project_id, kind=write.ERASE, outcome="completed")
        log.info("erase completed", extra={"project": erasure.project_id, "user_id": erasure.user_id})
    return bool(done)


def _touched(job: Job) -> set[Pin] | None:
    """The ids under which answers may hold something of the user; None when that may be any of the project."""
    return None if (job.payload or {}).get("everyone") else erase.touched(job)


def _of_before(job: Job, memories: Sequence[Memory]) -> list[Memory]:
    """Those that a job accepted before the erase has stored. One without our mark is somebody else's."""
    marked = {memory.id: mark for memory in memories if (mark := _mark(memory)) is not None}
    later = set(
        Job.objects.filter(job_id__in=set(marked.values()), number__gt=job.number).values_list("job_id", flat=True)
    )
    return [memory for memory in memories if memory.id in marked and marked[memory.id] not in later]


def _mark(memory: Memory) -> uuid.UUID | None:
    try:
        return uuid.UUID(memory.job or "")
    except (ValueError, AttributeError):
        return None


def _remains(backend: Backend) -> list[str]:
    return [*erase.REMAINS, *(() if backend.in_process else (erase.REMAINS_IN_MEM0,))]


def _bounded() -> timedelta:
    return timedelta(milliseconds=settings.BOUNDED_MAX_AGE_MS)


def _unconfirmed() -> timedelta:
    """Nobody was told: readers go by a copy for its whole lease, `bounded` ones by what they knew then."""
    return timedelta(seconds=settings.VERSION_LEASE_SECONDS + versions.MARGIN_SECONDS) + _bounded()
