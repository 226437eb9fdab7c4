"""What became of an attempt of unknown outcome: wait until it has settled, look for its mark (PROTOCOL A5, A6)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from memory import clock, db, identity, write
from memory.backends.base import Backend
from memory.delivery import attempts, lanes
from memory.delivery.lanes import Hold
from memory.models import Attempt, Job
from memory.text import text_hash
from memory.types import Listing, Memory

log = logging.getLogger(__name__)

UNRESOLVED = ("", "unknown")
LOOK_TEXTS = 10
"""How many texts are looked for within one look's time; DESIGN has a search of Mem0 take up to a second."""


def settling(unresolved: Sequence[Attempt]) -> float:
    """Seconds until none of these attempts can still be running inside Mem0 (PROTOCOL A5)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now = cursor.fetchone()[0]
    left = [
        settle_seconds(attempt.job) - (now - attempt.started_at).total_seconds()
        for attempt in unresolved
        if not _over(attempt)
    ]
    return max(left, default=0.0)


def _over(attempt: Attempt) -> bool:
    """Whether an attempt has ended for certain: it was answered, though nobody kept what it said; or it was made in
    process and has ended with its call or its process."""
    if attempt.ended_at is not None:
        return bool(attempt.process) or not attempt.outcome
    return bool(attempt.process) and identity.gone(attempt.process)


def settle_seconds(job: Job) -> float:
    """How long an attempt may still run inside Mem0 after its answer was lost."""
    return settings.MEM0_EXTRACT_SETTLE_SECONDS if job.kind in attempts.LONG else settings.MEM0_ADD_SETTLE_SECONDS


def resolve(job: Job, hold: Hold, backend: Backend) -> bool:
    """Look for the job's mark and keep what is found (PROTOCOL A6); False when the look was not conclusive.

    Updates and deletes by id need no look: doing them again changes nothing.
    """
    conclusive = True
    if job.kind in ("add", "extract"):
        adds = attempts.facts(job, backend)
        done = {item["index"] for item in job.results}
        texts = [fact["text"] for index, fact in (adds or {}).items() if index not in done]
        found = marked(job, hold, backend, texts)
        conclusive = found.complete
        _adopt(job, adds, found.memories)
    since = clock.now()
    with transaction.atomic():
        lanes.assert_held(hold, job)
        Job.objects.filter(pk=job.pk).update(results=job.results, reconcile_at=look_again_at(job))
        job.tries.filter(outcome__in=UNRESOLVED).update(outcome="settled", ended_at=Now())
    log.info("attempts settled", extra={"job": str(job.job_id), "ms": int((clock.now() - since) * 1000)})
    return conclusive


def marked(job: Job, hold: Hold, backend: Backend, texts: Sequence[str]) -> Listing:
    """What carries the job's mark. Where a listing is cut, `texts` are looked for a few at a time, each few within the
    time of one look: a look that takes longer would never end. OriginError."""
    target, name = write.scope(job), str(job.job_id)
    db.release()
    listing = backend.find_marked(target, name, [], lanes.look_deadline())
    found = {memory.id: memory for memory in listing.memories}
    complete, each = listing.complete, list(dict.fromkeys(texts))
    if not complete:
        complete = bool(each)
        for at in range(0, len(each), LOOK_TEXTS):
            lanes.renew(hold, settings.MEM0_LOOK_TIMEOUT_SECONDS)
            db.release()
            few = backend.find_marked(target, name, each[at : at + LOOK_TEXTS], lanes.look_deadline())
            found |= {memory.id: memory for memory in few.memories}
            if not few.complete:
                complete = False
                break
    return Listing(list(found.values()), complete)


def _adopt(job: Job, adds: Mapping[int, Mapping[str, Any]] | None, found: Sequence[Memory]) -> None:
    """Take marked memories into the results, as multisets of text hashes: a half-stored job sends only the rest."""
    known = {item["id"] for item in job.results}
    fresh = [memory for memory in found if memory.id not in known]
    if adds is None:
        new = [{"index": 0, "id": memory.id, "memory": memory.text, "event": "ADD"} for memory in fresh]
    else:
        done = {item["index"] for item in job.results}
        wanted: dict[str, list[int]] = {}
        for index, fact in adds.items():
            if index not in done:
                wanted.setdefault(text_hash(fact["text"]), []).append(index)
        new = []
        for memory in fresh:
            if places := wanted.get(text_hash(memory.text)):
                new.append({"index": places.pop(0), "id": memory.id, "memory": memory.text, "event": "ADD"})
    job.results = sorted([*job.results, *new], key=lambda item: item["index"])


def look_again_at(job: Job) -> Any:
    """When second copies of what the job stores are looked for (PROTOCOL A7), as an expression for PostgreSQL."""
    return Now() + timedelta(seconds=2 * settle_seconds(job))
