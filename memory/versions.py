"""A pin's version: what makes an answer current (PROTOCOL B).

PostgreSQL holds it; Redis holds a copy as a lease. Three scripts keep the copy honest: `take` gives whoever misses a
token before PostgreSQL is read, `store` keeps a copy only while that token stands, `publish` replaces both.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import redis
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from memory import clock, keys, redis_wire
from memory.errors import DatabaseUnavailable
from memory.types import KINDS, Pin, Version

MARGIN_SECONDS = 0.5
"""Added wherever a whole lease is waited out: Redis drops a key up to this late."""

TAKE = """
local copy = redis.call('GET', KEYS[1])
if copy then return {copy, false} end
redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
return {false, redis.call('GET', KEYS[2])}
"""
STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local copy = redis.call('GET', KEYS[1])
if copy and tonumber(string.match(copy, '^%d+')) > tonumber(ARGV[2]) then return 0 end
local left = redis.call('PTTL', KEYS[2])
if left <= 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. ':' .. ARGV[3], 'PX', left)
return 1
"""
PUBLISH = """
redis.call('DEL', unpack(KEYS, 2))
local copy = redis.call('GET', KEYS[1])
if copy and tonumber(string.match(copy, '^%d+')) >= tonumber(ARGV[1]) then return 1 end
if tonumber(ARGV[3]) > 0 then redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
else redis.call('DEL', KEYS[1]) end
return 1
"""

# The clock is read once: a floor above its own version would let nothing be filled.
_MOVE = """
WITH now AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros)
INSERT INTO memory_pinversion AS p (project_id, kind, pin_id, version, floor)
SELECT %(project)s, %(kind)s, %(id)s, micros, CASE WHEN %(floor)s THEN micros ELSE 0 END FROM now
ON CONFLICT (project_id, kind, pin_id) DO UPDATE SET
    version = greatest(p.version + 1, excluded.version),
    floor = CASE WHEN %(floor)s THEN greatest(p.version + 1, excluded.version) ELSE p.floor END
RETURNING version, floor
"""
_ENSURE = """
INSERT INTO memory_pinversion (project_id, kind, pin_id, version, floor) VALUES (%s, %s, %s, 0, 0)
ON CONFLICT DO NOTHING
"""
_ENSURE_USERS = """
INSERT INTO memory_pinversion (project_id, kind, pin_id, version, floor)
SELECT project_id, 'user', user_id, 0, 0 FROM memory_memoryuser WHERE project_id = %s ORDER BY user_id COLLATE "C"
ON CONFLICT DO NOTHING
"""
_LOCK_ALL = """
SELECT FROM memory_pinversion WHERE project_id = %s
ORDER BY array_position(ARRAY['user', 'agent', 'run'], kind::text), pin_id COLLATE "C" FOR NO KEY UPDATE
"""
_MOVE_ALL = """
WITH now AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros)
UPDATE memory_pinversion SET version = greatest(version + 1, micros), floor = greatest(version + 1, micros) FROM now
WHERE project_id = %s
"""
_coming: dict[Pin, Future[Version]] = {}
_under_way: dict[Pin, Future[Version]] = {}
_lock = threading.Lock()
_LOCKS = {"share": "FOR KEY SHARE", "move": "FOR NO KEY UPDATE", "exclude": "FOR UPDATE"}
_READ = "SELECT version, floor FROM memory_pinversion WHERE project_id = %s AND kind = %s AND pin_id = %s"
_READ_EACH = """
SELECT project_id, kind, pin_id, version, floor FROM memory_pinversion
JOIN unnest(%s::bigint[], %s::text[], %s::text[]) AS wanted (project_id, kind, pin_id) USING (project_id, kind, pin_id)
"""


class Taken(NamedTuple):
    """A copy, or the token that whoever reads PostgreSQL now may keep one by."""

    copy: bytes | None
    token: bytes | None


def parse(pin: Pin, copy: bytes, confirmed_at: float) -> Version:
    """The version in a copy read from Redis by a request that began at `confirmed_at`."""
    number, floor = copy.split(b":")
    return Version(pin, int(number), int(floor), confirmed_at)


def current(pin: Pin, generation: int) -> Version:
    """The pin's version, from Redis or else PostgreSQL. DatabaseUnavailable when neither can tell."""
    asked = clock.now()
    try:
        (taken,) = take(copied(pin, generation))
    except redis.RedisError:
        return shared(pin)
    if taken.copy is not None:
        return parse(pin, taken.copy, asked)
    version = stored(pin)
    keep(version, generation, taken)
    return version


def take(*wanted: Sequence[str]) -> list[Taken]:
    """What each copy says, named by its key and its token's, or else a token to keep one by; read in this order, in one
    round trip. redis.RedisError."""
    calls = [(names, [secrets.token_hex(8), _lease_ms()]) for names in wanted]
    return [Taken(*found) for found in redis_wire.run(TAKE, calls)]


def copied(pin: Pin, generation: int) -> tuple[str, str]:
    """The keys of a version's copy and of its token."""
    return keys.version(pin, generation), keys.token(pin, generation)


def keep(version: Version, generation: int, taken: Taken) -> None:
    """Keep a copy of what PostgreSQL said, while the token stands."""
    with suppress(redis.RedisError):  # only the next reader pays: it asks PostgreSQL again
        redis_wire.run_each([keeping(version, generation, taken)])


def keeping(version: Version, generation: int, taken: Taken) -> tuple[str, Sequence[str], Sequence[Any]]:
    """What `keep` runs."""
    return STORE, copied(version.pin, generation), (taken.token or "", version.number, version.floor)


def stored(pin: Pin) -> Version:
    """The pin's version as PostgreSQL has it; 0 for a pin never written."""
    asked = clock.now()
    try:
        with connection.cursor() as cursor:
            cursor.execute(_READ, (pin.project, pin.kind, pin.id))
            number, floor = cursor.fetchone() or (0, 0)
    except DatabaseError as error:
        raise DatabaseUnavailable("the version cannot be read") from error
    return Version(pin, number, floor, asked)


def stored_each(pins: Sequence[Pin]) -> dict[Pin, Version]:
    """`stored` for many pins in one statement."""
    asked = clock.now()
    columns = [pin.project for pin in pins], [pin.kind for pin in pins], [pin.id for pin in pins]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_READ_EACH, columns)
            found = {Pin(*row[:3]): (row[3], row[4]) for row in cursor.fetchall()}
    except DatabaseError as error:
        raise DatabaseUnavailable("the versions cannot be read") from error
    return {pin: Version(pin, *found.get(pin, (0, 0)), confirmed_at=asked) for pin in pins}


def shared(pin: Pin) -> Version:
    """`stored`, asked once for all requests of this process that came before the asking began (PROTOCOL B6): one that
    is under way already may have read what is old by now."""
    with _lock:
        coming = _coming.get(pin)
        leads = coming is None
        if coming is None:
            coming = _coming[pin] = Future()
    if not leads:
        return coming.result()
    if (before := _under_way.get(pin)) is not None:
        wait([before])
    with _lock:
        del _coming[pin]
        _under_way[pin] = coming
    try:
        version = stored(pin)
    except BaseException as error:  # whatever ends this reading must not leave others waiting for it
        coming.set_exception(error)
        raise
    finally:
        with _lock:
            if _under_way.get(pin) is coming:
                del _under_way[pin]
    coming.set_result(version)
    return version


def move(pins: Iterable[Pin], *, floor: bool = False) -> list[Version]:
    """Move the versions (and floors) of pins, in lock order. Call inside the transaction that records why they move.

    The versions returned count their lease from before the rows were locked; `publish` them after the commit.
    """
    moved = []
    with connection.cursor() as cursor:
        for pin in in_lock_order(pins):
            asked = clock.now()
            cursor.execute(_MOVE, {"project": pin.project, "kind": pin.kind, "id": pin.id, "floor": floor})
            number, height = cursor.fetchone()
            moved.append(Version(pin, number, height, asked))
    return moved


def move_all(project: int) -> None:
    """Move the versions and floors of every id of a project, in lock order, known users that were never written
    included. Nobody is told: its generation moves with them (PROTOCOL B5)."""
    with connection.cursor() as cursor:
        for statement in (_ENSURE_USERS, _LOCK_ALL, _MOVE_ALL):
            cursor.execute(statement, (project,))


def publish(moved: Sequence[Version]) -> bool:
    """Tell Redis of committed versions; True when it has confirmed every one (PROTOCOL B7). Copies of the pending sets
    of before go in the same step: one of a deleted fact's job would show it again (C1).

    The generation is read after the commit: readers of a later one ask PostgreSQL after it too.
    """
    try:
        for version in moved:
            left = _lease_ms() - int((clock.now() - version.confirmed_at) * 1000)
            pin, generation = version.pin, _generation(version.pin.project)
            names = [*copied(pin, generation), keys.pending(pin, generation), keys.pending_token(pin, generation)]
            redis_wire.run(PUBLISH, [(names, [version.number, version.floor, max(0, left)])])
    except (redis.RedisError, DatabaseError):
        return False
    return True


def lock(pins: Iterable[Pin], mode: Literal["share", "move", "exclude"] = "share") -> None:
    """Hold the pins' rows until the transaction ends, in lock order (PROTOCOL A1, B1).

    `share` (accepting) lets other writes and moves pass; `move` keeps other moves out, so that what was read before one
    is what it moved from; `exclude` keeps accepting out too.
    """
    ordered = in_lock_order(pins)
    with connection.cursor() as cursor:
        cursor.executemany(_ENSURE, [(pin.project, pin.kind, pin.id) for pin in ordered])
        for pin in ordered:
            cursor.execute(f"{_READ} {_LOCKS[mode]}", (pin.project, pin.kind, pin.id))


def in_lock_order(pins: Iterable[Pin]) -> Sequence[Pin]:
    """User, agent, run; then by id: the one order in which rows are locked (PROTOCOL B1)."""
    return sorted(set(pins), key=lambda pin: (pin.project, KINDS.index(pin.kind), pin.id))


def generation(project: int, known: int) -> int:
    """The project's generation, read after the caller's commit so that no reader of a later one is left untold; the one
    it knows while PostgreSQL cannot tell (docs/decisions/0002)."""
    try:
        return _generation(project)
    except DatabaseError:
        return known


def _generation(project: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT generation FROM memory_project WHERE id = %s", (project,))
        return int(cursor.fetchone()[0])


def _lease_ms() -> int:
    return int(settings.VERSION_LEASE_SECONDS * 1000)
