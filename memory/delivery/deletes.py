"""Deletes by user, agent or run: what they wait for and whose answers they change (PROTOCOL A3, B5).

One is delivered in the lane of its first id, as any write. What it deletes may have come through other lanes and belong
to other users: it waits for what was accepted before it under its ids, what was accepted after waits for it, and it
notes whom it touches before it is sent, as half way through nobody could tell any more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from memory import db, erase, write
from memory.backends.base import Backend
from memory.clock import Deadline
from memory.delivery import lanes
from memory.delivery.lanes import SENDABLE, Hold
from memory.erase import MOST_PINS
from memory.errors import OriginError, OriginNotFound, OriginUnavailable
from memory.models import Job
from memory.models.jobs import OPEN
from memory.types import Listing, Pin, Scope, Stored
from memory.write import DELETE_ALL

MOST_RESULTS = 1000


def blocked(job: Job) -> bool:
    """Whether a job of lower number has to end first: one in another lane (PROTOCOL A3), or one that stored what this
    one deletes or changes (C1). Waiting only ever for lower numbers, no two jobs wait for each other."""
    target = write.scope(job)
    if _stored_lately(job, target).exists():
        return True
    lower = Job.objects.filter(project_id=job.project_id, number__lt=job.number, state__in=SENDABLE)
    elsewhere = lower.exclude(lane_id=job.lane_id)
    if job.kind == DELETE_ALL:
        return elsewhere.filter(**target.ids()).exists()
    if target.agent_id is None and target.run_id is None:
        return False  # a delete of what only its own user has is in its own lane
    named = (_names("agent_id", target.agent_id), _names("run_id", target.run_id))
    return elsewhere.filter(*named, kind=DELETE_ALL, user_id=None).exists()


def _stored_lately(job: Job, target: Scope) -> QuerySet[Job]:
    """Jobs whose facts this one deletes or changes while readers may still be shown them as pending: done now, what was
    is among the pending and nowhere else."""
    lower = Job.objects.filter(project_id=job.project_id, number__lt=job.number, **target.ids())
    stored = lower.filter(state="stored", kind__in=("add", "extract"))
    if job.kind in ("update", "delete"):
        return stored.filter(results__contains=[{"id": job.memory_id}])
    return stored if job.kind == DELETE_ALL else stored.none()


def note(job: Job, listing: Listing) -> None:
    """Add to the job's payload whose memories the listing holds; after a second attempt it is those of both."""
    payload: dict[str, Any] = job.payload or {}
    touched = {(kind, name) for kind, name in payload.get("touched", [])}
    deleted = dict.fromkeys(payload.get("deleted", []))
    for memory in listing.memories:
        ids = Scope(job.project_id, memory.user_id, memory.agent_id, memory.run_id).pins()
        touched.update((pin.kind, pin.id) for pin in ids)
        deleted[memory.id] = None
    everyone = payload.get("everyone", False) or not listing.complete or len(touched) > MOST_PINS
    job.payload = {
        "everyone": everyone,
        "touched": [] if everyone else sorted(touched),
        "deleted": list(deleted)[:MOST_RESULTS],
        "listed": max(payload.get("listed", 0), len(listing.memories)),
    }


def note_touched(job: Job, hold: Hold, backend: Backend) -> OriginError | None:
    """Keep whom it touches, before it is sent (PROTOCOL B5); why that could not be told."""
    db.release()
    try:
        listing = backend.list(write.scope(job), lanes.look_deadline())
    except OriginError as error:
        return error
    note(job, listing)
    with transaction.atomic():
        lanes.assert_held(hold, job)
        Job.objects.filter(pk=job.pk).update(payload=job.payload)
        if job.kind == write.ERASE:
            erase.name_vectors(job, [memory.text for memory in listing.memories])
    return None


def call(job: Job, backend: Backend, deadline: Deadline) -> list[Stored]:
    """Delete while that leaves fewer, and look whether all are gone: Mem0 deletes by listing, and a listing may be cut.
    OriginError."""
    target = write.scope(job)
    backend.delete_all(target, deadline)
    try:
        before: set[str] = set()
        while left := {memory.id for memory in backend.list(target, deadline).memories}:
            if left == before:
                raise OriginUnavailable("Mem0 has not deleted all of them yet")
            before = left
            backend.delete_all(target, deadline)
        if job.kind == write.ERASE:
            backend.forget(target, deadline)
    except OriginError as error:
        error.sent = True
        raise
    return [Stored(memory_id, "", "DELETE") for memory_id in (job.payload or {}).get("deleted", [])]


def one(backend: Backend, memory_id: str) -> None:
    """Remove one memory; none there is as good. OriginError."""
    with suppress(OriginNotFound):
        backend.delete(memory_id, lanes.look_deadline())


def pins(job: Job) -> list[Pin] | None:
    """Every id whose answers change; None when that may be anyone's. Call in the transaction that moves them.

    A memory in no listing can still be on its way, from a job under these ids that is open or is looked for again.
    """
    noted: dict[str, Any] = job.payload or {}
    if noted.get("everyone"):
        return None
    target = write.scope(job)
    found = {*target.pins(), *(Pin(job.project_id, kind, name) for kind, name in noted.get("touched", []))}
    coming = Job.objects.filter(OPEN | Q(reconcile_at__isnull=False), project_id=job.project_id, **target.ids())
    for ids in coming.order_by().values_list("user_id", "agent_id", "run_id").distinct()[: MOST_PINS + 1]:
        found.update(Scope(job.project_id, *ids).pins())
    return None if len(found) > MOST_PINS else list(found)


def _names(field: str, value: str | None) -> Q:
    """A delete that leaves the id open, or names this one."""
    return Q(**{field: None}) | Q(**{field: value}) if value is not None else Q(**{field: None})
