"""Who may work on a lane: one process at a time, under a lease and a rising fence (PROTOCOL A2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Now
from django.db.models.lookups import LessThanOrEqual

from memory import clock, identity
from memory.clock import Deadline
from memory.errors import DatabaseUnavailable
from memory.models import Job, Lane
from memory.write import ERASE

AWAY = (OperationalError, InterfaceError, DatabaseUnavailable)
"""PostgreSQL is not there: nothing can be recorded, nor is it a fault of the job's."""
SENDABLE = ("pending", "processing")
LOOK_DUE = Q(state__in=("stored", "completed", "failed"), reconcile_at__lte=Now()) & ~Q(kind=ERASE, state="stored")
"""Jobs whose second copies are to be looked for now."""
_DUE = Job.objects.filter(Q(state__in=SENDABLE, next_attempt_at__lte=Now()) | LOOK_DUE, lane=OuterRef("pk"))
_FIRST = Job.objects.filter(lane=OuterRef("pk"), state__in=SENDABLE).order_by("number").values("next_attempt_at")[:1]
_LOOK = Job.objects.filter(LOOK_DUE, lane=OuterRef("pk"))


class LaneLost(Exception):
    """The lease ran out or another process took the lane over: nothing more may be sent or recorded."""


class JobEnded(Exception):
    """The job was ended with its user, who is being erased (PROTOCOL D): it may not be sent, nor its results kept."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A lane held under a lease by this fence."""

    lane: int
    fence: int


def with_work() -> QuerySet[Lane]:
    """The lanes that something can be done for now: a job that is due waits for an earlier one that is not
    (PROTOCOL A3)."""
    can_be_sent = LessThanOrEqual(Subquery(_FIRST), Now())
    return Lane.objects.filter(Exists(_DUE)).filter(can_be_sent | Exists(_LOOK))  # the first finds few, by an index


def has_work(lane_id: int) -> bool:
    """Whether this lane is among them: most messages of a backlog come after the work was done."""
    return with_work().filter(pk=lane_id).exists()


def claim(lane_id: int) -> Hold | None:
    """Take the lane under a new fence; None while another holds its lease."""
    claimed = Lane.objects.filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()), pk=lane_id).update(
        fence=F("fence") + 1,
        holder=identity.process(),
        lease_until=_lease_end(),
    )
    if not claimed:
        return None
    return Hold(lane_id, Lane.objects.values_list("fence", flat=True).get(pk=lane_id))


def release(hold: Hold) -> None:
    """Give the lane back, if it is still this hold's."""
    Lane.objects.filter(pk=hold.lane, fence=hold.fence).update(lease_until=None, holder="", woken_at=None)


def renew(hold: Hold, timeout: float) -> float:
    """Renew the lease; the moment on `clock.now()` before which a call of `timeout` seconds must begin."""
    began = clock.now()
    if not Lane.objects.filter(pk=hold.lane, fence=hold.fence).update(lease_until=_lease_end()):
        raise LaneLost
    return began + settings.LANE_LEASE_SECONDS - timeout


def look_deadline() -> Deadline:
    """How long one look at what Mem0 holds may take."""
    return Deadline.after(settings.MEM0_LOOK_TIMEOUT_SECONDS)


def assert_held(hold: Hold, job: Job | None = None) -> None:
    """Inside a transaction: nobody has taken the lane over, nor will before the commit, and no erase has ended the job
    (PROTOCOL D). The lock lets jobs that refer to the lane be inserted: their transactions hold the pins that this one
    is about to lock. An erase locks the lane before them."""
    if not Lane.objects.select_for_update(no_key=True).filter(pk=hold.lane, fence=hold.fence).exists():
        raise LaneLost
    if job is not None and not Job.objects.filter(pk=job.pk, state__in=SENDABLE).exists():
        raise JobEnded


def note_removing(job: Job, hold: Hold) -> None:
    """Record that copies of what the job stored are about to go: whoever looks next moves the version, though it may
    find nothing left to remove (PROTOCOL B2)."""
    with transaction.atomic():
        assert_held(hold)
        Job.objects.filter(pk=job.pk).update(removing=True)


def wait(job: Job, hold: Hold, seconds: float, reason: str) -> bool:
    """Let the lane wait, always False: an outage uses up no attempt (PROTOCOL A2)."""
    with transaction.atomic():
        assert_held(hold, job)
        Job.objects.filter(pk=job.pk).update(
            next_attempt_at=Now() + timedelta(seconds=seconds),
            state="pending" if not job.results else "processing",
            reason=reason,
        )
    return False


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LANE_LEASE_SECONDS)


def next_job(lane_id: int) -> Job | None:
    """The lane's first unsent job if it is due: a later one never overtakes it (PROTOCOL A3)."""
    first = (
        Job.objects.filter(lane_id=lane_id, state__in=SENDABLE)
        .order_by("number")
        .annotate(due=Q(next_attempt_at__lte=Now()))
        .first()
    )
    return first if first is not None and first.due else None
