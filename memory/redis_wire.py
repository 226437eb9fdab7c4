"""A few commands in one round trip to CACHE, for a tenth of what redis-py's pipeline costs (docs/decisions/0017).

The connections are redis-py's own: where CACHE is, how one logs in and how long it rests after a failure is decided
there. One that failed, timed out or was left half-way is closed: its next answer would belong to another question.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from functools import cache as once
from typing import Any

import hiredis
import redis

from memory import redis_client

RECEIVE_BYTES = 65536

_NOTHING = object()
Command = tuple[Any, ...]
Packed = tuple[bytes, int]
"""Commands as CACHE reads them, and how many they are."""


class _Line:
    """One connection; what came of it is read here and not by redis-py."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.connect()
        self._socket = _kernel_timed(self._connection._sock)
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)

    def ask(self, packed: bytes, count: int) -> list[Any]:
        """`count` replies, in order. OSError; afterwards the line is of no use."""
        self._socket.sendall(packed)
        replies: list[Any] = []
        while len(replies) < count:
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError("CACHE closed the connection")
            self._reader.feed(received)
            while (reply := self._reader.gets()) is not _NOTHING:
                replies.append(reply)
        if len(replies) > count or self._reader.has_data():
            raise ConnectionAbortedError("CACHE answered more than it was asked")
        return replies

    def close(self) -> None:
        """For good."""
        self._connection.disconnect()


class Wire:
    """The lines of this process to one CACHE: as many as were needed at a time."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._idle: list[_Line] = []
        os.register_at_fork(after_in_child=self._idle.clear)

    def send(self, commands: Packed) -> list[Any]:
        """What each command answers, as bytes, whole numbers and lists. redis.RedisError."""
        line, waited = self._taken()
        try:
            replies = self._asked(line, commands)
        except redis.ConnectionError:
            if not waited:
                raise
            # CACHE was started anew, and every line that had waited for work is as dead as this one.
            self._idle.clear()
            replies = self._asked(_Line(self._pool), commands)
        for reply in replies:
            if isinstance(reply, hiredis.HiredisError):
                raise redis.ResponseError(str(reply))
        return replies

    def _taken(self) -> tuple[_Line, bool]:
        try:
            return self._idle.pop(), True
        except IndexError:
            return _Line(self._pool), False

    def _asked(self, line: _Line, commands: Packed) -> list[Any]:
        good = False
        try:
            replies = line.ask(*commands)
            good = True
        except (TimeoutError, BlockingIOError) as error:  # Python's word for it, and the kernel's
            redis_client.failed()
            self._idle.clear()
            raise redis.TimeoutError("CACHE did not answer in time") from error
        except (OSError, hiredis.HiredisError) as error:
            raise redis.ConnectionError("CACHE closed the connection") from error
        finally:
            if not good:
                line.close()
        self._idle.append(line)
        return replies


def _kernel_timed(line: socket.socket) -> socket.socket:
    """The same socket with its time-outs kept by the kernel: Python's own ask twice for each packet, and a busy process
    pays for both with a wait for Python's lock. TLS needs Python's."""
    seconds = line.gettimeout()
    if seconds is None or isinstance(line, ssl.SSLSocket):
        return line
    line.settimeout(None)
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        line.setsockopt(socket.SOL_SOCKET, option, interval)
    return line


def packed(*commands: Command) -> Packed:
    """Commands ready to send, as often as one likes."""
    return b"".join(map(hiredis.pack_command, commands)), len(commands)


def send(commands: Packed) -> list[Any]:
    """See Wire.send."""
    return _wire(redis_client.cache().connection_pool).send(commands)


def ask(*commands: Command) -> list[Any]:
    """What each command answers. See Wire.send."""
    return send(packed(*commands))


def run(script: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
    """What a script answers to each call, given as its keys and its other arguments. See `run_each`."""
    return run_each([(script, names, rest) for names, rest in calls])


def run_each(calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
    """What each script answers, given with its keys and its other arguments, one after the other in one round trip.
    Only for scripts that may be run twice: so they are after CACHE has forgotten one. redis.RedisError."""
    if not calls:
        return []
    commands = packed(*[("EVALSHA", _digest(script), str(len(names)), *names, *rest) for script, names, rest in calls])
    try:
        return send(commands)
    except redis.ResponseError as error:
        if not str(error).startswith("NOSCRIPT"):
            raise
        ask(*[("SCRIPT", "LOAD", script) for script in {script for script, *_ in calls}])
        return send(commands)


@once
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


@once
def _wire(pool: redis.ConnectionPool) -> Wire:
    return Wire(pool)
