"""A bounded pool of psycopg2 connections, shared by the threads of one process.

Connections are bounded here and not by the number of threads (PROTOCOL E): many threads wait, few talk to PostgreSQL.
"""

from __future__ import annotations

import contextlib
import queue
import select
import weakref
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)
from psycopg2.extensions import connection as Connection

Lease: TypeAlias = "weakref.finalize[[None], Connection]"


class PoolExhausted(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 publishes no types
    """Every connection of the pool was in use for longer than its time-out."""


class Pool:
    """At most `size` connections made by `connect`, waited for at most `seconds`."""

    def __init__(self, connect: Callable[[], Connection], *, size: int, seconds: float) -> None:
        self._connect = connect
        self._seconds = seconds
        self._open = True
        self._idle: deque[Connection] = deque()
        self._leases: weakref.WeakKeyDictionary[Connection, Lease] = weakref.WeakKeyDictionary()
        # One token a place. A queue and not a semaphore: a connection dropped by a thread that ended gives its place
        # back from a finalizer, which may run while this very thread is inside the wait, and SimpleQueue allows that.
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(size):
            self._places.put(None)

    def take(self) -> Connection:
        """A connection in a good state, the most recently used one first.

        PoolExhausted when none came free in time; psycopg2.OperationalError when PostgreSQL does not answer.
        """
        try:
            self._places.get(timeout=self._seconds)
        except queue.Empty:
            raise PoolExhausted(f"no PostgreSQL connection came free within {self._seconds:g} s") from None
        try:
            connection = self._reuse() or self._connect()
        except BaseException:
            self._places.put(None)
            raise
        self._leases[connection] = weakref.finalize(connection, self._places.put, None)
        return connection

    def give(self, connection: Connection) -> None:
        """Return a connection. What it left open is rolled back; a broken one is discarded, its place stays."""
        lease = self._leases.pop(connection, None)
        if lease is None or lease.detach() is None:
            return
        if self._open and _settled(connection):
            self._idle.append(connection)
        else:
            _discard(connection)
        self._places.put(None)

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        self._open = False
        with contextlib.suppress(IndexError):
            while True:
                _discard(self._idle.pop())

    def _reuse(self) -> Connection | None:
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.closed and not _readable(connection):
                    return connection
                _discard(connection)
        return None


def _readable(connection: Connection) -> bool:
    """An idle connection has nothing to read, unless the server has said goodbye or gone."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _settled(connection: Connection) -> bool:
    """Whether it can be used again, after a rollback where one is due."""
    if connection.closed:
        return False
    status = connection.info.transaction_status
    if status in (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR):
        try:
            connection.rollback()
        except psycopg2.Error:
            return False
        status = connection.info.transaction_status
    return bool(status == TRANSACTION_STATUS_IDLE)


def _discard(connection: Connection) -> None:
    with contextlib.suppress(psycopg2.Error):
        connection.close()
