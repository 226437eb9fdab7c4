"""The steps of a warm joined: as a Celery chain for one user, or one after the other in this process."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence

from celery import Signature, chain
from django.db import Error as DatabaseError

from cachewarm import runs, steps
from cachewarm.models import WarmRun
from cachewarm.steps import Limits, Outcomes
from memory import outbox
from memory.errors import MemsvcError

log = logging.getLogger(__name__)

ENDED = frozenset({"superseded", "unchanged", "completed"})

Work = Callable[[Sequence[WarmRun]], Outcomes]


def of(run_id: uuid.UUID, seconds: float = 0) -> Signature:
    """The chain of one run: ids in the messages, never data; it starts after so many seconds."""
    from cachewarm import tasks  # tasks stand above this module

    first = tasks.warm_summaries.si(str(run_id))
    if seconds > 0:
        first = first.set(countdown=seconds)
    rest = (tasks.warm_results, tasks.warm_vectors, tasks.warm_record)
    return chain(first, *(task.si(str(run_id)) for task in rest))


def start(run_id: uuid.UUID, seconds: float = 0) -> None:
    """Hand a run to the workers; the sweeper does so again if the broker is away."""
    outbox.send(of(run_id, seconds))


def warm(project_id: int, user_id: str, reason: str) -> uuid.UUID:
    """Warm a user as soon as a worker is free: the id of the run."""
    due = runs.request(project_id, user_id, reason)
    start(due.run_id, due.seconds)
    return due.run_id


def sweep() -> int:
    """Start what is due and was not handed over, and what its worker left behind; how many runs."""
    for run in runs.abandoned():
        runs.fail(run, "worker_lost")
    ids = runs.due()
    for run_id in ids:
        start(run_id)
    return len(ids)


def begin(run_id: uuid.UUID) -> WarmRun | str:
    """The run, claimed; or why not. One that is not due yet is sent again for when it is."""
    run = runs.claim(run_id)
    if run is not None:
        return run
    left = runs.seconds_left(run_id)
    if left is None:
        return "ended"
    if left > 0:
        start(run_id, left)
        return "early"
    return "busy"  # whoever warms this user starts the next run at its end


def step(batch: Sequence[WarmRun], work: Work) -> list[str]:
    """Do one step of claimed runs and see to what follows from each outcome; a short word of how each ended. Where many
    fail together each is tried alone: one may be at fault."""
    try:
        outcomes = work(batch)
    except Exception as error:  # noqa: BLE001  (process border: whatever goes wrong is recorded and tried again)
        if len(batch) > 1:
            return [step([run], work)[0] for run in batch]
        outcomes = [error]
    said = ["failed" if isinstance(outcome, Exception) else outcome for outcome in outcomes]
    _ended([(run, word) for run, word in zip(batch, said, strict=True) if word in ENDED])
    for run, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Exception):
            _failed(run, outcome)
    return said


def run_here(batch: Sequence[WarmRun], allowed: Limits, first: Work | None = None) -> list[str]:
    """All steps of claimed runs in this process: of each the outcome of its last. `first` may stand in for the first
    step."""
    works: tuple[Work, ...] = (
        first or (lambda left: steps.summaries(left, allowed)),
        lambda left: steps.results(left, allowed),
        steps.vectors,
        steps.record,
    )
    said: dict[WarmRun, str] = {}
    left = list(batch)
    for work in works:
        said |= zip(left, step(left, work) if left else (), strict=True)
        left = [run for run in left if said[run] not in ENDED | {"failed"}]
    return [said[run] for run in batch]


def _ended(ended: Sequence[tuple[WarmRun, str]]) -> None:
    for run, outcome in runs.end(ended):
        if run.rebuild_id is not None:
            continue
        following = runs.next_of(run, at_once=outcome == "superseded")
        if following is None and outcome == "superseded" and run.reason != "write":
            following = runs.request(run.project_id, run.user_id, run.reason)
        if following is not None:
            start(following.run_id, following.seconds)


def _failed(run: WarmRun, error: Exception) -> None:
    code = error.code if isinstance(error, MemsvcError) else type(error).__name__
    if not isinstance(error, MemsvcError | DatabaseError):
        log.error("warm failed", exc_info=error, extra={"user_id": run.user_id, "step": run.step})
    again = runs.fail(run, code)
    if again is not None:
        start(again.run_id, again.seconds)
    elif run.rebuild_id is None and (following := runs.next_of(run, at_once=False)) is not None:
        start(following.run_id, following.seconds)
