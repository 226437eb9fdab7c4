"""The life of a warm's record: due, claimed under a lease, ended. PostgreSQL's clock decides (PROTOCOL C4)."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now

from cachewarm.models import WarmRun
from memory import identity, metrics, write
from memory.models import MemoryUser

log = logging.getLogger(__name__)

MOST_SENT = 250
"""Due runs handed over that nobody has come to yet: beyond them the workers are behind."""
KEEP_DAYS = 7
PURGE_ROWS = 5000

# While it is due, writes join it: each puts it off a little, the first one's wait bounds them all. A run that waits for
# its next attempt comes forward; a request by hand makes it due at once.
_REQUEST = """
INSERT INTO cachewarm_warmrun AS r
    (run_id, project_id, user_id, reason, state, wanted_version, due_at, attempts, step, error)
VALUES (%(run)s, %(project)s, %(user)s, %(reason)s, 'due', %(version)s,
    clock_timestamp() + %(delay)s * interval '1 second', 0, '', '')
ON CONFLICT (project_id, user_id) WHERE state = 'due' DO UPDATE SET
    wanted_version = greatest(r.wanted_version, excluded.wanted_version),
    reason = CASE WHEN excluded.reason = 'write' THEN r.reason ELSE excluded.reason END,
    due_at = CASE WHEN excluded.reason = 'write'
        THEN least(excluded.due_at, greatest(r.created_at + %(wait)s * interval '1 second', r.due_at))
        ELSE least(excluded.due_at, r.due_at) END
RETURNING run_id, (xmax = 0), extract(epoch FROM due_at - clock_timestamp())
"""
# One warm of a user at a time: whoever ends starts the next. (Rebuilds do not take part: doing it twice is harmless.)
_CLAIM = """
UPDATE cachewarm_warmrun r SET state = 'running', attempts = attempts + 1, step = '', error = '', holder = %(holder)s,
    started_at = clock_timestamp(), lease_until = clock_timestamp() + %(lease)s * interval '1 second'
WHERE run_id = %(run)s AND state = 'due' AND due_at <= clock_timestamp() AND NOT EXISTS (
    SELECT 1 FROM cachewarm_warmrun o WHERE o.project_id = r.project_id AND o.user_id = r.user_id
        AND o.state = 'running' AND o.rebuild_id IS NULL AND o.lease_until > clock_timestamp())
RETURNING id
"""
_LEFT = """
SELECT extract(epoch FROM due_at - clock_timestamp()) FROM cachewarm_warmrun WHERE run_id = %s AND state = 'due'
"""
_CLOSE = """
UPDATE cachewarm_warmrun r SET state = e.outcome, error = e.error, version = e.version, step = e.step,
    ended_at = clock_timestamp(), lease_until = NULL,
    milliseconds = extract(epoch FROM clock_timestamp() - started_at) * 1000
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[]) AS e (id, outcome, error, version, step)
WHERE r.id = e.id AND r.state = 'running' RETURNING r.id, r.milliseconds
"""
# What is known of users' warmth; those who wait for it watch these rows (PROTOCOL C4).
_TELL = """
UPDATE memory_memoryuser u SET
    warmed_version = CASE WHEN t.warm THEN greatest(u.warmed_version, t.version) ELSE u.warmed_version END,
    warmed_at = CASE WHEN t.warm THEN now() ELSE u.warmed_at END,
    warm_superseded_version = CASE WHEN t.outcome = 'superseded' AND t.step <> ''
        THEN greatest(u.warm_superseded_version, t.version) ELSE u.warm_superseded_version END,
    warm_failed_version = CASE WHEN t.warm THEN 0 WHEN t.outcome = 'failed'
        THEN greatest(u.warm_failed_version, t.version) ELSE u.warm_failed_version END,
    warm_failure = CASE WHEN t.warm THEN '' WHEN t.outcome = 'failed' THEN t.error ELSE u.warm_failure END,
    rebuilt = coalesce(t.rebuild, u.rebuilt)
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bool[], %s::bigint[])
    AS t (project_id, user_id, outcome, error, version, step, warm, rebuild)
WHERE u.project_id = t.project_id AND u.user_id = t.user_id
"""
_TELL_JOBS = """
UPDATE memory_job j SET warmed_at = now()
FROM unnest(%s::bigint[], %s::text[], %s::bigint[]) AS t (project_id, user_id, version)
WHERE j.project_id = t.project_id AND j.user_id = t.user_id AND j.warmed_at IS NULL AND j.version <= t.version
"""
_DUE = """
UPDATE cachewarm_warmrun SET sent_at = clock_timestamp() WHERE id IN (
    SELECT id FROM cachewarm_warmrun WHERE state = 'due' AND due_at <= clock_timestamp()
        AND (sent_at IS NULL OR sent_at < clock_timestamp() - %(resend)s * interval '1 second')
        AND (%(writes)s OR reason <> 'write')
    ORDER BY due_at FOR UPDATE SKIP LOCKED LIMIT greatest(0, %(most)s - (
        SELECT count(*) FROM cachewarm_warmrun WHERE state = 'due' AND due_at <= clock_timestamp()
            AND sent_at >= clock_timestamp() - %(resend)s * interval '1 second')))
RETURNING run_id
"""
_FOR_REBUILD = """
INSERT INTO cachewarm_warmrun AS r (run_id, project_id, user_id, reason, state, rebuild_id, wanted_version, attempts,
    step, error, holder, started_at, lease_until)
SELECT gen_random_uuid(), u.project_id, u.user_id, 'rebuild', 'running', %(rebuild)s, 0, 1, '', '', %(holder)s,
    clock_timestamp(), clock_timestamp() + %(lease)s * interval '1 second'
FROM memory_memoryuser u WHERE u.id = ANY(%(users)s) ORDER BY array_position(%(users)s, u.id)
ON CONFLICT (rebuild_id, project_id, user_id) DO UPDATE SET state = 'running', attempts = r.attempts + 1, step = '',
    error = '', holder = excluded.holder, started_at = excluded.started_at, lease_until = excluded.lease_until
WHERE r.state NOT IN ('completed', 'unchanged')
RETURNING id, run_id, project_id, user_id, reason, state, rebuild_id, attempts
"""


@dataclass(frozen=True, slots=True)
class Due:
    """A run that will start in so many seconds; `made` is False when it stood already."""

    run_id: uuid.UUID
    made: bool
    seconds: float


def request(project_id: int, user_id: str, reason: str, version: int = 0, *, delay: float = 0) -> Due:
    """Make a warm due, or join the one that is."""
    with connection.cursor() as cursor:
        cursor.execute(
            _REQUEST,
            {
                "run": uuid.uuid4(),
                "project": project_id,
                "user": user_id,
                "reason": reason,
                "version": version,
                "delay": delay,
                "wait": settings.WARM_MAX_WAIT_SECONDS,
            },
        )
        run_id, made, seconds = cursor.fetchone()
    return Due(run_id, made, max(0.0, float(seconds)))


def claim(run_id: uuid.UUID) -> WarmRun | None:
    """The run, now this process's to work on; None when it is not due, was claimed, or its user is being warmed."""
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"run": run_id, "holder": identity.process(), "lease": settings.WARM_LEASE_SECONDS})
        row = cursor.fetchone()
    return WarmRun.objects.get(pk=row[0]) if row else None


def claim_each(rebuild: int, users: Sequence[int]) -> list[WarmRun]:
    """The one run in a rebuild of each of these users (by their keys), in this order, made or taken over; none for
    whoever's has ended well already."""
    values: dict[str, Any] = {"rebuild": rebuild, "users": list(users), "holder": identity.process()}
    with connection.cursor() as cursor:
        cursor.execute(_FOR_REBUILD, {**values, "lease": settings.WARM_LEASE_SECONDS})
        names = [column.name for column in cursor.description]
        return [WarmRun(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def seconds_left(run_id: uuid.UUID) -> float | None:
    """Until a run is due; None when it is not waiting to be."""
    with connection.cursor() as cursor:
        cursor.execute(_LEFT, [run_id])
        row = cursor.fetchone()
    return float(row[0]) if row else None


def already_warm(run: WarmRun) -> bool:
    """Whether a warm that ended since has reached what a write wanted."""
    user = MemoryUser.objects.filter(project_id=run.project_id, user_id=run.user_id)
    return run.reason == "write" and user.filter(warmed_version__gte=run.wanted_version).exists()


def step_ended(batch: Sequence[WarmRun], step: str) -> None:
    """Note a step, and hold on to the runs for the next. A rebuild's are held by its own lease."""
    if batch:
        metrics.count("warm_steps", len(batch), step=step)
    for run in batch:
        run.step = step
        if run.rebuild_id is None:
            WarmRun.objects.filter(pk=run.pk, state="running").update(
                step=step,
                version=run.version,
                lease_until=Now() + timedelta(seconds=settings.WARM_LEASE_SECONDS),
            )


def running(run_id: uuid.UUID) -> WarmRun | None:
    """The run, if it is being worked on."""
    return WarmRun.objects.filter(run_id=run_id, state="running").first()


def end(ended: Sequence[tuple[WarmRun, str]], error: str = "") -> list[tuple[WarmRun, str]]:
    """End runs, each with its outcome, and with them whatever waits for their users' warmth; without those that another
    process has ended."""
    if not ended:
        return []
    with transaction.atomic():
        closed = _close(ended, error)
        _tell(closed, error)
    for run, outcome in closed:
        metrics.observe("warm_seconds", (run.milliseconds or 0) / 1000, outcome=outcome)
        if outcome == "completed":
            metrics.count("warm_steps", step="record")
        metrics.count("warms", project=run.project_id, reason=run.reason, outcome=outcome)
        _log_end(run, outcome, error)
    return closed


def fail(run: WarmRun, error: str) -> Due | None:
    """Note a failed attempt. The next one if there is to be one, else the run has ended `failed`."""
    last = run.rebuild_id is not None or run.attempts >= settings.WARM_ATTEMPTS
    if last or not (wait := _postpone(run, error)):
        end([(run, "failed")], error)
        return None
    with transaction.atomic():
        _tell([(run, "failed")], error)
    _log_end(run, "retry", error)
    return Due(run.run_id, False, wait)


def due() -> list[uuid.UUID]:
    """Runs that are due and were not handed over lately; without PROACTIVE_CACHE_ENABLED only those asked for."""
    values = {"resend": settings.RESEND_SECONDS, "most": MOST_SENT, "writes": settings.PROACTIVE_CACHE_ENABLED}
    with connection.cursor() as cursor:
        cursor.execute(_DUE, values)
        return [row[0] for row in cursor.fetchall()]


def next_of(run: WarmRun, *, at_once: bool) -> Due | None:
    """The run of the same user that waits for this one to end; `at_once` forgets its debounce."""
    waiting = WarmRun.objects.filter(project_id=run.project_id, user_id=run.user_id, state="due")
    if at_once:
        waiting.filter(attempts=0).update(due_at=Now())
    row = waiting.values_list("run_id", flat=True).first()
    if row is None:
        return None
    return Due(row, False, max(0.0, seconds_left(row) or 0.0))


def abandoned() -> list[WarmRun]:
    """Runs whose process is gone, or whose lease has run out. A rebuild's are its own to take over."""
    held = WarmRun.objects.filter(state="running", rebuild=None)
    dead = [holder for holder in held.values_list("holder", flat=True).distinct() if identity.gone(holder)]
    return list(held.filter(holder__in=dead) | held.filter(lease_until__lt=Now()))


def purge() -> None:
    """Forget runs that ended long ago, in bounded batches."""
    old = WarmRun.objects.filter(ended_at__lt=Now() - timedelta(days=KEEP_DAYS))
    while ids := list(old.values_list("pk", flat=True)[:PURGE_ROWS]):
        WarmRun.objects.filter(pk__in=ids).delete()


def forget(project_id: int, user_id: str) -> None:
    """Remove the runs of a user; one that is being worked on finds that somebody else has ended it."""
    WarmRun.objects.filter(project_id=project_id, user_id=user_id).delete()


def _close(ended: Sequence[tuple[WarmRun, str]], error: str) -> list[tuple[WarmRun, str]]:
    rows = [(run.pk, outcome, error, run.version, run.step) for run, outcome in ended]
    with connection.cursor() as cursor:
        cursor.execute(_CLOSE, _columns(rows))
        took = dict(cursor.fetchall())
    closed = [(run, outcome) for run, outcome in ended if run.pk in took]
    for run, _ in closed:
        run.milliseconds = took[run.pk]
    return closed


def _postpone(run: WarmRun, error: str) -> float:
    """Make the run due again later; 0 when a newer one is due for this user, which then does the work."""
    ceiling = min(settings.RETRY_MAX_SECONDS, settings.RETRY_SECONDS * 2.0**run.attempts)
    wait = random.uniform(ceiling / 2, ceiling)  # noqa: S311  (spread, not secrecy)
    try:
        with transaction.atomic():
            WarmRun.objects.filter(pk=run.pk, state="running").update(
                state="due",
                error=error,
                due_at=Now() + timedelta(seconds=wait),
                sent_at=None,
                lease_until=None,
            )
    except IntegrityError:  # one_due_warm
        return 0
    return wait


def _tell(ended: Sequence[tuple[WarmRun, str]], error: str) -> None:
    """Say of users and their jobs what has become of a warm, in the caller's transaction."""
    rows = []
    for run, outcome in ended:
        reached = run.version if run.version is not None else run.wanted_version
        if outcome == "failed":
            reached = max(reached, run.wanted_version)
        warm = outcome == "completed" or (outcome == "unchanged" and run.version is not None)
        rows.append((run.project_id, run.user_id, outcome, error, reached, run.step, warm, run.rebuild_id))
    warmed = [(row[0], row[1], row[4]) for row in rows if row[6]]
    write.lock_users([(row[0], row[1]) for row in rows])
    with connection.cursor() as cursor:
        if rows:
            cursor.execute(_TELL, _columns(rows))
        if warmed:
            cursor.execute(_TELL_JOBS, _columns(warmed))


def _columns(rows: Sequence[Sequence[Any]]) -> tuple[list[Any], ...]:
    """Rows as `unnest` takes them."""
    return tuple(list(column) for column in zip(*rows, strict=True))


def _log_end(run: WarmRun, outcome: str, error: str) -> None:
    fields: dict[str, Any] = {
        "user_id": run.user_id,
        "version": run.version,
        "step": run.step,
        "outcome": outcome,
        "reason": error or run.reason,
        "ms": run.milliseconds,
    }
    log.log(logging.WARNING if error else logging.INFO, "warm ended", extra=fields)
