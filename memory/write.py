"""The write path up to the answer: one transaction that accepts (PROTOCOL A1). Delivery is another file."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, Sum
from django.utils import timezone

from memory import bulkhead, clock, db, outbox, pending, stack, versions
from memory.clock import Deadline
from memory.errors import DatabaseUnavailable, LayerError, MemsvcError, OriginError, Overloaded
from memory.models import IdempotencyRecord, Job, Lane
from memory.models.jobs import UNFINISHED
from memory.tenancy import projects
from memory.tenancy.projects import Policy
from memory.types import Pin, Scope

log = logging.getLogger(__name__)

OWNER_TIMEOUT_SECONDS = 5.0
DELETE_ALL = "delete_all"
ERASE = "erase"
SWEEPING = (DELETE_ALL, ERASE)
"""Kinds that take all there is under their ids."""
ERASED = "erased"
"""The reason of a job that was ended with its user; in place of the digest of what its Idempotency-Key came with."""


class IdempotencyMismatch(MemsvcError):
    """The Idempotency-Key came with another body before."""

    code = "idempotency_mismatch"


class Erased(MemsvcError):
    """The Idempotency-Key belongs to a write of a user who was erased since (PROTOCOL D)."""

    code = "erased"


class BacklogFull(Overloaded):
    """The project has as much undelivered as it may (PROTOCOL A10)."""

    code = "backlog_full"


class OwnerUnknown(MemsvcError):
    """Neither L3 nor Mem0 can tell whose memory this is (PROTOCOL A11)."""

    code = "owner_unknown"
    retryable = True


@dataclass(frozen=True, slots=True)
class Write:
    """What a caller wants written. `payload` by kind:
    add {memories: [{text, metadata?, expiration_date?}]} · extract {messages, metadata?} ·
    update {text?, metadata?, expiration_date? (null clears)} · delete {} ·
    delete_all {}, of everything filed under all the ids · erase {}, of a user (`memory.erase` accepts it)."""

    kind: str
    scope: Scope
    payload: Mapping[str, Any] = field(default_factory=dict)
    memory_id: str | None = None
    idempotency_key: str | None = None
    body_digest: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job of a write; `replayed` when the Idempotency-Key had made it before."""

    job: Job
    replayed: bool


def accept(write: Write, policy: Policy) -> Accepted:
    """Make the write durable: it needs PostgreSQL and nothing else.

    IdempotencyMismatch; Erased; BacklogFull; DatabaseUnavailable, with nothing half-written.
    """
    try:
        if (earlier := _replay(write.idempotency_key, write.body_digest, policy)) is not None:
            return earlier
        _check_backlog(policy)
        try:
            with transaction.atomic():
                job = insert(write, policy)
        except IntegrityError:  # the same key raced us to the commit
            if (earlier := _replay(write.idempotency_key, write.body_digest, policy)) is None:
                raise
            return earlier
    except DatabaseError as error:
        log.warning("write not accepted", extra={"reason": type(error.__cause__ or error).__name__})
        raise DatabaseUnavailable("the write was not accepted") from error
    pending.changed(write.scope.pins(), versions.generation(policy.id, policy.generation))
    wake(job.lane_id)
    return Accepted(job, replayed=False)


def replay(key: str | None, body_digest: str, policy: Policy) -> Accepted | None:
    """The write that this Idempotency-Key made before. IdempotencyMismatch; Erased; DatabaseUnavailable."""
    try:
        return _replay(key, body_digest, policy)
    except DatabaseError as error:
        raise DatabaseUnavailable("the Idempotency-Key cannot be looked up") from error


def owner(memory_id: str, policy: Policy) -> Scope | None:
    """The ids a memory is filed under, from L3's rows or else Mem0 (PROTOCOL A11); None when there is no such memory.

    OwnerUnknown when Mem0 would have to be asked and cannot answer; Overloaded.
    """
    try:
        known = stack.L3.owner(policy.id, memory_id)
    except LayerError:
        known = None
    if known is not None:
        return known
    db.release()
    try:
        with bulkhead.waiting():
            memory = stack.backend(policy).get(memory_id, Deadline.after(OWNER_TIMEOUT_SECONDS))
    except OriginError as error:
        raise OwnerUnknown("Mem0 cannot be asked whose memory this is") from error
    return Scope(policy.id, memory.user_id, memory.agent_id, memory.run_id) if memory else None


def report(job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    pin = scope(job).pin
    return {
        "job_id": str(job.job_id),
        "kind": job.kind,
        "status": job.state,
        "attempts": job.attempts,
        "error": job.error or None,
        "reason": job.reason or None,
        "version": f"{pin.kind}:{job.version}" if job.version else None,
        "results": job.results,
        "failed": job.failed,
        "user_id": job.user_id,
        "agent_id": job.agent_id,
        "run_id": job.run_id,
        "accepted_at": job.accepted_at,
        "completed_at": job.completed_at,
        "warmed_at": job.warmed_at,
    }


def scope(job: Job) -> Scope:
    """The ids a job names."""
    return Scope(job.project_id, job.user_id, job.agent_id, job.run_id)


def retry(job: Job) -> bool:
    """Put a failed job at its lane's tail again, for what is not stored yet; False when it cannot be."""
    with transaction.atomic():
        versions.lock(scope(job).pins(), _mode(job.kind))  # before the job's row, as an erase locks them
        row = Job.objects.select_for_update().get(pk=job.pk)
        if row.state != "failed" or row.payload is None:
            return False
        Job.objects.filter(pk=job.pk).update(
            number=_next_number(),
            state="pending",
            attempts=0,
            failed=[],
            error="",
            reason="retried",
            dismissed_at=None,
            next_attempt_at=timezone.now(),
        )
    _reopened(job)
    wake(job.lane_id)
    return True


def dismiss(job: Job) -> bool:
    """Take a failed job off the operator's list; its payload is kept as long as any other's."""
    done = bool(Job.objects.filter(pk=job.pk, state="failed").update(dismissed_at=timezone.now()))
    _reopened(job)
    return done


def wake(lane_id: int) -> None:
    """Tell a worker that a lane has work."""
    from memory.tasks import deliver  # tasks stand above this module

    outbox.send(deliver.si(lane_id))


def insert(write: Write, policy: Policy) -> Job:
    """Make the job in the caller's transaction (PROTOCOL A1); tell `pending.changed` and `wake` after the commit."""
    pin = write.scope.pin
    versions.lock(write.scope.pins(), _mode(write.kind))
    payload = dict(write.payload)
    job = Job.objects.create(
        number=_next_number(),
        job_id=uuid.uuid4(),
        project_id=policy.id,
        lane_id=lane(pin),
        kind=write.kind,
        memory_id=write.memory_id,
        payload=payload,
        payload_bytes=len(orjson.dumps(payload)),
        **write.scope.ids(),
    )
    if write.scope.user_id is not None and write.kind not in SWEEPING:
        touch_user(policy.id, write.scope.user_id)
    if write.idempotency_key is not None:
        IdempotencyRecord.objects.create(
            project_id=policy.id,
            key_digest=_digest(write.idempotency_key),
            body_digest=write.body_digest,
            job=job,
        )
    return job


def _mode(kind: str) -> Literal["share", "exclude"]:
    """A delete by user, agent or run keeps others from accepting meanwhile: its number follows all that came before, in
    whatever lane, and precedes all that come after (PROTOCOL A1)."""
    return "exclude" if kind in SWEEPING else "share"


def _reopened(job: Job) -> None:
    known = projects.policy(job.project_id).generation
    pending.changed(scope(job).pins(), versions.generation(job.project_id, known))


def touch_user(project_id: int, user_id: str) -> None:
    """Know the user, and that they were active within the hour."""
    touch_users([(project_id, user_id)])


def touch_users(active: Sequence[tuple[int, str]]) -> None:
    """Know users by project and id, and that they were active within the hour."""
    ordered = sorted(set(active))
    with connection.cursor() as cursor:
        cursor.execute(_TOUCH, ([project for project, _ in ordered], [user for _, user in ordered]))


def lock_users(users: Sequence[tuple[int, str]]) -> None:
    """Hold the rows of many users until the transaction ends, locked in the order in which `touch_users` does."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, ([project for project, _ in users], [user for _, user in users]))


_LOCK = """
SELECT FROM memory_memoryuser u JOIN unnest(%s::bigint[], %s::text[]) AS o (project_id, user_id)
    ON u.project_id = o.project_id AND u.user_id = o.user_id
ORDER BY u.project_id, u.user_id COLLATE "C" FOR NO KEY UPDATE OF u
"""
_TOUCH = """
INSERT INTO memory_memoryuser AS u
    (project_id, user_id, warmed_version, warm_superseded_version, warm_failed_version, warm_failure)
SELECT project_id, user_id, 0, 0, 0, '' FROM unnest(%s::bigint[], %s::text[]) AS active (project_id, user_id)
ON CONFLICT (project_id, user_id) DO UPDATE SET active_at = now() WHERE u.active_at < now() - interval '1 hour'
"""
_LANE = """
WITH made AS (
    INSERT INTO memory_lane (project_id, kind, pin_id, fence, holder) VALUES (%(project)s, %(kind)s, %(id)s, 0, '')
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT id FROM made UNION ALL
SELECT id FROM memory_lane WHERE project_id = %(project)s AND kind = %(kind)s AND pin_id = %(id)s
"""


def lane(pin: Pin) -> int:
    """The lane's row, made when it is the first time. A lane never goes away, so a conflict always finds it."""
    with connection.cursor() as cursor:
        for _ in range(2):  # another transaction's lane becomes visible to the second statement
            cursor.execute(_LANE, {"project": pin.project, "kind": pin.kind, "id": pin.id})
            if (row := cursor.fetchone()) is not None:
                return int(row[0])
    return Lane.objects.get(project_id=pin.project, kind=pin.kind, pin_id=pin.id).pk


def _replay(key: str | None, body_digest: str, policy: Policy) -> Accepted | None:
    if key is None:
        return None
    found = IdempotencyRecord.objects.select_related("job").filter(project_id=policy.id, key_digest=_digest(key))
    record = found.first()
    if record is None:
        return None
    if record.body_digest == ERASED:
        raise Erased("the user of that request was erased")
    if record.body_digest != body_digest:
        raise IdempotencyMismatch("this Idempotency-Key came with another body before")
    return Accepted(record.job, replayed=True)


_backlog: dict[int, tuple[int, int, float]] = {}


def _check_backlog(policy: Policy) -> None:
    """Refuse what goes beyond the project's backlog; counted at most once a second by each process."""
    jobs, size, counted_at = _backlog.get(policy.id, (0, 0, 0.0))
    if clock.now() - counted_at > 1:
        sums = Job.objects.filter(project_id=policy.id, state__in=UNFINISHED).aggregate(
            jobs=Count("id"),
            size=Sum("payload_bytes"),
        )
        jobs, size = sums["jobs"], sums["size"] or 0
        _backlog[policy.id] = (jobs, size, clock.now())
    if jobs >= policy.backlog_max_jobs or size >= policy.backlog_max_bytes:
        raise BacklogFull(f"{jobs} jobs of {size} bytes wait for Mem0", retry_after=settings.RETRY_MAX_SECONDS)


def _next_number() -> int:
    """A number from the table's own sequence, taken while the pins' rows are locked (PROTOCOL A1)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval(pg_get_serial_sequence('memory_job', 'id'))")
        return int(cursor.fetchone()[0])


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
