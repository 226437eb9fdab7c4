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
    """Hand over a session's turns that are due to extraction, compress the older ones, and embed the newest.
    Extraction comes first: a compression that fails holds up no memory."""
    extracted = lifecycle.extract(session_pk)
    done = f"{tiers.compress(session_pk)}, {extracted} extractions"
    search.warm(session_pk)
    return done


@shared_task(name="memory.sweep")
def sweep() -> str:
    """Hand over what is due and nobody works on."""
    return f"woken {upkeep.sweep()}"
