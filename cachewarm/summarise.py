"""L4 → L3: read a user's memories, embed what is new, rebuild the summaries, save."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from cachewarm import topics as topic_rows
from memory import clock, db, metrics, stack, versions
from memory.backends import gate
from memory.backends.filters import storable
from memory.clock import Deadline
from memory.errors import OriginError
from memory.layers import l3_rows
from memory.layers.l3_summaries import Known, Reading, Summary, embed, model
from memory.models import Job
from memory.models.jobs import UNFINISHED
from memory.tenancy.projects import policy as policy_of
from memory.types import Listing, Memory, Scope, Version

log = logging.getLogger(__name__)

RECENT = 20
"""Memories shown as recent activity."""
MOST_LISTED = 2000
"""Memories that are in hand at a time, and one listing more: some 10 MB, and within a lease to embed if all are new."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the step did: the version it read, whether L3 now stands there, whether anything differed."""

    version: int
    saved: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A user's version, what stands and what Mem0 has, read in this order (PROTOCOL B8)."""

    scope: Scope
    version: Version
    known: Known | None
    listing: Listing


def summarise(scopes: Sequence[Scope], pace: Callable[[], None] = lambda: None) -> dict[Scope, Outcome | OriginError]:
    """Bring L3 up to Mem0, which is asked once a user, after `pace()`; where that failed, why. An overtaken reading is
    still saved if newer than what L3 holds (PROTOCOL C4).

    EmbedderError, DatabaseUnavailable: of whom nothing was saved, what stood before is kept.
    """
    outcomes: dict[Scope, Outcome | OriginError] = {}
    for group in _listed(scopes, pace, outcomes):
        moved = [one.scope for one in group if _differs_behind_our_back(one)]
        for scope in moved:
            _move(scope)
        if moved:
            outcomes |= summarise(moved, pace)
        outcomes |= _saved([one for one in group if one.scope not in outcomes])
    return outcomes


def _listed(
    scopes: Sequence[Scope], pace: Callable[[], None], failed: dict[Scope, Outcome | OriginError]
) -> Iterator[list[Listed]]:
    """Users a few at a time, as many as MOST_LISTED allows."""
    current, known = versions.stored_each([scope.pin for scope in scopes]), stack.L3.known(scopes)
    group: list[Listed] = []
    size = 0
    for scope in scopes:
        pace()
        upstream = stack.backend(policy_of(scope.project))
        db.release()
        try:
            with gate.warming():
                listing = upstream.list(scope, Deadline.after(settings.MEM0_REST_API_TIMEOUT))
        except OriginError as error:
            failed[scope] = error
            continue
        group.append(Listed(scope, current[scope.pin], known.get(scope), listing))
        size += len(listing.memories)
        if size >= MOST_LISTED:
            yield group
            group, size = [], 0
    yield group


def _saved(group: Sequence[Listed]) -> dict[Scope, Outcome]:
    made_by, asked = model(), {project: topic_rows.of(project) for project in {one.scope.project for one in group}}
    digests = {project: topic_rows.digest(topics) for project, topics in asked.items()}
    same, changed = {}, {}
    for one in group:
        memories = [memory for memory in one.listing.memories if storable([memory.text, memory.metadata])]
        complete = one.listing.complete and len(memories) == len(one.listing.memories)
        seen = l3_rows.fingerprint(memories)
        if one.known is not None and one.known.stands_for(seen, complete, made_by, digests[one.scope.project]):
            same[one.scope] = one.version.number
        else:
            changed[one.scope] = Reading(one.version.number, complete, memories, {}, made_by, seen)
    with transaction.atomic():
        confirmed = stack.L3.confirm(same) if same else set()
    outcomes = {scope: Outcome(version, scope in confirmed, changed=False) for scope, version in same.items()}
    return outcomes | _replaced(changed, {one.scope: one.known for one in group}, asked, digests)


def _replaced(
    readings: Mapping[Scope, Reading],
    known: Mapping[Scope, Known | None],
    asked: Mapping[int, Sequence[topic_rows.Asked]],
    digests: Mapping[int, str],
) -> dict[Scope, Outcome]:
    whole: dict[Scope, tuple[Reading, Summary]] = {}
    for project, topics in asked.items():
        of_project = {scope: reading for scope, reading in readings.items() if scope.project == project}
        vectors = _vectors(project, of_project, known)
        for scope, reading in of_project.items():
            complete = replace(reading, vectors=vectors)
            whole[scope] = complete, _summary(project, topics, complete, digests[project])
    with transaction.atomic():
        saved = stack.L3.save(whole) if whole else set()
    return {scope: Outcome(reading.version, scope in saved, changed=True) for scope, reading in readings.items()}


def _differs_behind_our_back(one: Listed) -> bool:
    """Whether Mem0 holds something else than L3 at the very same version: written by others (PROTOCOL C5).

    Not so while a job of ours may be half done: its own end will move the version. Jobs are looked at before the
    version, so a job that ended in between shows as a moved version.
    """
    scope, version, known = one.scope, one.version, one.known
    if known is None or known.version != version.number or not known.complete or not one.listing.complete:
        return False
    if not known.differs(one.listing.memories):
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


def _vectors(
    project: int, readings: Mapping[Scope, Reading], known: Mapping[Scope, Known | None]
) -> Mapping[bytes, bytes]:
    """A vector for every text: those that stand, made by the same embedder, and new ones for new texts."""
    if not any(reading.embedder for reading in readings.values()):
        return {}
    alike = [
        scope
        for scope, reading in readings.items()
        if (stands := known.get(scope)) is not None and stands.embedder == reading.embedder
    ]
    stand = {key: made for kept in stack.L3.vectors(alike).values() for key, made in kept.items()} if alike else {}
    said = [memory.text for reading in readings.values() for memory in reading.memories]
    new = [text for text in said if l3_rows.text_key(text) not in stand]
    db.release()
    return {**stand, **embed(project, new)}


def _summary(project_id: int, asked: Sequence[topic_rows.Asked], reading: Reading, topics_digest: str) -> Summary:
    today = clock.wall().date().isoformat()
    live = [memory for memory in reading.memories if not memory.expiration_date or memory.expiration_date >= today]
    rows = l3_rows.rankable(live, [reading.vectors.get(l3_rows.text_key(memory.text)) for memory in live])
    told = list(map(_row, live))
    shown = {
        topic.name: [{**told[index], "score": round(score, 4)} for index, score in found]
        for topic, found in zip(asked, topic_rows.belonging(asked, project_id, rows), strict=True)
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
