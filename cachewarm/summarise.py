"""L4 → L3: read a user's memories, embed what is new, rebuild the summaries, save."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from cachewarm import topics as topic_rows
from memory import clock, db, metrics, stack, versions
from memory.backends import gate
from memory.backends.filters import storable
from memory.clock import Deadline
from memory.layers import l3_rows
from memory.layers.l3_summaries import Known, Reading, Summary, embed, model
from memory.models import Job
from memory.models.jobs import UNFINISHED
from memory.tenancy.projects import policy as policy_of
from memory.types import Listing, Memory, Scope, Version

log = logging.getLogger(__name__)

RECENT = 20
"""Memories shown as recent activity."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the step did: the version it read, whether L3 now stands there, whether anything differed."""

    version: int
    saved: bool
    changed: bool


def summarise(project_id: int, user_id: str) -> Outcome:
    """Bring L3 up to Mem0. An overtaken reading is still saved if newer than what L3 holds (PROTOCOL C4).

    OriginError, EmbedderError, DatabaseUnavailable: what stood before is kept.
    """
    scope = Scope(project_id, user_id)
    version, known, listing = _read(scope)
    if known is not None and _differs_behind_our_back(scope, version, known, listing):
        _move(scope)
        version, known, listing = _read(scope)
    memories = [memory for memory in listing.memories if storable([memory.text, memory.metadata])]
    complete = listing.complete and len(memories) == len(listing.memories)
    asked = topic_rows.of(project_id)
    fingerprint, topics_digest, made_by = l3_rows.fingerprint(memories), topic_rows.digest(asked), model()
    if known is not None and known.stands_for(fingerprint, complete, made_by, topics_digest):
        with transaction.atomic():
            return Outcome(version.number, stack.L3.confirm(scope, version.number), changed=False)
    vectors = _vectors(scope, memories, known, made_by)
    reading = Reading(version.number, complete, memories, vectors, made_by, fingerprint)
    summary = _summary(project_id, asked, reading, topics_digest)
    with transaction.atomic():
        return Outcome(version.number, stack.L3.save(scope, reading, summary), changed=True)


def _read(scope: Scope) -> tuple[Version, Known | None, Listing]:
    """Version, what stands, what Mem0 has: in that order (PROTOCOL B8)."""
    version = versions.stored(scope.pin)
    known = stack.L3.known(scope)
    upstream = stack.backend(policy_of(scope.project))
    db.release()
    with gate.warming():
        listing = upstream.list(scope, Deadline.after(settings.MEM0_REST_API_TIMEOUT))
    return version, known, listing


def _differs_behind_our_back(scope: Scope, version: Version, known: Known, listing: Listing) -> bool:
    """Whether Mem0 holds something else than L3 at the very same version: written by others (PROTOCOL C5).

    Not so while a job of ours may be half done: its own end will move the version. Jobs are looked at before the
    version, so a job that ended in between shows as a moved version.
    """
    if known.version != version.number or not known.complete or not listing.complete:
        return False
    if not known.differs(listing.memories):
        return False
    sent = Job.objects.filter(Q(user_id=scope.user_id) | Q(user_id=None), project_id=scope.project, attempts__gt=0)
    if sent.filter(state__in=UNFINISHED).exists():
        return False
    return versions.stored(scope.pin).number == version.number


def _move(scope: Scope) -> None:
    """Nothing computed before what others wrote may be served, not even as stale."""
    with transaction.atomic():
        moved = versions.move(scope.pins(), floor=True)
    versions.publish(moved)
    metrics.count("rebuild_differences", project=scope.project)
    log.warning("Mem0 was changed by others", extra={"user_id": scope.user_id, "version": moved[0].number})


def _vectors(scope: Scope, memories: Sequence[Memory], known: Known | None, made_by: str) -> Mapping[bytes, bytes]:
    """A vector for every text: those that stand, made by the same embedder, and new ones for new texts."""
    if not made_by:
        return {}
    stand = stack.L3.vectors(scope) if known is not None and known.embedder == made_by else {}
    new = [memory.text for memory in memories if l3_rows.text_key(memory.text) not in stand]
    db.release()
    return {**stand, **embed(scope.project, new)}


def _summary(project_id: int, asked: Sequence[topic_rows.Asked], reading: Reading, topics_digest: str) -> Summary:
    today = clock.wall().date().isoformat()
    live = [memory for memory in reading.memories if not memory.expiration_date or memory.expiration_date >= today]
    rows = l3_rows.rankable(live, [reading.vectors.get(l3_rows.text_key(memory.text)) for memory in live])
    shown = {
        topic.name: [
            {**_row(live[index]), "score": round(score, 4)}
            for index, score in topic_rows.belonging(topic, project_id, rows)
        ]
        for topic in asked
    }
    newest = sorted(live, key=lambda memory: (memory.created_at or "", memory.id), reverse=True)
    return Summary(
        topics=shown,
        favorites={topic.name: shown[topic.name] for topic in asked if topic.group == topic_rows.FAVORITE},
        recent=[{**_row(memory), "created_at": memory.created_at} for memory in newest[:RECENT]],
        counts=_counts(reading.memories, live),
        topics_digest=topics_digest,
    )


def _row(memory: Memory) -> dict[str, Any]:
    row = {"id": memory.id, "memory": memory.text}
    return {**row, "expiration_date": memory.expiration_date} if memory.expiration_date else row


def _counts(memories: Sequence[Memory], live: Sequence[Memory]) -> dict[str, int]:
    return {
        "memories": len(live),
        "expired": len(memories) - len(live),
        "agents": len({memory.agent_id for memory in live} - {None}),
        "runs": len({memory.run_id for memory in live} - {None}),
    }
