"""How many requests a key may make: a token bucket in CACHE, leased to processes in blocks.

A block is at most a twentieth of the limit and at most a second old, so that most requests cost no round trip, and what
several processes may hold beyond the limit is little. While CACHE is away each process keeps to a share of its own.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import redis
from django.conf import settings

from memory import clock, keys
from memory.redis_client import cache

WINDOW_SECONDS = 60
BLOCK_PART = 20
BLOCK_SECONDS = 1.0
MAX_KNOWN = 10_000

# What is in the bucket grows with the store's time; what a block had left comes back with the next.
_LEASE = """
local limit, back, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'limit')
local tokens = limit
if held[1] and tonumber(held[3]) == limit then
    tokens = math.min(limit, tonumber(held[1]) + (now - held[2]) * limit / ARGV[4] + back)
end
local given = math.min(wanted, math.floor(tokens))
tokens = tokens - given
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', now, 'limit', limit)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {given, math.floor(tokens), math.ceil((1 - math.min(1, tokens)) * ARGV[4] / limit)}
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands after a request: `wait` seconds until the next may pass, 0.0 where this one did."""

    limit: int
    remaining: int
    wait: float = 0.0

    @property
    def reset(self) -> int:
        """Whole seconds until the key may make `limit` requests at once again, about."""
        return math.ceil((self.limit - self.remaining) * WINDOW_SECONDS / self.limit)


@dataclass(slots=True)
class _Block:
    limit: int
    left: int
    beyond: int
    ends_at: float
    local: float = 0.0
    """When a share of this process's own was last topped up; 0 while CACHE answers."""


_blocks: dict[int, _Block] = {}
_lock = threading.Lock()


def take(key: int, limit: int) -> Standing:
    """One request of a key that may make `limit` a minute."""
    with _lock:
        block = _blocks.get(key)
        if block is not None and block.limit == limit and block.left > 0 and clock.now() < block.ends_at:
            block.left -= 1
            return Standing(limit, block.beyond + block.left)
        back = 0
        if block is not None and not block.local:  # a share of this process's own stays where other threads find it
            del _blocks[key]
            back = block.left if block.limit == limit else 0
    return _leased(key, limit, back)


def forget() -> None:
    """Hold no blocks."""
    with _lock:
        _blocks.clear()


def _leased(key: int, limit: int, back: int) -> Standing:
    wanted = max(1, limit // BLOCK_PART)
    window = WINDOW_SECONDS * 1000
    try:
        given, beyond, wait = cache().register_script(_LEASE)(keys=[keys.rate(key)], args=[limit, back, wanted, window])
    except redis.RedisError:
        return _own_share(key, limit)
    if given < 1:
        return Standing(limit, 0, max(wait, 1) / 1000)
    with _lock:
        if len(_blocks) >= MAX_KNOWN:
            _blocks.clear()
        other = _blocks.get(key)  # leased by another thread meanwhile
        left = given - 1 + (other.left if other is not None and not other.local else 0)
        _blocks[key] = _Block(limit, left, beyond, clock.now() + BLOCK_SECONDS)
    return Standing(limit, beyond + left)


def _own_share(key: int, limit: int) -> Standing:
    """A bucket of this process alone, an even part of the limit: it starts with a block and grows with time."""
    share = max(1, limit // settings.WEB_PROCESSES)
    with _lock:
        now = clock.now()
        bucket = _blocks.get(key)
        if bucket is None or not bucket.local or bucket.limit != limit:
            bucket = _Block(limit, max(1, share // BLOCK_PART), 0, 0.0, now)
        grown = int((now - bucket.local) * share / WINDOW_SECONDS)
        if grown:
            bucket.left = min(share, bucket.left + grown)
            bucket.local = now
        _blocks[key] = bucket
        if bucket.left < 1:
            return Standing(limit, 0, WINDOW_SECONDS / share)
        bucket.left -= 1
        return Standing(limit, bucket.left)
