"""How often and how much at a time Mem0 is asked, by all processes together (G7).

A rate and a number of calls in flight, held in CACHE and decided there in one step, so that no two processes go by
clocks of their own. Warming gets what live traffic leaves. After an outage both limits start at a tenth and rise. While
CACHE is away each process has an even share of them.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache as once
from typing import Any

import redis
from django.conf import settings

from memory import clock, keys
from memory.clock import Deadline
from memory.errors import OriginBusy
from memory.redis_client import cache

BURST_PART = 0.1
"""Of a second's calls, how many may be made at once."""
WARMING_PART = 0.5
"""Of burst and places, what warming may use: the rest is always there for live calls."""
RAMP_LEAST = 0.1
WORKERS = 3
"""Worker processes of one machine: deliver, warm, rebuild."""
LEASE_MARGIN_SECONDS = 1.0
LOOK_SECONDS = 0.03
"""Before a call for which there is no place looks again."""

# GCRA: `tat` is when the calls let through so far would have ended, made at an even pace. A place is held by a token
# that ends with its call's deadline, so that a killed process gives its places back.
_ENTER = """
local rate, burst, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local part, ramp, least = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local held = redis.call('HMGET', KEYS[1], 'tat', 'ramp')
local risen = 1
if held[2] and ramp > 0 then risen = math.min(1, math.max(least, (now - held[2]) / ramp)) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local inside = redis.call('ZCARD', KEYS[2])
if most > 0 and inside >= math.max(1, math.floor(most * part * risen)) then return {0, -1} end
if rate > 0 then
    local every = 1000 / (rate * risen)
    local tat = math.max(tonumber(held[1] or 0), now)
    local over = tat - now - (math.max(1, burst * part * risen) - 1) * every
    if over > 0 then return {0, math.ceil(over)} end
    redis.call('HSET', KEYS[1], 'tat', string.format('%.3f', tat + every))
end
redis.call('PEXPIRE', KEYS[1], 3600000)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], 3600000)
return {1, 0}
"""
_RAMP = """
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'ramp', string.format('%.3f', time[1] * 1000 + time[2] / 1000))
redis.call('PEXPIRE', KEYS[1], 3600000)
"""
_LOOK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local ramp = redis.call('HGET', KEYS[1], 'ramp')
return {redis.call('ZCOUNT', KEYS[2], now, '+inf'), ramp and math.floor(now - ramp) or -1}
"""

_warming: ContextVar[bool] = ContextVar("memsvc_warming", default=False)


@contextmanager
def warming() -> Iterator[None]:
    """Calls made within it come after live ones."""
    token = _warming.set(True)
    try:
        yield
    finally:
        _warming.reset(token)


@dataclass(frozen=True, slots=True)
class Limits:
    """Calls a second and calls at a time, 0 for no limit; seconds in which both rise again after an outage."""

    rate: float
    places: int
    ramp: float


def configured() -> Limits:
    """Those that the settings name."""
    return Limits(settings.UPSTREAM_CALLS_PER_SECOND, settings.UPSTREAM_CONCURRENCY, settings.UPSTREAM_RAMP_SECONDS)


@once
def of(name: str) -> Gate:
    """This process's gate before an upstream."""
    return Gate(name)


class Gate:
    """Stands before one upstream."""

    def __init__(
        self, name: str, limits: Callable[[], Limits] = configured, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._keys = [keys.upstream_rate(name), keys.upstream_places(name)]
        self._limits, self._sleep = limits, sleep
        self._own = _Share()

    @contextmanager
    def passing(self, deadline: Deadline) -> Iterator[None]:
        """Around one call. OriginBusy, with nothing sent, when it may not be made before the deadline."""
        limits = self._limits()
        leave = self._enter(limits, deadline) if limits.rate or limits.places else None
        try:
            yield
        finally:
            if leave:
                leave()

    def ramp(self) -> None:
        """The upstream is back after an outage: begin with a little."""
        self._own.ramp()
        try:
            cache().register_script(_RAMP)(keys=self._keys[:1])
        except redis.RedisError:
            return  # each process that notices has ramped its own share

    def state(self) -> dict[str, Any]:
        """For people: calls in flight, and the part of the limits that is open after an outage, in percent."""
        limits = self._limits()
        try:
            inside, since = cache().register_script(_LOOK)(keys=self._keys)
        except redis.RedisError:
            inside, since = self._own.inside, self._own.since_ramp() * 1000
        risen = _risen(since / 1000, limits.ramp) if since >= 0 else 1.0
        return {"in_flight": inside, "open_percent": round(100 * risen)}

    def _enter(self, limits: Limits, deadline: Deadline) -> Callable[[], None]:
        while True:
            leave, wait = self._try(limits, deadline)
            if leave:
                return leave
            pause = max(LOOK_SECONDS, wait) * random.uniform(1.0, 1.5)  # noqa: S311  (spread, not secrecy)
            if pause >= deadline.remaining():
                raise OriginBusy("Mem0 is asked as often as it may be", retry_after=max(1.0, wait))
            self._sleep(pause)

    def _try(self, limits: Limits, deadline: Deadline) -> tuple[Callable[[], None] | None, float]:
        """What gives the place back, or the seconds until it may be tried again; -1 ms stands for "when one leaves"."""
        token = secrets.token_hex(8)
        part = WARMING_PART if _warming.get() else 1.0
        lease = int((deadline.remaining() + LEASE_MARGIN_SECONDS) * 1000)
        burst, ramp = max(1.0, limits.rate * BURST_PART), int(limits.ramp * 1000)
        wanted: list[str | float] = [token, lease, limits.rate, burst, limits.places, part, ramp, RAMP_LEAST]
        try:
            entered, wait = cache().register_script(_ENTER)(keys=self._keys, args=wanted)
        except redis.RedisError:
            return self._own.enter(limits, part)
        return (lambda: self._leave(token)) if entered else None, max(0, wait) / 1000

    def _leave(self, token: str) -> None:
        try:
            cache().zrem(self._keys[1], token)
        except redis.RedisError:
            return  # it ends with its lease


class _Share:
    """What one process may do while CACHE is away: the same rules over an even part of the limits."""

    def __init__(self) -> None:
        self.inside = 0
        self._tat = 0.0
        self._ramped: float | None = None
        self._lock = threading.Lock()

    def enter(self, limits: Limits, part: float) -> tuple[Callable[[], None] | None, float]:
        """See Gate._try."""
        shared = settings.UPSTREAM_PROCESSES or settings.WEB_PROCESSES + WORKERS
        now = clock.now()
        with self._lock:
            risen = 1.0 if self._ramped is None else _risen(now - self._ramped, limits.ramp)
            if limits.places and self.inside >= max(1, int(limits.places / shared * part * risen)):
                return None, 0.0
            if limits.rate:
                every = shared / (limits.rate * risen)
                tat = max(self._tat, now)
                burst = max(1.0, limits.rate / shared * BURST_PART * part * risen)
                if (over := tat - now - (burst - 1) * every) > 0:
                    return None, over
                self._tat = tat + every
            self.inside += 1
        return self._leave, 0.0

    def ramp(self) -> None:
        """See Gate."""
        self._ramped = clock.now()

    def since_ramp(self) -> float:
        """Seconds; -1 if there was none."""
        return -1.0 if self._ramped is None else clock.now() - self._ramped

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1


def _risen(since: float, ramp: float) -> float:
    return min(1.0, max(RAMP_LEAST, since / ramp)) if ramp else 1.0
