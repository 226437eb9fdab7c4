"""What was accepted and is not yet in Mem0 for certain: the pending set of a pin (PROTOCOL C1).

PostgreSQL holds it as jobs; Redis holds a leased copy by the rules of B6. It is read before the version: a job leaves
it only after its version is published, so that a fact is in the one or the other, never in neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any

import orjson
import redis
from django.db import Error as DatabaseError
from django.db import connection

from memory import keys, redis_wire, versions
from memory.errors import DatabaseUnavailable
from memory.models import Job
from memory.models.jobs import UNFINISHED
from memory.types import Pin, Scope, Version
from memory.versions import Taken

PREFIX = "pending-"
MOST_JOBS = 500
MOST_ITEMS = 200
MOST_MESSAGES = 100

_ID = re.compile(rf"{PREFIX}([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-[0-9]{{1,9}}", re.IGNORECASE)

# In SQL, as the first question of every user pays for them: put together by the ORM each time they cost ten times as
# much. What an open job is: memory/models/jobs.py. Each half reads the index of open jobs; what failed, however much,
# leaves room for what is on its way.
_JOBS = """
(SELECT * FROM memory_job WHERE state IN %s AND project_id = %s AND {kind}_id = %s ORDER BY number DESC LIMIT %s)
UNION ALL
(SELECT * FROM memory_job WHERE state = 'failed' AND dismissed_at IS NULL AND project_id = %s AND {kind}_id = %s
    ORDER BY number DESC LIMIT %s)
"""
_SAID = """
SELECT s.session_id, m.turn, m.content, m.metadata::text, m.created_at FROM memory_message m
JOIN memory_session s ON s.id = m.session_id JOIN memory_project p ON p.id = s.project_id
WHERE s.project_id = %s AND s.user_id = %s AND p.extract_on IN ('end', 'turns') AND m.turn > s.extracted
    AND m.role = 'user'
ORDER BY m.id DESC LIMIT %s
"""
_STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local left = redis.call('PTTL', KEYS[2])
if left <= 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', left)
return 1
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One fact or message on its way to Mem0; `failed` when it will not get there without a person. `kind` is its
    job's: what is added is stored as it is, what is extracted in other words."""

    job: str
    index: int
    text: str
    failed: bool
    accepted_at: str
    agent_id: str | None = None
    run_id: str | None = None
    user_id: str | None = None
    kind: str = "add"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expiration_date: str | None = None
    session: str = ""
    """Of a message that no job carries yet: its session; `job` is empty then and `index` its turn."""

    @property
    def id(self) -> str:
        """What it is called until Mem0 gives it an id of its own: `pending-JOB-INDEX`, or a message's own."""
        return f"{PREFIX}{self.job}-{self.index}" if self.job else message_id(self.session, self.index)


@dataclass(frozen=True, slots=True)
class Pending:
    """How many jobs of a pin are unfinished, MOST_JOBS at most, and what it has open: oldest first. Of more than
    MOST_ITEMS the newest are chosen, what failed after what is on its way."""

    jobs: int
    items: tuple[Item, ...]

    def of(self, scope: Scope) -> tuple[Item, ...]:
        """The items filed under every id of the scope."""
        if not self.items:
            return ()
        wanted = scope.ids().items()
        return tuple(item for item in self.items if all(getattr(item, name) == value for name, value in wanted))


NOTHING = Pending(0, ())
_NOTHING = orjson.dumps((0, []))


def current(pin: Pin, generation: int) -> Pending:
    """The pin's pending set, from Redis or else PostgreSQL. DatabaseUnavailable when neither can tell."""
    try:
        (taken,) = versions.take(_copied(pin, generation))
    except redis.RedisError:
        return stored(pin)
    if taken.copy is not None:
        return parse(taken.copy)
    found = stored(pin)
    with suppress(redis.RedisError):  # only the next reader pays: it asks PostgreSQL again
        redis_wire.run_each([_keeping(pin, found, generation, taken)])
    return found


def with_version(pin: Pin, generation: int) -> tuple[Pending, Version]:
    """`current`, and the version read after it (PROTOCOL C1), for whom CACHE had neither a moment ago: both tokens are
    taken together, before PostgreSQL is read, and both copies kept together. DatabaseUnavailable."""
    try:
        mine, number = versions.take(_copied(pin, generation), versions.copied(pin, generation))
    except redis.RedisError:
        return stored(pin), versions.shared(pin)
    if mine.copy is not None or number.copy is not None:
        return current(pin, generation), versions.current(pin, generation)
    found = stored(pin)
    version = versions.stored(pin)
    kept = [_keeping(pin, found, generation, mine), versions.keeping(version, generation, number)]
    with suppress(redis.RedisError):
        redis_wire.run_each(kept)
    return found, version


def stored(pin: Pin) -> Pending:
    """The pin's pending set as PostgreSQL has it."""
    # Messages before jobs: one that is handed over in between is found twice, which an answer says once, and not lost.
    try:
        said = _said(pin) if pin.kind == "user" else []
    except DatabaseError as error:
        raise DatabaseUnavailable("the pending set cannot be read") from error
    mine = (pin.project, pin.id, MOST_JOBS)
    try:
        found = list(Job.objects.raw(_JOBS.format(kind=pin.kind), (UNFINISHED, *mine, *mine)))
    except DatabaseError as error:
        raise DatabaseUnavailable("the pending set cannot be read") from error
    return Pending(sum(job.state != "failed" for job in found), (*_chosen(found), *said))


def changed(pins: Iterable[Pin], generation: int) -> None:
    """Let readers ask PostgreSQL again: call after the commit that accepted or ended a job, with the generation read
    after it too (`versions.generation`). Without Redis's confirmation the copy goes by itself within one lease."""
    with suppress(redis.RedisError):
        redis_wire.ask(*[("DEL", *_copied(pin, generation)) for pin in pins])


def parse(copy: bytes) -> Pending:
    """The set in a copy read from Redis."""
    if copy == _NOTHING:
        return NOTHING
    jobs, items = orjson.loads(copy)
    return Pending(jobs, tuple(Item(*item) for item in items))


def job_of(item_id: str) -> str | None:
    """The job in the id of a pending item; None for another id."""
    found = _ID.fullmatch(item_id)
    return found[1].lower() if found else None


def _copied(pin: Pin, generation: int) -> tuple[str, str]:
    return keys.pending(pin, generation), keys.pending_token(pin, generation)


def _keeping(pin: Pin, found: Pending, generation: int, taken: Taken) -> tuple[str, Sequence[str], Sequence[Any]]:
    return _STORE, _copied(pin, generation), (taken.token or "", _pack(found))


def _pack(found: Pending) -> bytes:
    items = [
        (
            *(item.job, item.index, item.text, item.failed, item.accepted_at, item.agent_id, item.run_id),
            *(item.user_id, item.kind, item.metadata, item.expiration_date, item.session),
        )
        for item in found.items
    ]
    return orjson.dumps((found.jobs, items), option=orjson.OPT_NON_STR_KEYS)


def _chosen(jobs: Iterable[Job]) -> list[Item]:
    chosen: list[tuple[int, list[Item]]] = []
    left = MOST_ITEMS
    for job in sorted(jobs, key=lambda job: (job.state == "failed", -job.number)):
        chosen.append((job.number, list(islice(_items(job), left))))
        left -= len(chosen[-1][1])
    return [item for _, items in sorted(chosen, key=itemgetter(0)) for item in items]


def _items(job: Job) -> Iterable[Item]:
    """What a job carries. Of a failed job that did arrive in part, the rest."""
    arrived = {item["index"] for item in job.results} if job.state == "failed" else set()
    for index, fact in _facts(job.kind, job.payload or {}):
        if index not in arrived:
            yield Item(
                str(job.job_id),
                index,
                fact["text"],
                job.state == "failed",
                job.accepted_at.isoformat(),
                job.agent_id,
                job.run_id,
                job.user_id,
                job.kind,
                fact.get("metadata") or {},
                fact.get("expiration_date"),
            )


def _said(pin: Pin) -> list[Item]:
    """What the user said in sessions and is not yet handed to extraction, where the project extracts; newest first."""
    with connection.cursor() as cursor:
        cursor.execute(_SAID, (pin.project, pin.id, MOST_MESSAGES))
        told = cursor.fetchall()
    about: dict[str, Any] = {"user_id": pin.id, "kind": "extract"}
    return [
        Item("", turn, text, False, at.isoformat(), **about, metadata=orjson.loads(metadata), session=session)
        for session, turn, text, metadata, at in told
    ]


def message_id(session_id: str, turn: int) -> str:
    """What a session's message is called in answers."""
    return f"stm-{session_id}-{turn}"


def _facts(kind: str, payload: dict[str, Any]) -> Iterable[tuple[int, dict[str, Any]]]:
    if kind == "add":
        yield from enumerate(payload.get("memories", []))
    elif kind == "extract":
        for index, message in enumerate(payload.get("messages", [])):
            if message["role"] == "user":
                yield index, {"text": message["content"], "metadata": payload.get("metadata")}
