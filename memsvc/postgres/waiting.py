"""No wait for PostgreSQL is without end.

libpq waits as long as a connection stands, and to a server that is stopped or cut off it stands for minutes or hours.
psycopg2's wait callback brings every wait of this process here, and each ends at the earliest of: what its connection
allows, what the work in hand allows, and the moment at which that work is of no use any more. psycopg2 closes a
connection whose wait has failed, so that nobody reads an abandoned statement's answer.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf

import psycopg2
from psycopg2 import extensions

from memory import clock

FOREIGN_SECONDS = 600.0
"""How long the server may be silent on a connection that is not of a pool: Mem0's own, which builds indexes."""
LEAST_SECONDS = 0.05
"""What is left of a deadline counts as this much, so that a transaction can still be rolled back."""


TELLING_SECONDS = 0.2
"""A silence shorter than this says more about the deadline that ended it than about the server."""


class Silence(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 publishes no types
    """PostgreSQL said nothing for so many seconds; what became of the statement is unknown."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"PostgreSQL said nothing for {seconds:.3g} s")
        self.telling = seconds >= TELLING_SECONDS


class Connection(extensions.connection):  # type: ignore[misc]
    """A connection of a pool: `silent` is told when a statement was given up, `answers` counts those that were not."""

    def __init__(self, dsn: str, *, connect_seconds: float, statement_seconds: float) -> None:
        self.limit = connect_seconds
        self.answers = [0]
        self.silent: Callable[[int], None] = lambda before: None
        super().__init__(dsn)
        self.limit = statement_seconds


@dataclass(frozen=True, slots=True)
class Patience:
    """What the work in hand allows: so many seconds of silence, and nothing after `until` (on `clock.now()`)."""

    seconds: float = inf
    until: float = inf


_BOUNDLESS = Patience()
_patience: ContextVar[Patience] = ContextVar("memsvc_postgres_patience", default=_BOUNDLESS)


@contextmanager
def patience(seconds: float = inf, until: float = inf) -> Iterator[None]:
    """Within it no answer is waited for longer, nor than what surrounds it allows. It binds this thread alone."""
    now = _patience.get()
    token = _patience.set(Patience(min(seconds, now.seconds), min(until, now.until)))
    try:
        yield
    finally:
        _patience.reset(token)


def allowed(seconds: float) -> float:
    """`seconds`, or what the work in hand allows if that is less."""
    now = _patience.get()
    return min(seconds, now.seconds, max(LEAST_SECONDS, now.until - clock.now()))


def wait(connection: extensions.connection) -> None:
    """Wait until the connection's statement, or its opening, is done. Silence when the server says nothing for as long
    as is allowed; how long a statement takes whose answer keeps coming is the server's own limit to end."""
    state = connection.poll()
    if state == extensions.POLL_OK:
        return
    pooled = isinstance(connection, Connection)
    before = connection.answers[0] if pooled else 0
    while state != extensions.POLL_OK:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        limit = _limit(connection.limit if pooled else FOREIGN_SECONDS, pooled)
        if not poller.poll(None if limit == inf else limit * 1000):
            silence = Silence(limit)
            if pooled and silence.telling:
                connection.silent(before)
            raise silence
        state = connection.poll()
    if pooled:
        connection.answers[0] += 1


def _limit(own: float, pooled: bool) -> float:
    now = _patience.get()
    if now is _BOUNDLESS:
        return own
    left = inf if now.until == inf else max(LEAST_SECONDS, now.until - clock.now())
    # Statements of Mem0's own have only the deadline of the call that they belong to.
    return min(own, now.seconds, left) if pooled else min(own, left)


extensions.set_wait_callback(wait)
