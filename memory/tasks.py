"""Celery's doors to the write path: ids in, a short word out."""

from __future__ import annotations

from celery import shared_task

from memory import delivery, upkeep
from memory.stm import lifecycle, search, tiers


@shared_task(name="memory.deliver")
def deliver(lane_id: int) -> str:
    """Work on a lane for a bounded slice."""
    return delivery.deliver(lane_id)


@shared_task(name="memory.keep_session")
def keep_session(session_pk: int) -> str:
    """Compress a session's older turns, hand over those that are due to extraction, and embed the newest."""
    done = f"{tiers.compress(session_pk)}, {lifecycle.extract(session_pk)} extractions"
    search.warm(session_pk)
    return done


@shared_task(name="memory.sweep")
def sweep() -> str:
    """Hand over what is due and nobody works on."""
    return f"woken {upkeep.sweep()}"
