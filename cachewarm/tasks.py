"""Celery's doors to warming: ids in, a short word out. The names are contracts."""

from __future__ import annotations

import uuid

from celery import shared_task

from cachewarm import chains, rebuild, runs, steps
from cachewarm.models import WarmRun


@shared_task(name="cachewarm.warm_summaries")
def warm_summaries(run_id: str) -> str:
    """L4 → L3."""
    run = chains.begin(uuid.UUID(run_id))
    if isinstance(run, str):
        return run
    if runs.already_warm(run):
        return _step(run, lambda batch: ["unchanged"])
    return _step(run, lambda batch: steps.summaries(batch, steps.limits()))


@shared_task(name="cachewarm.warm_results")
def warm_results(run_id: str) -> str:
    """L3 → L2."""
    run = _after(run_id, "L3")
    return _step(run, lambda batch: steps.results(batch, steps.limits()))


@shared_task(name="cachewarm.warm_vectors")
def warm_vectors(run_id: str) -> str:
    """L2 → L1."""
    run = _after(run_id, "L2")
    return _step(run, steps.vectors)


@shared_task(name="cachewarm.warm_record")
def warm_record(run_id: str) -> str:
    """Write down that the user is warm."""
    run = _after(run_id, "L1")
    return _step(run, steps.record)


@shared_task(name="cachewarm.run_proactive_caching_job")
def run_proactive_caching_job() -> str:
    """Rebuild every user's caches; beat's."""
    return rebuild.by_beat()


@shared_task(name="cachewarm.rebuild_batch")
def rebuild_batch(rebuild_id: int) -> str:
    """Some users of a rebuild, then the message for the next."""
    return rebuild.batch(rebuild_id)


def _step(run: WarmRun | None, work: chains.Work) -> str:
    return chains.step([run], work)[0] if run else "skipped"


def _after(run_id: str, step: str) -> WarmRun | None:
    """The run if it stands right after a step: an earlier one that ended the run ends its chain."""
    run = runs.running(uuid.UUID(run_id))
    return run if run is not None and run.step == step else None
