"""Delivering accepted writes to Mem0: at least once to Mem0, stored once for the reader (PROTOCOL A2–A8)."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from memory import clock, db, deletes, identity, metrics, pending, signals, stack, versions, write
from memory.backends.base import Backend
from memory.clock import Deadline
from memory.errors import OriginError, OriginNotFound
from memory.models import Attempt, Job, Lane
from memory.tenancy import projects
from memory.tenancy.projects import Policy, policy
from memory.text import text_hash
from memory.types import MARK_ATTEMPT, MARK_JOB, Memory, Scope, Stored, Version

log = logging.getLogger(__name__)

UNRESOLVED = ("", "unknown")
SENDABLE = deletes.SENDABLE
LONG = ("extract", write.DELETE_ALL)
LOOK_TIMEOUT_SECONDS = 20.0
MOVED_GENERATION = "generation_moved"
ORDERED_SECONDS = 0.5
"""Until a job that waits for one of another lane looks again."""
PART_FACTS = 50
"""Facts one call carries at most: Mem0 embeds them one by one, and the lane's lease has to outlast the call."""


class LaneLost(Exception):
    """The lease ran out or another process took the lane over: nothing more may be sent or recorded."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A lane held under a lease by this fence."""

    lane: int
    fence: int


def deliver(lane_id: int) -> str:
    """Work on a lane for a bounded slice; says how it ended. Whoever calls it, one process at a time gets the lane."""
    hold = _claim(lane_id)
    if hold is None:
        return "held"
    done = 0
    try:
        _reconcile_due(hold)
        while done < settings.LANE_SLICE_JOBS and (job := _next(lane_id)) is not None:
            if not _work(job, hold):
                return "waiting"
            done += 1
    except LaneLost:
        log.warning("lane lost", extra={"lane": lane_id, "outcome": "lost"})
        return "lost"
    finally:
        _release(hold)
    if done == settings.LANE_SLICE_JOBS:
        write.wake(lane_id)
    return f"done {done}"


def complete(job: Job, moved: Sequence[Version]) -> bool:
    """End a stored job once Redis has confirmed its version (PROTOCOL B7); otherwise the sweeper ends it later."""
    if not versions.publish(moved):
        return False
    return _complete(job)


def complete_overdue() -> int:
    """End stored jobs of unconfirmed publication, and those that moved the generation, once a whole lease has passed
    since their commit (PROTOCOL B7): so long a process without PostgreSQL may go by what it last read (B5)."""
    lease = timedelta(seconds=settings.VERSION_LEASE_SECONDS + versions.MARGIN_SECONDS)
    overdue = Job.objects.filter(stored_at__lt=Now() - lease, state="stored")
    return sum(_complete(job) for job in overdue[:1000])


# -- the lane ---------------------------------------------------------------------------------------------------------


def _claim(lane_id: int) -> Hold | None:
    claimed = Lane.objects.filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()), pk=lane_id).update(
        fence=F("fence") + 1,
        holder=identity.process(),
        lease_until=_lease_end(),
    )
    if not claimed:
        return None
    return Hold(lane_id, Lane.objects.values_list("fence", flat=True).get(pk=lane_id))


def _release(hold: Hold) -> None:
    Lane.objects.filter(pk=hold.lane, fence=hold.fence).update(lease_until=None, holder="", woken_at=None)


def _renew(hold: Hold, timeout: float) -> float:
    """Renew the lease; the moment on `clock.now()` before which a call of `timeout` seconds must begin."""
    began = clock.now()
    if not Lane.objects.filter(pk=hold.lane, fence=hold.fence).update(lease_until=_lease_end()):
        raise LaneLost
    return began + settings.LANE_LEASE_SECONDS - timeout


def _assert_held(hold: Hold) -> None:
    """Inside a transaction: nobody has taken the lane over, nor will before the commit. The lock lets jobs that refer
    to the lane be inserted: their transactions hold the pins that this one is about to lock."""
    if not Lane.objects.select_for_update(no_key=True).filter(pk=hold.lane, fence=hold.fence).exists():
        raise LaneLost


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LANE_LEASE_SECONDS)


def _next(lane_id: int) -> Job | None:
    """The lane's first unsent job if it is due: a later one never overtakes it (PROTOCOL A3)."""
    first = (
        Job.objects.filter(lane_id=lane_id, state__in=SENDABLE)
        .order_by("number")
        .annotate(due=Q(next_attempt_at__lte=Now()))
        .first()
    )
    return first if first is not None and first.due else None


# -- one job ----------------------------------------------------------------------------------------------------------


def _work(job: Job, hold: Hold) -> bool:
    """Bring one job to its end, or record when to go on; False when the lane has to wait."""
    if deletes.blocked(job):
        return _wait(job, hold, ORDERED_SECONDS, "ordered")
    rules = policy(job.project_id)
    backend = stack.backend(rules)
    open_attempts = list(job.tries.filter(outcome__in=UNRESOLVED))
    if open_attempts:
        if (seconds := _settling(job, open_attempts)) > 0:
            return _wait(job, hold, seconds, "settling")
        try:
            known = _resolve(job, hold, backend) or rules.on_unknown == "retry"
        except OriginError as error:
            return _wait(job, hold, _backoff(job, error), error.code)
        if not known:
            return _finish(job, hold, rules, reason="outcome_unknown")
    if job.kind == write.DELETE_ALL and (unlisted := _note_touched(job, hold, backend)) is not None:
        return _wait(job, hold, _backoff(job, unlisted), unlisted.code)
    return _send_all(job, hold, backend, rules)


def _send_all(job: Job, hold: Hold, backend: Backend, rules: Policy) -> bool:
    """Send what is neither stored nor refused yet; False when the lane has to wait."""
    for part in _parts(job):
        went_wrong = _send(job, part, hold, backend)
        if went_wrong is None:
            continue
        if went_wrong.sent:
            return _unknown(job, hold, rules)
        if went_wrong.retryable:
            return _wait(job, hold, _backoff(job, went_wrong), went_wrong.code)
        job.failed = [*job.failed, *({"index": index, "error": str(went_wrong)} for index in part.indexes)]
    return _finish(job, hold, rules)


@dataclass(frozen=True, slots=True)
class Part:
    """What one call to Mem0 carries: facts of the same metadata (PROTOCOL A8), or a whole conversation, or a change."""

    indexes: Sequence[int]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    expiration_date: str | None = None


def _parts(job: Job) -> list[Part]:
    """What is neither stored nor refused yet, as calls."""
    payload = _payload(job)
    ended = {item["index"] for item in (*job.results, *job.failed)}
    if job.kind != "add":
        return [] if ended else [Part([0], metadata=payload.get("metadata"))]
    groups: dict[bytes, list[int]] = {}
    for index, fact in enumerate(payload["memories"]):
        if index not in ended:
            same = orjson.dumps([fact.get("metadata"), fact.get("expiration_date")], option=orjson.OPT_SORT_KEYS)
            groups.setdefault(same, []).append(index)
    calls = [group[at : at + PART_FACTS] for group in groups.values() for at in range(0, len(group), PART_FACTS)]
    facts = payload["memories"]
    return [
        Part(
            indexes,
            [facts[index]["text"] for index in indexes],
            facts[indexes[0]].get("metadata"),
            facts[indexes[0]].get("expiration_date"),
        )
        for indexes in calls
    ]


def _note_touched(job: Job, hold: Hold, backend: Backend) -> OriginError | None:
    """Keep whom a delete by user, agent or run touches, before it is sent (PROTOCOL B5); why that could not be told."""
    db.release()
    try:
        deletes.note(job, backend.list(write.scope(job), Deadline.after(LOOK_TIMEOUT_SECONDS)))
    except OriginError as error:
        return error
    with transaction.atomic():
        _assert_held(hold)
        Job.objects.filter(pk=job.pk).update(payload=job.payload)
    return None


def _payload(job: Job) -> dict[str, Any]:
    """What an unfinished job is to write: it is kept as long as that."""
    if job.payload is None:
        raise ValueError(f"job {job.job_id} has no payload left")
    return cast(dict[str, Any], job.payload)


def _send(job: Job, part: Part, hold: Hold, backend: Backend) -> OriginError | None:
    """One recorded attempt; what went wrong, or None when its results stand in the job."""
    timeout = settings.MEM0_EXTRACT_TIMEOUT_SECONDS if job.kind in LONG else settings.MEM0_REST_API_TIMEOUT
    attempt, begin_by = _record(job, part, hold, backend, timeout)
    db.release()
    if clock.now() >= begin_by:  # paused since: the lease might not outlast the call (PROTOCOL A2)
        _end(attempt, "unavailable")
        raise LaneLost
    try:
        stored = _call(job, part, attempt, backend, Deadline.after(timeout))
    except OriginNotFound as error:
        if job.kind != "delete" or attempt.number == 1:
            _end(attempt, "rejected")
            return error
        stored = [Stored(job.memory_id or "", "", "DELETE")]  # a 404 on a retried delete is success (PROTOCOL A3)
    except OriginError as error:
        _end(attempt, "unknown" if error.sent else "rejected" if not error.retryable else "unavailable")
        return error
    _keep(job, part, stored)
    with transaction.atomic():
        _assert_held(hold)
        Job.objects.filter(pk=job.pk).update(results=job.results, failed=job.failed)
        _end(attempt, "stored")
    return None


def _record(job: Job, part: Part, hold: Hold, backend: Backend, timeout: float) -> tuple[Attempt, float]:
    with transaction.atomic():
        begin_by = _renew(hold, timeout)
        job.attempts += 1
        Job.objects.filter(pk=job.pk).update(state="processing", attempts=job.attempts, reason="", error="")
        last = job.tries.order_by("-number").first()
        attempt = Attempt.objects.create(
            job=job,
            number=last.number + 1 if last else 1,
            indexes=list(part.indexes),
            fence=hold.fence,
            process=identity.process() if backend.in_process else "",
        )
    return attempt, begin_by


def _call(job: Job, part: Part, attempt: Attempt, backend: Backend, deadline: Deadline) -> list[Stored]:
    target = write.scope(job)
    marks = {**(part.metadata or {}), MARK_JOB: str(job.job_id), MARK_ATTEMPT: str(attempt.number)}
    if job.kind == "add":
        return backend.add(target, part.texts, marks, part.expiration_date, deadline)
    if job.kind == "extract":
        return backend.extract(target, _payload(job)["messages"], marks, deadline)
    if job.kind == write.DELETE_ALL:
        return deletes.call(job, backend, deadline)
    memory_id = job.memory_id or ""
    if job.kind == "delete":
        backend.delete(memory_id, deadline)
        return [Stored(memory_id, "", "DELETE")]
    changes = _payload(job)
    backend.update(
        memory_id,
        deadline,
        text=changes.get("text"),
        metadata=changes.get("metadata"),
        expiration_date=changes.get("expiration_date"),
        clear_expiration="expiration_date" in changes and changes["expiration_date"] is None,
    )
    return [Stored(memory_id, changes.get("text") or "", "UPDATE")]


def _keep(job: Job, part: Part, stored: Sequence[Stored]) -> None:
    """Note what Mem0 says it stored. An add has one result a fact, in order; an extraction has as many as it found."""
    if job.kind == "add":
        pairs = list(zip(part.indexes, stored, strict=False))
        missing = part.indexes[len(stored) :]
        job.failed = [*job.failed, *({"index": index, "error": "Mem0 returned no id for it"} for index in missing)]
    else:
        pairs = [(0, one) for one in stored]
    new = [{"index": index, "id": one.id, "memory": one.memory, "event": one.event} for index, one in pairs]
    job.results = sorted([*job.results, *new], key=lambda item: item["index"])


def _end(attempt: Attempt, outcome: str) -> None:
    metrics.count("attempts", outcome=outcome)
    if outcome == "unavailable":  # an outage uses up no attempt (PROTOCOL A2)
        Job.objects.filter(pk=attempt.job_id).update(attempts=F("attempts") - 1)
    Attempt.objects.filter(pk=attempt.pk).update(outcome=outcome, ended_at=Now())


# -- unknown outcomes -------------------------------------------------------------------------------------------------


def _settling(job: Job, attempts: Sequence[Attempt]) -> float:
    """Seconds until no earlier attempt can still be running inside Mem0 (PROTOCOL A5)."""
    settle = _settle_seconds(job)
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now = cursor.fetchone()[0]
    ages = [(now - attempt.started_at).total_seconds() for attempt in attempts if not _over(attempt)]
    return max((settle - age for age in ages), default=0.0)


def _over(attempt: Attempt) -> bool:
    """Whether an in-process attempt has ended for certain: with its call, or with its process."""
    return bool(attempt.process) and (attempt.ended_at is not None or identity.gone(attempt.process))


def _settle_seconds(job: Job) -> float:
    return settings.MEM0_EXTRACT_SETTLE_SECONDS if job.kind in LONG else settings.MEM0_ADD_SETTLE_SECONDS


def _resolve(job: Job, hold: Hold, backend: Backend) -> bool:
    """Look for the job's mark and keep what is found (PROTOCOL A6); False when the look was not conclusive.

    Updates and deletes by id need no look: doing them again changes nothing.
    """
    conclusive = True
    if job.kind in ("add", "extract"):
        texts = [fact["text"] for fact in _payload(job)["memories"]] if job.kind == "add" else []
        db.release()
        found = backend.find_marked(write.scope(job), str(job.job_id), texts, Deadline.after(LOOK_TIMEOUT_SECONDS))
        conclusive = found.complete
        _adopt(job, found.memories)
    since = clock.now()
    with transaction.atomic():
        _assert_held(hold)
        Job.objects.filter(pk=job.pk).update(results=job.results, reconcile_at=_reconcile_at(job))
        job.tries.filter(outcome__in=UNRESOLVED).update(outcome="settled", ended_at=Now())
    log.info("attempts settled", extra={"job": str(job.job_id), "ms": int((clock.now() - since) * 1000)})
    return conclusive


def _adopt(job: Job, found: Sequence[Memory]) -> None:
    """Take marked memories into the results, as multisets of text hashes: a half-stored job sends only the rest."""
    known = {item["id"] for item in job.results}
    fresh = [memory for memory in found if memory.id not in known]
    if job.kind == "extract":
        new = [{"index": 0, "id": memory.id, "memory": memory.text, "event": "ADD"} for memory in fresh]
    else:
        done = {item["index"] for item in job.results}
        wanted: dict[str, list[int]] = {}
        for index, fact in enumerate(_payload(job)["memories"]):
            if index not in done:
                wanted.setdefault(text_hash(fact["text"]), []).append(index)
        new = []
        for memory in fresh:
            if places := wanted.get(text_hash(memory.text)):
                new.append({"index": places.pop(0), "id": memory.id, "memory": memory.text, "event": "ADD"})
    job.results = sorted([*job.results, *new], key=lambda item: item["index"])


def _unknown(job: Job, hold: Hold, rules: Policy) -> bool:
    """An attempt may have taken effect: the version moves (PROTOCOL B2), the lane waits for it to settle.

    No warm is asked for: the job's end does that, and an upstream in trouble need not be searched for it.
    """
    with transaction.atomic():
        _assert_held(hold)
        moved = _move(job)
        Job.objects.filter(pk=job.pk).update(
            next_attempt_at=Now() + timedelta(seconds=_settle_seconds(job)),
            reason="settling",
            reconcile_at=_reconcile_at(job),
        )
    versions.publish(moved)
    if job.tries.filter(outcome__in=("unknown", "settled")).count() >= settings.JOB_ATTEMPTS:
        log.warning("attempts used up", extra={"job": str(job.job_id), "reason": "attempts_exhausted"})
        return _finish(job, hold, rules, reason="attempts_exhausted")
    return False


def _wait(job: Job, hold: Hold, seconds: float, reason: str) -> bool:
    """Let the lane wait: an outage uses up no attempt (PROTOCOL A2)."""
    with transaction.atomic():
        _assert_held(hold)
        Job.objects.filter(pk=job.pk).update(
            next_attempt_at=Now() + timedelta(seconds=seconds),
            state="pending" if not job.results else "processing",
            reason=reason,
        )
    return False


def _backoff(job: Job, error: OriginError) -> float:
    """Seconds until the next try: what Mem0 asked for, else exponential with full jitter."""
    if error.retry_after is not None:
        return min(error.retry_after, settings.RETRY_MAX_SECONDS)
    ceiling = min(settings.RETRY_MAX_SECONDS, settings.RETRY_SECONDS * 2.0 ** min(job.attempts, 12))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  (spread, not secrecy)


# -- the end of a job -------------------------------------------------------------------------------------------------


def _finish(job: Job, hold: Hold, rules: Policy, reason: str = "") -> bool:
    """Record the end in one transaction with version, L3's rows and the due warm; publish; complete (PROTOCOL B7)."""
    whole = not job.failed and not reason
    target = write.scope(job)
    touched = whole or bool(job.results) or bool(reason)
    written = _read_back(job, rules) if whole and job.results else None
    vectors = stack.L3.vectors_for(job.project_id, [memory.text for memory in written]) if written else None
    with transaction.atomic():
        _assert_held(hold)
        # A delete by user, agent or run locks all it touches at once, in lock order.
        before = 0 if job.kind == write.DELETE_ALL else _lock_before(target)
        moved = _move(job) if touched else []
        _tell(moved)
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
    if whole and not _everyones(job):
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
    return MOVED_GENERATION if _everyones(job) else ""


def _takes_away(job: Job) -> bool:
    """Whether something an older answer may hold is no longer so: then the floor rises too (PROTOCOL B9)."""
    return any(item["event"] != "ADD" for item in job.results) or job.kind in ("update", "delete", write.DELETE_ALL)


def _everyones(job: Job) -> bool:
    """Whether a delete may have changed anyone's answers, so that the project moved as a whole."""
    return job.kind == write.DELETE_ALL and bool((job.payload or {}).get("everyone"))


def _move(job: Job) -> list[Version]:
    """Move the version of every id whose answers the job may have changed (PROTOCOL B2, B5), in the transaction that
    records it."""
    floor = _takes_away(job)
    target = write.scope(job)
    touched = deletes.pins(job) if job.kind == write.DELETE_ALL else list(target.pins())
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
    return done


def _left_pending(job: Job) -> None:
    """Only now, after its version was published: a reader finds the fact in Mem0's answer or among the pending (C1)."""
    pending.changed(write.scope(job).pins(), policy(job.project_id).generation)


def _tell(moved: Sequence[Version]) -> None:
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
    deadline = Deadline.after(LOOK_TIMEOUT_SECONDS)
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


# -- looking again ----------------------------------------------------------------------------------------------------


def _reconcile_at(job: Job) -> Any:
    return Now() + timedelta(seconds=2 * _settle_seconds(job))


def _reconcile_due(hold: Hold) -> None:
    due = Job.objects.filter(lane_id=hold.lane, reconcile_at__lte=Now(), state__in=("stored", "completed", "failed"))
    for job in due.order_by("number")[: settings.LANE_SLICE_JOBS]:
        _reconcile(job, hold)


def _reconcile(job: Job, hold: Hold) -> None:
    """Remove second copies of what the job reported (PROTOCOL A7)."""
    rules = policy(job.project_id)
    backend = stack.backend(rules)
    texts = [fact["text"] for fact in (job.payload or {}).get("memories", [])]
    db.release()
    try:
        found = backend.find_marked(write.scope(job), str(job.job_id), texts, Deadline.after(LOOK_TIMEOUT_SECONDS))
        surplus = _surplus(job, found.memories)
        for memory in surplus:
            _renew(hold, LOOK_TIMEOUT_SECONDS)
            _delete(backend, memory.id)
    except OriginError as error:
        Job.objects.filter(pk=job.pk).update(reconcile_at=Now() + timedelta(seconds=_backoff(job, error)))
        return
    with transaction.atomic():
        _assert_held(hold)
        moved = versions.move(write.scope(job).pins(), floor=True) if surplus else []
        if moved:
            _tell(moved)
        Job.objects.filter(pk=job.pk).update(reconcile_at=None)
    versions.publish(moved)
    metrics.count("surplus_removed", len(surplus), project=job.project_id)


def _surplus(job: Job, found: Sequence[Memory]) -> list[Memory]:
    """Marked memories beyond those reported. A failed job reported nothing of its unknown attempts: what they stored,
    up to what was wanted, is what a retry will find and adopt, so only copies beyond that go."""
    reported = {item["id"] for item in job.results}
    others = [memory for memory in found if memory.id not in reported]
    if job.state != "failed" or job.kind != "add" or job.payload is None:
        return others if job.state != "failed" else []
    done = {item["index"] for item in job.results}
    wanted = Counter(text_hash(fact["text"]) for index, fact in enumerate(job.payload["memories"]) if index not in done)
    surplus = []
    for memory in others:
        if wanted[text_hash(memory.text)] > 0:
            wanted[text_hash(memory.text)] -= 1
        else:
            surplus.append(memory)
    return surplus


def _delete(backend: Backend, memory_id: str) -> None:
    try:
        backend.delete(memory_id, Deadline.after(LOOK_TIMEOUT_SECONDS))
    except OriginNotFound:
        return
