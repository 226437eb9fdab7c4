"""One load for each key at a time (PROTOCOL E, G7): who asks for the same meanwhile waits for it.

In a process by a future; across processes by a lease in CACHE that outlasts the load. While CACHE is away each process
has flights of its own.
"""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from contextlib import suppress
from typing import Any, TypeVar

import redis

from memory import metrics, redis_wire
from memory.clock import Deadline
from memory.errors import OriginBusy, OriginTimeout

T = TypeVar("T")

MARGIN_SECONDS = 1.0
"""By which a lease outlasts the load it is held for: loads end at their deadlines."""
LOOK_SECONDS = 0.02
"""Between two looks at what another process loads, on average."""

# Who takes the lease looks in the same step: the holder before may just have landed. One that asks again, as the answer
# was lost with its connection, has it already.
_TAKE = """
local took = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) or redis.call('GET', KEYS[1]) == ARGV[1]
return {took and 1 or 0, redis.call('GET', KEYS[2])}
"""
_LAND = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

_flying: dict[Hashable, tuple[Future[Any], Deadline]] = {}
_lock = threading.Lock()


def join(key: Hashable, load: Callable[[], T], deadline: Deadline, project: int = 0) -> tuple[T, bool]:
    """The outcome of `load` or of the one already under way for `key` in this process, and whether this call led it.

    Followers share the leader's error, but not its lack of time. OriginTimeout for one whose own deadline passes.
    Joining is counted for the project.
    """
    while True:
        mine: Future[T] = Future()
        with _lock:
            flight, leaders = _flying.setdefault(key, (mine, deadline))
        if flight is mine:
            return _lead(key, mine, load), True
        metrics.count("loads_joined", project=project)
        try:
            return flight.result(timeout=deadline.remaining()), False
        except NotDone as error:
            raise OriginTimeout("an identical search is still under way") from error
        except OriginTimeout:
            if deadline.passed or not leaders.passed:
                raise
        except OriginBusy:  # there was no room before the leader's deadline, known before that passed
            if deadline.passed or deadline.at <= leaders.at:
                raise


def across(
    lease: str,
    result: str,
    found: Callable[[bytes], T | None],
    load: Callable[[], T],
    deadline: Deadline,
    project: int = 0,
) -> tuple[T, bool]:
    """The outcome of `load` in whichever process holds `lease`, and whether it was this one.

    Whoever loads leaves its outcome under the key `result`, where `found` makes out whether it is the one wanted. When
    the holder ended without, or its lease has run out, the next one loads. OriginTimeout at the deadline.
    """
    token = secrets.token_hex(8)
    joined = False
    while True:
        try:
            took, left = _take([lease, result], token, deadline)
        except redis.RedisError:
            return load(), True
        try:
            landed = found(left) if left is not None else None
            if landed is not None:
                return landed, False
            if took:
                return load(), True
        finally:
            if took:
                _land(lease, token)
        if not joined:
            joined = True
            metrics.count("loads_joined", project=project)
        if deadline.passed:
            raise OriginTimeout("another process is still at an identical search")
        _pause.wait(min(deadline.remaining(), LOOK_SECONDS * random.uniform(0.5, 1.5)))  # noqa: S311


_pause = threading.Event()
"""Never set: what waits on it sleeps."""


def _take(names: Sequence[str], token: str, deadline: Deadline) -> tuple[int, bytes | None]:
    milliseconds = int((deadline.remaining() + MARGIN_SECONDS) * 1000)
    ((took, left),) = redis_wire.run(_TAKE, [(names, [token, milliseconds])])
    return took, left


def _land(lease: str, token: str) -> None:
    with suppress(redis.RedisError):  # it ends by itself
        redis_wire.run(_LAND, [([lease], [token])])


def _lead(key: Hashable, flight: Future[T], load: Callable[[], T]) -> T:
    try:
        found = load()
    except BaseException as error:  # whatever ends the leader must not leave its followers waiting
        _leave(key)
        flight.set_exception(error)
        raise
    _leave(key)
    flight.set_result(found)
    return found


def _leave(key: Hashable) -> None:
    with _lock:
        _flying.pop(key, None)
