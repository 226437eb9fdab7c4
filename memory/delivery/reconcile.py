"""Looking again, after an unknown outcome, for second copies of what a job reported (PROTOCOL A7)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from memory import metrics, stack, versions, write
from memory.delivery import attempts, completion, deletes, erasing, lanes, settle
from memory.delivery.lanes import Hold, LaneLost
from memory.errors import OriginError
from memory.models import Job
from memory.tenancy.projects import policy
from memory.text import text_hash
from memory.types import Memory

log = logging.getLogger(__name__)


def due(hold: Hold) -> None:
    """Look again for what of the lane is due."""
    jobs = Job.objects.filter(lanes.LOOK_DUE, lane_id=hold.lane)
    for job in jobs.order_by("number")[: settings.LANE_SLICE_JOBS]:
        look = erasing.look_again if job.kind == write.ERASE else _reconcile
        try:
            look(job, hold)
        except (LaneLost, *lanes.AWAY):
            raise
        except Exception:  # a fault of ours: the lane's jobs do not wait for it
            log.exception("look failed", extra={"job": str(job.job_id), "reason": "internal_error"})
            put_off = Now() + timedelta(seconds=settings.RETRY_MAX_SECONDS)
            Job.objects.filter(pk=job.pk).update(reconcile_at=put_off)


def _reconcile(job: Job, hold: Hold) -> None:
    """Remove second copies of what the job reported (PROTOCOL A7). The version moves with whatever may have gone, also
    where this look or the one before it broke off (B2)."""
    backend = stack.backend(policy(job.project_id))
    texts = [fact["text"] for fact in (job.payload or {}).get("memories", [])]
    touched, again, outcome = job.removing, None, "clean"
    try:
        found = settle.marked(job, hold, backend, texts)
        outcome = "clean" if found.complete else "cut"
        surplus = _surplus(job, found.memories)
        if surplus:
            lanes.note_removing(job, hold)
        for memory in surplus:
            lanes.renew(hold, settings.MEM0_LOOK_TIMEOUT_SECONDS)
            touched, outcome = True, "surplus"
            deletes.one(backend, memory.id)
            metrics.count("surplus_removed", project=job.project_id)
    except OriginError as error:
        again, outcome = Now() + timedelta(seconds=attempts.backoff(job, error)), "error"
    with transaction.atomic():
        lanes.assert_held(hold)
        moved = versions.move(write.scope(job).pins(), floor=True) if touched else []
        completion.tell(moved)
        Job.objects.filter(pk=job.pk).update(reconcile_at=again, removing=False)
    versions.publish(moved)
    metrics.count("reconciles", outcome=outcome)


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
