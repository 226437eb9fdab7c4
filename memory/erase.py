"""Erasing a user (PROTOCOL D): accepting it, what memsvc keeps of a user, and the receipt.

Accepting commits the tombstone, which is the number of the erase's job: whatever was accepted before it is ended and
its texts removed, whatever comes after is a new life of the id and waits in the lane until Mem0 is empty. A worker does
the rest (`delivery/erasing.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from memory import embedders, keys, pending, signals, versions, write
from memory.errors import DatabaseUnavailable, EmbedderError
from memory.layers.l1_vectors import CachedEmbedder
from memory.models import (
    Erasure,
    Feedback,
    IdempotencyRecord,
    Job,
    Lane,
    MemoryUser,
    Message,
    Session,
    Snapshot,
    SnapshotMemory,
    Tier,
)
from memory.models.jobs import OPEN, UNFINISHED
from memory.redis_client import cache
from memory.tenancy.projects import Policy
from memory.types import Pin, Scope
from memory.write import ERASE, ERASED, Write

log = logging.getLogger(__name__)

SCAN_KEYS = 1000
MOST_PINS = 1000
"""Ids that are moved and dropped one by one; beyond, it is the whole project."""
REMAINS = (
    "This receipt, and numbers by which readers know what is current: the user's id, no text.",
    f"Records of the user's earlier writes, without what they wrote, for {settings.JOB_KEEP_DAYS} days.",
    "Digests of Idempotency-Keys, for as long as any.",
    "Questions and answers in the memory of running processes, which are not served any more, until pushed out.",
    f"Vectors of texts that memsvc can't name any more, filed under no user: {settings.L1_TTL_SECONDS} s after use.",
    "Log lines and the admin's record of operators' acts: the user's id, no text.",
    "Backups of PostgreSQL.",
)
REMAINS_IN_MEM0 = "In Mem0, which offers no way to remove them: its histories and the last messages it was sent."


def accept(user: Pin, policy: Policy, idempotency_key: str | None = None, body_digest: str = "") -> Erasure:
    """Begin a new life of the user: an erase under way already, if nothing was accepted since, is the same one.

    IdempotencyMismatch; Erased; DatabaseUnavailable, with nothing removed.
    """
    scope = Scope(user.project, user.id)
    try:
        if (earlier := write.replay(idempotency_key, body_digest, policy)) is not None:
            return Erasure.objects.get(job=earlier.job)
        lane = write.lane(user)  # in a transaction of its own: whoever accepts makes it while holding the pins
        try:
            with transaction.atomic():
                # The lane before the pins, in the order of the workers that record an end.
                Lane.objects.select_for_update(no_key=True).get(pk=lane)
                versions.lock([user], "exclude")
                if (same := _under_way(user, lane)) is not None:
                    return same
                began = _begin(Write(ERASE, scope, {}, None, idempotency_key, body_digest), policy, lane)
                under = touched(began.job) if began.job else {user}
                moved = versions.move([user], floor=True)
        except IntegrityError:  # the same key raced us to the commit
            if (earlier := write.replay(idempotency_key, body_digest, policy)) is None:
                raise
            return Erasure.objects.get(job=earlier.job)
    except DatabaseError as error:
        raise DatabaseUnavailable("the erase was not accepted") from error
    versions.publish(moved)
    pending.changed(under, versions.generation(user.project, policy.generation))
    write.wake(lane)
    log.info("erase accepted", extra={"project": user.project, "user_id": user.id, "version": str(moved[0])})
    return began


def forget(user: Pin, *, sessions: bool) -> tuple[Counter[str], list[str]]:
    """Remove what PostgreSQL keeps of a user beside jobs, in the caller's transaction: how many of what, and L1's keys
    of the texts. Sessions go when the erase is accepted only; what is said later is of the new life."""
    removed: Counter[str] = Counter()
    owner = {"project_id": user.project, "user_id": user.id}
    if sessions:  # whoever is adding a message commits first, or makes a new session
        list(Session.objects.select_for_update().filter(**owner).order_by("pk").values_list("pk", flat=True))
    texts = list(_texts(user, sessions=sessions))
    removed["summaries"] = Snapshot.objects.filter(**owner).count()
    Snapshot.objects.filter(**owner).delete()
    answers: list[tuple[Any, Any]] = signals.erased.send(sender=None, project_id=user.project, user_id=user.id)
    for _, (count, embedded) in answers:
        removed["questions"] += count
        texts += embedded
    if sessions:
        removed["sessions"] = Session.objects.filter(**owner).count()
        removed["messages"] = Message.objects.filter(session__in=Session.objects.filter(**owner)).count()
        Session.objects.filter(**owner).delete()
        removed["feedback"] = Feedback.objects.filter(**owner).delete()[0]
        MemoryUser.objects.filter(**owner).delete()  # after the warms, as their ends lock both
    return removed, vector_keys(user.project, texts)


def name_vectors(job: Job, texts: Iterable[str]) -> None:
    """Note L1's keys of texts that are about to go, until they are dropped."""
    erasure = Erasure.objects.select_for_update().get(job=job)
    erasure.vector_keys = sorted({*erasure.vector_keys, *vector_keys(job.project_id, texts)})
    erasure.save(update_fields=["vector_keys"])


def vector_keys(project: int, texts: Iterable[str]) -> list[str]:
    """L1's keys of the texts, for whatever they were embedded."""
    try:
        embedder = embedders.get()
    except EmbedderError:
        return []
    if embedder is None:
        return []
    cached = CachedEmbedder(embedder, project)
    return [cached.key(text, action) for text in set(texts) for action in ("search", "passage")]


def drop_cached(project: int, pins: Iterable[Pin] | None, vectors: Iterable[str] = ()) -> None:
    """Remove every key of the pins (None: of all of the project's) and these of L1 from CACHE, but for what holds
    no text: copies of versions, by whose floor a late fill is refused, and flights' leases. redis.RedisError.

    One walk over all keys, about a second for a million: an index of them would cost every fill."""
    client = cache()
    wanted = None if pins is None else {keys.named(pin) for pin in pins}
    gone: list[Any] = list(vectors)
    found = client.scan_iter(match=keys.of_project(project), count=SCAN_KEYS)
    gone += [name for name in found if (wanted is None or keys.owner(name) in wanted) and not keys.is_lease(name)]
    for at in range(0, len(gone), SCAN_KEYS):
        client.unlink(*gone[at : at + SCAN_KEYS])


def touched(job: Job) -> set[Pin]:
    """The user, and the agents and runs known so far under which answers may hold something of the user."""
    noted: dict[str, Any] = job.payload or {}
    return {*write.scope(job).pins(), *(Pin(job.project_id, kind, name) for kind, name in noted.get("touched", []))}


def receipt(erasure: Erasure) -> dict[str, Any]:
    """An erase as the API shows it: how far it is, and what was removed and what could not be."""
    job = erasure.job
    done = erasure.completed_at is not None
    return {
        "erasure_id": str(erasure.erasure_id),
        "user_id": erasure.user_id,
        "status": "completed" if done or job is None else job.state,
        "reason": None if done or job is None else job.reason or None,
        "accepted_at": erasure.accepted_at,
        "emptied_at": erasure.emptied_at,
        "completed_at": erasure.completed_at,
        "looked_again_at": erasure.looked_again_at,
        "removed": erasure.removed,
        "remains": erasure.remains if done else [],
    }


def _under_way(user: Pin, lane: int) -> Erasure | None:
    """The erase that has not emptied Mem0 yet, unless something was accepted after it."""
    last = Job.objects.filter(lane_id=lane).order_by("number").last()
    if last is None or last.state == "completed":
        return None
    if Session.objects.filter(project_id=user.project, user_id=user.id).exists():
        return None
    return Erasure.objects.filter(job=last).first()


def _begin(made: Write, policy: Policy, lane: int) -> Erasure:
    """The tombstone, and what it ends, in the caller's transaction."""
    user = made.scope.pin
    before = Job.objects.filter(lane_id=lane).exclude(kind=ERASE)
    made = replace(made, payload=_named(before))
    lately = Q(completed_at=None) | Q(completed_at__gt=Now() - timedelta(seconds=settings.L1_TTL_SECONDS))
    texts = list(_written(before.filter(lately)))  # vectors of earlier ones have expired
    removed, vectors = forget(user, sessions=True)
    removed["jobs"] = before.filter(state__in=UNFINISHED).count()
    gone: dict[str, Any] = {"payload": None, "payload_bytes": 0, "results": [], "failed": [], "error": ""}
    gone |= {"reconcile_at": None}
    IdempotencyRecord.objects.filter(job__in=before).update(body_digest=ERASED)
    before.filter(state="completed").update(**gone)
    before.exclude(state="completed").update(
        **gone, state="failed", reason=ERASED, completed_at=Now(), dismissed_at=Now()
    )
    job = write.insert(made, policy)
    vectors = sorted({*vectors, *vector_keys(user.project, texts)})
    return Erasure.objects.create(
        project_id=user.project, user_id=user.id, job=job, removed=dict(removed), vector_keys=vectors
    )


def _named(jobs: QuerySet[Job]) -> dict[str, Any]:
    """Under which agents and runs the user's writes that are on their way may show (PROTOCOL B5, C1)."""
    coming = jobs.filter(OPEN | Q(reconcile_at__isnull=False)).order_by()
    scopes = coming.values_list("project_id", "user_id", "agent_id", "run_id").distinct()[: MOST_PINS + 1]
    found = {(pin.kind, pin.id) for ids in scopes for pin in Scope(*ids).pins()}
    everyone = len(found) > MOST_PINS
    return {"everyone": everyone, "touched": [] if everyone else sorted(found)}


def _written(jobs: QuerySet[Job]) -> Iterator[str]:
    """The texts of jobs: what they were to write, and what Mem0 made of it."""
    for payload, results in jobs.values_list("payload", "results").iterator():
        asked = payload or {}
        yield from (fact["text"] for fact in asked.get("memories", ()))
        yield from (message["content"] for message in asked.get("messages", ()))
        if text := asked.get("text"):
            yield text
        yield from (item["memory"] for item in results if item["memory"])


def _texts(user: Pin, *, sessions: bool) -> Iterator[str]:
    """The texts that were embedded for the user's rows."""
    rows = SnapshotMemory.objects.filter(snapshot__project_id=user.project, snapshot__user_id=user.id)
    yield from rows.values_list("text", flat=True)
    if sessions:
        of = Session.objects.filter(project_id=user.project, user_id=user.id)
        yield from Message.objects.filter(session__in=of).values_list("content", flat=True)
        yield from Tier.objects.filter(session__in=of).values_list("text", flat=True)
