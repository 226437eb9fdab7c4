"""A bounded pool of psycopg2 connections, shared by the threads of one process.

Connections are bounded here and not by the number of threads (PROTOCOL E): many threads wait, few talk to PostgreSQL.
While PostgreSQL does not answer, one thread of the pool's own goes on asking and everybody else is told at once: an
outage costs a process one time-out, not one a request.
"""

from __future__ import annotations

import contextlib
import queue
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)

from memsvc.postgres import waiting
from memsvc.postgres.waiting import Connection, Silence

Lease: TypeAlias = "weakref.finalize[[None], Connection]"

ASK_AGAIN_SECONDS = 0.25
"""Between two looks at a server that refuses connections; one that says nothing is waited for by the look itself."""


class PoolExhausted(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 publishes no types
    """Every connection of the pool was in use for longer than its time-out."""


class PostgresAway(psycopg2.OperationalError):  # type: ignore[misc]
    """PostgreSQL did not answer a moment ago, and the pool's own thread has not reached it since."""


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
        # `unreachable`: it accepts no connection, those that stand may be good. `silent`: it accepted a statement and
        # answered nobody since.
        self._trouble: Literal["", "unreachable", "silent"] = ""
        self._asking = False
        self._lock = threading.Lock()
        self._answers = [0]

    def take(self) -> Connection:
        """A connection in a good state, the most recently used one first.

        PoolExhausted when none came free in time; psycopg2.OperationalError when PostgreSQL does not answer.
        """
        self._refuse("silent")
        seconds = waiting.allowed(self._seconds)
        try:
            self._places.get(timeout=seconds)
        except queue.Empty:
            raise PoolExhausted(f"no PostgreSQL connection came free within {seconds:.3g} s") from None
        try:
            self._refuse("silent")
            connection = self._reuse() or self._new()
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

    def _refuse(self, *troubles: str) -> None:
        if self._trouble in troubles:
            raise PostgresAway("PostgreSQL did not answer a moment ago")

    def _new(self) -> Connection:
        self._refuse("unreachable", "silent")
        try:
            connection = self._connect()
        except psycopg2.OperationalError as error:
            if not isinstance(error, Silence) or error.telling:
                self._suspect("unreachable")
            raise
        connection.answers = self._answers
        connection.silent = self._given_up
        return connection

    def _given_up(self, before: int) -> None:
        """A statement was given up. One that is slow while others are answered says nothing about the server."""
        if self._answers[0] == before:
            self._suspect("silent")

    def _suspect(self, trouble: Literal["unreachable", "silent"]) -> None:
        with self._lock:
            if self._trouble != "silent":
                self._trouble = trouble
            if self._asking or not self._open:
                return
            self._asking = True
        threading.Thread(target=self._ask, name="postgres-away", daemon=True).start()

    def _ask(self) -> None:
        """Ask for a connection and an answer until both have come."""
        pause = threading.Event()
        try:
            while self._open:
                try:
                    with (
                        waiting.patience(self._seconds),
                        contextlib.closing(self._connect()) as connection,
                        connection.cursor() as cursor,
                    ):
                        cursor.execute("SELECT 1")
                    return
                except psycopg2.Error:
                    pause.wait(ASK_AGAIN_SECONDS)
        finally:
            with self._lock:
                self._trouble, self._asking = "", False

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
