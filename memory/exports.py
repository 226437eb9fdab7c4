"""What is kept of a user, line by line: for a person who asks for it, and for moving house."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import orjson
from django.db.models import Model, QuerySet

from memory import clock, db, read, stack, versions
from memory.clock import Deadline
from memory.layers.base import public
from memory.models import Feedback, Job, Message, Session, Tier
from memory.models.jobs import OPEN
from memory.tenancy.projects import Policy
from memory.types import Memory, Scope

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/x-ndjson"
ROWS = 500
CHUNK_BYTES = 1 << 16

Line = dict[str, Any]
Row = TypeVar("Row", bound=Model)


def user(scope: Scope, policy: Policy, deadline: Deadline, more: Iterable[Line] = ()) -> Iterator[Line]:
    """Everything kept of a user, and at the end how much that was: who finds no end has not everything.

    Mem0 is asked before the first line: OriginError, Overloaded.
    """
    waiting = list(
        _jobs(scope)
    )  # first, as in a search (PROTOCOL C1): what is stored meanwhile is in both, not in none
    found, _, complete = read.memories(scope, policy, deadline)
    return _user(
        scope, policy, found, complete, (_summary(scope, policy), _sessions(scope), waiting, _feedback(scope), more)
    )


def memories(found: Sequence[Memory]) -> Iterator[Line]:
    """Memories as lines, which an import takes."""
    for memory in found:
        shown = public(memory)
        yield {"type": "memory"} | {name: shown[name] for name in shown.keys() - {"score", "source", "pending"}}


def chunks(lines: Iterable[Line], **audited: Any) -> Iterator[bytes]:
    """JSON Lines in blocks. The log tells of it, whole or broken off. Whoever takes a block may take long over it, and
    holds no connection meanwhile (PROTOCOL E)."""
    counts: Counter[str] = Counter()
    held, size, outcome = [], 0, "broken off"
    try:
        for line in lines:
            counts[line["type"]] += 1
            held.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
            size += len(held[-1])
            if size >= CHUNK_BYTES:
                db.release()
                yield b"".join(held)
                held, size = [], 0
        db.release()
        yield b"".join(held)
        outcome = "whole"
    finally:
        log.info("exported", extra={**audited, "outcome": outcome, "lines": counts.total()})


def _user(
    scope: Scope, policy: Policy, found: Sequence[Memory], complete: bool, parts: Iterable[Iterable[Line]]
) -> Iterator[Line]:
    yield {"type": "export", "user_id": scope.user_id, "project": policy.slug, "at": clock.wall()}
    counts: Counter[str] = Counter()
    for part in (memories(found), *parts):
        for line in part:
            counts[line["type"]] += 1
            yield line
    yield {"type": "end", "complete": complete, "counts": dict(counts)}


def _summary(scope: Scope, policy: Policy) -> Iterator[Line]:
    floor = versions.current(scope.pin, policy.generation).floor
    held = stack.L3.snapshot(scope.project, scope.pin.id, floor)
    if held is not None:
        yield {"type": "summary"} | _of(held, "built_at", "topics", "recent", "counts")


def _sessions(scope: Scope) -> Iterator[Line]:
    for session in rows(Session.objects.filter(project_id=scope.project, user_id=scope.user_id)):
        yield {"type": "session"} | _of(session, "session_id", "turns", "started_at", "last_at")
        for message in rows(Message.objects.filter(session=session)):
            told = _of(message, "turn", "message_id", "role", "content", "metadata", "created_at")
            yield {"type": "message", "session_id": session.session_id} | told
        for tier in Tier.objects.filter(session=session):
            told = _of(tier, "name", "first", "last", "text", "made_by")
            yield {"type": "tier", "session_id": session.session_id} | told


def _jobs(scope: Scope) -> Iterator[Line]:
    """Writes that Mem0 does not have, with what they write."""
    for job in rows(Job.objects.filter(OPEN, project_id=scope.project, user_id=scope.user_id)):
        told = _of(job, "job_id", "kind", "state", "agent_id", "run_id", "memory_id", "payload", "accepted_at")
        yield {"type": "job"} | told


def _feedback(scope: Scope) -> Iterator[Line]:
    for one in rows(Feedback.objects.filter(project_id=scope.project, user_id=scope.user_id)):
        yield {"type": "feedback"} | _of(one, "memory_id", "feedback", "reason", "at")


def _of(row: Model, *names: str) -> Line:
    return {name: getattr(row, name) for name in names}


def rows(found: QuerySet[Row]) -> Iterator[Row]:
    """Rows in the order they came, a few at a time: without a cursor, which no pool in front of PostgreSQL keeps."""
    last = 0
    while page := list(found.filter(pk__gt=last).order_by("pk")[:ROWS]):
        yield from page
        last = page[-1].pk
