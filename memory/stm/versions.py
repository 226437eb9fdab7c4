"""A session's version: moves with every message and tier, in the session's own row (docs/decisions/0008).

Redis holds a leased copy by the rules of PROTOCOL B6, under the user's hash tag, so that one round trip brings it with
the user's version. A copy is (version, the session's row number): both must be equal for what is cached to be current.
"""

from __future__ import annotations

from dataclasses import dataclass

import redis
from django.conf import settings
from django.db import connection

from memory import clock, keys, redis_wire, versions
from memory.models import Session
from memory.types import Pin
from memory.versions import PUBLISH, STORE

_MOVE = """
UPDATE memory_session SET version = greatest(version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
WHERE id = %s RETURNING version
"""


@dataclass(frozen=True, slots=True)
class State:
    """Which life of a session, and its version in it; row 0: there is none."""

    row: int
    number: int


NONE = State(0, 0)


def move(session: Session) -> None:
    """Move the version, inside the transaction that holds the session's row and records why."""
    with connection.cursor() as cursor:
        cursor.execute(_MOVE, [session.pk])
        session.version = cursor.fetchone()[0]


def publish(session: Session, generation: int, asked_at: float, *, ended: bool = False) -> bool:
    """Tell Redis after the commit; `asked_at` is from before the row was locked. False where it did not confirm: then
    the copy goes by itself within one lease."""
    names = _names(pin(session), session.session_id, generation)
    left = _lease_ms() - int((clock.now() - asked_at) * 1000)
    number = session.version + 1 if ended else session.version
    try:
        redis_wire.run(PUBLISH, [(names, [number, 0 if ended else session.pk, max(0, left)])])
    except redis.RedisError:
        return False
    return True


def parse(copy: bytes) -> State:
    """The state in a copy read from Redis."""
    number, row = copy.split(b":")
    return State(int(row), int(number))


def take(user: Pin, session_id: str, generation: int) -> tuple[State | None, bytes | None]:
    """The copy, or else the token to store one with after PostgreSQL was read; neither without Redis."""
    try:
        (taken,) = versions.take(_names(user, session_id, generation))
    except redis.RedisError:
        return None, None
    return (parse(taken.copy), None) if taken.copy is not None else (None, taken.token)


def keep(user: Pin, session_id: str, generation: int, state: State, token: bytes) -> None:
    """Store a copy of what PostgreSQL said, while the token stands."""
    try:
        names = _names(user, session_id, generation)
        redis_wire.run(STORE, [(names, [token, state.number, state.row])])
    except redis.RedisError:
        return  # only the next reader pays: it asks PostgreSQL again


def pin(session: Session) -> Pin:
    """The user whose hash tag a session's keys carry."""
    return Pin(session.project_id, "user", session.user_id)


def _names(user: Pin, session_id: str, generation: int) -> list[str]:
    return [keys.session(user, generation, session_id), keys.session_token(user, generation, session_id)]


def _lease_ms() -> int:
    return int(settings.VERSION_LEASE_SECONDS * 1000)
