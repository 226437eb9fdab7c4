"""One recorded call to Mem0, marked with its job, and what it leaves in it (PROTOCOL A4, A8)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from memory import clock, db, identity, metrics, write
from memory.backends.base import Backend
from memory.clock import Deadline
from memory.delivery import deletes, lanes
from memory.delivery.lanes import Hold, JobEnded, LaneLost
from memory.errors import OriginError, OriginNotFound
from memory.models import Attempt, Job
from memory.types import MARK_ATTEMPT, MARK_JOB, Stored

LONG = ("extract", *write.SWEEPING)
PART_FACTS = 50
"""Facts one call carries at most: Mem0 embeds them one by one, and the lane's lease has to outlast the call."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one call to Mem0 carries: facts of the same metadata (PROTOCOL A8), or a whole conversation, or a change."""

    indexes: Sequence[int]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    expiration_date: str | None = None


def facts(job: Job, backend: Backend) -> dict[int, Mapping[str, Any]] | None:
    """What the job adds, by index; None where Mem0 decides what it stores.

    A Mem0 that extracts nothing stores what the user said, each message by itself: half of it may be there.
    """
    content = payload(job)
    if job.kind == "add":
        return dict(enumerate(content["memories"]))
    if job.kind != "extract" or backend.extracts:
        return None
    return {
        index: {"text": message["content"], "metadata": content.get("metadata")}
        for index, message in enumerate(content["messages"])
        if message["role"] == "user" and message["content"].strip()
    }


def parts(job: Job, backend: Backend) -> list[Part]:
    """What is neither stored nor refused yet, as calls."""
    ended = {item["index"] for item in (*job.results, *job.failed)}
    adds = facts(job, backend)
    if adds is None:
        return [] if ended else [Part([0], metadata=payload(job).get("metadata"))]
    groups: dict[bytes, list[int]] = {}
    for index, fact in adds.items():
        if index not in ended:
            same = orjson.dumps([fact.get("metadata"), fact.get("expiration_date")], option=orjson.OPT_SORT_KEYS)
            groups.setdefault(same, []).append(index)
    calls = [group[at : at + PART_FACTS] for group in groups.values() for at in range(0, len(group), PART_FACTS)]
    return [
        Part(
            indexes,
            [adds[index]["text"] for index in indexes],
            adds[indexes[0]].get("metadata"),
            adds[indexes[0]].get("expiration_date"),
        )
        for indexes in calls
    ]


def payload(job: Job) -> dict[str, Any]:
    """What an unfinished job is to write: it is kept as long as that."""
    if job.payload is None:
        raise ValueError(f"job {job.job_id} has no payload left")
    return cast(dict[str, Any], job.payload)


def send(job: Job, part: Part, hold: Hold, backend: Backend) -> OriginError | None:
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
    try:
        with transaction.atomic():
            lanes.assert_held(hold, job)
            Job.objects.filter(pk=job.pk).update(results=job.results, failed=job.failed)
            _end(attempt, "stored")
    except (LaneLost, JobEnded):  # whoever goes on here need not wait for an answer that has come
        Attempt.objects.filter(pk=attempt.pk).update(ended_at=Now())
        raise
    return None


def _record(job: Job, part: Part, hold: Hold, backend: Backend, timeout: float) -> tuple[Attempt, float]:
    with transaction.atomic():
        begin_by = lanes.renew(hold, timeout)
        lanes.assert_held(hold, job)
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
    if part.texts:
        return backend.add(target, part.texts, marks, part.expiration_date, deadline)
    if job.kind == "extract":
        return backend.extract(target, payload(job)["messages"], marks, deadline)
    if job.kind in write.SWEEPING:
        return deletes.call(job, backend, deadline)
    memory_id = job.memory_id or ""
    if job.kind == "delete":
        backend.delete(memory_id, deadline)
        return [Stored(memory_id, "", "DELETE")]
    changes = payload(job)
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
    if part.texts:
        pairs = list(zip(part.indexes, stored, strict=False))
        missing = part.indexes[len(stored) :]
        job.failed = [*job.failed, *({"index": index, "error": "Mem0 returned no id for it"} for index in missing)]
    else:
        pairs = [(0, one) for one in stored]
    new = [{"index": index, "id": one.id, "memory": one.memory, "event": one.event} for index, one in pairs]
    job.results = sorted([*job.results, *new], key=lambda item: item["index"])


def _end(attempt: Attempt, outcome: str) -> None:
    metrics.count("attempts", outcome=outcome)
    if outcome == "unavailable":  # an outage uses up no attempt (PROTOCOL A2): nothing was sent under its number
        Job.objects.filter(pk=attempt.job_id).update(attempts=F("attempts") - 1)
        attempt.delete()
        return
    Attempt.objects.filter(pk=attempt.pk).update(outcome=outcome, ended_at=Now())


def exhausted(job: Job) -> bool:
    """Whether as many calls as are allowed have ended nobody knows how, since it was accepted or last retried."""
    outcomes = job.tries.order_by("-number").values_list("outcome", flat=True)[: job.attempts]
    return sum(outcome in ("unknown", "settled") for outcome in outcomes) >= settings.JOB_ATTEMPTS


def backoff(job: Job, error: OriginError) -> float:
    """Seconds until the next try: what Mem0 asked for, else exponential with full jitter."""
    if error.retry_after is not None:
        return min(error.retry_after, settings.RETRY_MAX_SECONDS)
    ceiling = min(settings.RETRY_MAX_SECONDS, settings.RETRY_SECONDS * 2.0 ** min(job.attempts, 12))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  (spread, not secrecy)
