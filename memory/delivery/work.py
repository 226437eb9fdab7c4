"""A lane's jobs brought to their ends, in order: send, wait, or look for what became of an attempt (PROTOCOL A2–A6)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from memory import stack, versions, write
from memory.backends.base import Backend
from memory.delivery import attempts, completion, deletes, erasing, lanes, reconcile, settle
from memory.delivery.lanes import Hold, JobEnded, LaneLost
from memory.delivery.settle import UNRESOLVED
from memory.errors import OriginError
from memory.models import Attempt, Job
from memory.tenancy.projects import Policy, policy

log = logging.getLogger(__name__)

ORDERED_SECONDS = 0.5
"""Until a job that waits for one of another lane looks again."""


def deliver(lane_id: int) -> str:
    """Work on a lane for a bounded slice; says how it ended. Whoever calls it, one process at a time gets the lane."""
    if not lanes.has_work(lane_id):
        return "done 0"
    hold = lanes.claim(lane_id)
    if hold is None:
        return "held"
    done = 0
    try:
        reconcile.due(hold)
        while done < settings.LANE_SLICE_JOBS and (job := lanes.next_job(lane_id)) is not None:
            if not _end(job, hold):
                return "waiting"
            done += 1
    except LaneLost:
        log.warning("lane lost", extra={"lane": lane_id, "outcome": "lost"})
        return "lost"
    finally:
        lanes.release(hold)
    if done == settings.LANE_SLICE_JOBS:
        write.wake(lane_id)
    return f"done {done}"


def _end(job: Job, hold: Hold) -> bool:
    """`_work`; a job that ended with its user is at its end, and one that meets a fault of ours waits a while: it would
    be tried again at each sweep."""
    try:
        return _work(job, hold)
    except JobEnded:
        log.info("job ended with its user", extra={"job": str(job.job_id), "outcome": "erased"})
        return True
    except (LaneLost, *lanes.AWAY):
        raise
    except Exception:
        log.exception("delivery failed", extra={"job": str(job.job_id), "reason": "internal_error"})
        return lanes.wait(job, hold, settings.RETRY_MAX_SECONDS, "internal_error")


def _work(job: Job, hold: Hold) -> bool:
    """Bring one job to its end, or record when to go on; False when the lane has to wait."""
    if deletes.blocked(job):
        return lanes.wait(job, hold, ORDERED_SECONDS, "ordered")
    rules = policy(job.project_id)
    backend = stack.backend(rules)
    if job.kind == write.ERASE:
        return erasing.work(job, hold, backend)
    open_attempts = list(job.tries.filter(outcome__in=UNRESOLVED).select_related("job"))
    if open_attempts and (ended := _resolved(job, hold, backend, rules, open_attempts)) is not None:
        return ended
    if job.kind == write.DELETE_ALL and (unlisted := deletes.note_touched(job, hold, backend)) is not None:
        return lanes.wait(job, hold, attempts.backoff(job, unlisted), unlisted.code)
    return _send_all(job, hold, backend, rules)


def _resolved(job: Job, hold: Hold, backend: Backend, rules: Policy, unresolved: Sequence[Attempt]) -> bool | None:
    """What came of attempts of which nobody knows: whether the job has come to its end with them, False when the lane
    has to wait for that, None when there is more to send."""
    if (seconds := settle.settling(unresolved)) > 0:
        return lanes.wait(job, hold, seconds, "settling")
    try:
        known = settle.resolve(job, hold, backend) or rules.on_unknown == "retry"
    except OriginError as error:
        return lanes.wait(job, hold, attempts.backoff(job, error), error.code)
    if not known:
        return completion.finish(job, hold, rules, reason="outcome_unknown")
    if attempts.exhausted(job) and attempts.parts(job, backend):
        log.warning("attempts used up", extra={"job": str(job.job_id), "reason": "attempts_exhausted"})
        return completion.finish(job, hold, rules, reason="attempts_exhausted")
    return None


def _send_all(job: Job, hold: Hold, backend: Backend, rules: Policy) -> bool:
    """Send what is neither stored nor refused yet; False when the lane has to wait."""
    for part in attempts.parts(job, backend):
        went_wrong = attempts.send(job, part, hold, backend)
        if went_wrong is None:
            continue
        if went_wrong.sent:
            return _unknown(job, hold)
        if went_wrong.retryable:
            return lanes.wait(job, hold, attempts.backoff(job, went_wrong), went_wrong.code)
        job.failed = [*job.failed, *({"index": index, "error": str(went_wrong)} for index in part.indexes)]
    return completion.finish(job, hold, rules)


def _unknown(job: Job, hold: Hold) -> bool:
    """An attempt may have taken effect: the version moves (PROTOCOL B2), the lane waits for it to settle.

    No warm is asked for: the job's end does that, and an upstream in trouble need not be searched for it.
    """
    with transaction.atomic():
        lanes.assert_held(hold, job)
        moved = completion.move(job)
        Job.objects.filter(pk=job.pk).update(
            next_attempt_at=Now() + timedelta(seconds=settle.settle_seconds(job)),
            reason="settling",
            reconcile_at=settle.look_again_at(job),
        )
    versions.publish(moved)
    return False
