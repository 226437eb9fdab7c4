"""L2: encoded answers in Redis, each carrying the version it was computed at."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import redis
from django.conf import settings

from memory import clock, flights, keys, pending, redis_wire, versions
from memory.clock import Deadline
from memory.errors import LayerCorrupt, LayerUnavailable
from memory.layers.base import RANKINGS, fillable, head, pack, unpack
from memory.pending import Pending
from memory.redis_client import cache
from memory.redis_wire import Packed
from memory.types import Entry, Pin, Query, Ranking, Version

NAME = "L2"
JITTER = 0.1
"""Share by which lifetimes differ, so that entries filled together do not expire together."""
KNOWN_READINGS = 4096
"""How many round trips are kept ready to send, at some 500 bytes each."""

# Fill with compare (PROTOCOL B8): an older fill never replaces what readers of the newer version would hit, and
# nothing below the floor is kept (B9). The copy may be missing; then equality at look-up is the guard. KEYS: the
# copy, then each entry's; ARGV: each entry's bytes, version, milliseconds.
_FILL = """
local least = 0
local copy = redis.call('GET', KEYS[1])
if copy then
  local version, floor = string.match(copy, '^(%d+):(%d+)$')
  least = math.max(tonumber(version), tonumber(floor))
end
local kept = {}
for at = 2, #KEYS do
  local entry = 3 * at - 5
  if tonumber(ARGV[entry + 1]) < least then kept[at - 1] = 0
  else
    redis.call('SET', KEYS[at], ARGV[entry], 'PX', ARGV[entry + 2])
    kept[at - 1] = 1
  end
end
return kept
"""


# How long each entry will live that stands at one version and may be served, 0 for others. ARGV: what such an entry
# begins with, the rankings that are served, a byte each. An entry dies with the first memory in it, too.
_LIVES = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local lives = {}
for at, key in ipairs(KEYS) do
  local head = redis.call('GETRANGE', key, 0, 28)
  lives[at] = 0
  if string.sub(head, 1, 12) == ARGV[1] and string.find(ARGV[2], string.sub(head, 29, 29), 1, true) then
    local ends = 0
    for byte = 21, 28 do ends = ends * 256 + string.byte(head, byte) end
    lives[at] = redis.call('PTTL', key)
    if ends > 0 then lives[at] = math.max(0, math.min(lives[at], math.floor(ends / 1000 - now))) end
  end
end
return lives
"""


class Trip(NamedTuple):
    """What one round trip brought: copies of the pending set and the version, the entry whatever its version, the
    store's time (µs)."""

    pending: Pending | None
    version: Version | None
    entry: Entry | None
    store_now: int
    asked_at: float
    also: tuple[bytes | None, ...] = ()
    """What else was asked for, in the order it was."""

    def now(self) -> int:
        """The store's time at this moment, never behind it: counted on from before it was asked."""
        return self.store_now + int((clock.now() - self.asked_at) * 1_000_000)


class ResultLayer:
    """Answers by pin and fingerprint, shared by all processes."""

    name = NAME
    fills = True

    def fetch(self, query: Query, generation: int, also: Sequence[str] = ()) -> Trip:
        """Everything a search needs of Redis in one round trip: the pending set before the version (PROTOCOL C1), the
        version before the entry (B8), and the keys `also` under the same tag, in their order; one command reads them
        all. LayerUnavailable."""
        asked = clock.now()
        reading = _reading(query.slot, generation, tuple(also))
        try:
            (open_jobs, copy, stored, *more), time = redis_wire.send(reading)
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        version = versions.parse(query.slot[0], copy, asked) if copy else None
        found = self._unpack(query, generation, stored) if stored else None
        unstored = pending.parse(open_jobs) if open_jobs else None
        return Trip(unstored, version, found, int(time[0]) * 1_000_000 + int(time[1]), asked, tuple(more))

    def state(self, pin: Pin, generation: int) -> tuple[Pending | None, Version | None]:
        """What is on its way, and the version, read in this order in one round trip (PROTOCOL C1); None for a copy
        that is not there. LayerUnavailable."""
        asked = clock.now()
        try:
            ((open_jobs, copy),) = redis_wire.send(_state(pin, generation))
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        unstored = pending.parse(open_jobs) if open_jobs else None
        return unstored, versions.parse(pin, copy, asked) if copy else None

    def now(self) -> int:
        """The store's time in microseconds. LayerUnavailable."""
        try:
            (time,) = redis_wire.ask(("TIME",))
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        return int(time[0]) * 1_000_000 + int(time[1])

    def put(self, query: Query, entry: Entry, generation: int, store_now: int) -> bool:
        """Keep an entry; False when it was refused as older than the version, below the floor or about to expire."""
        ((life,),) = self.fill({query.scope.pin: [(query.fingerprint, entry)]}, generation, store_now).values()
        return life > 0

    def fill(
        self, filled: Mapping[Pin, Sequence[tuple[str, Entry]]], generation: int, store_now: int
    ) -> dict[Pin, list[int]]:
        """Keep entries by pin and fingerprint in one round trip, one command a pin; for each the milliseconds that it
        will live, 0 where it was refused. LayerUnavailable."""
        most = settings.L2_TTL_SECONDS * 1000
        lives = {pin: [_life(entry, store_now, most) for _, entry in entries] for pin, entries in filled.items()}
        sent = [pin for pin in filled if any(lives[pin])]
        calls = []
        for pin in sent:
            tag = keys.tag(pin, generation)
            living = [(*entry, life) for entry, life in zip(filled[pin], lives[pin], strict=True) if life]
            names = [keys.of_version(tag), *[keys.of_result(tag, fingerprint) for fingerprint, _, _ in living]]
            calls.append((names, [part for _, entry, life in living for part in (pack(entry), entry.version, life)]))
        try:
            answers = redis_wire.run(_FILL, calls)
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        for pin, kept in zip(sent, answers, strict=True):
            each = iter(kept)
            lives[pin] = [life * next(each) if life else 0 for life in lives[pin]]
        return lives

    def peek(self, queries: Iterable[Query], generation: int) -> list[tuple[Entry | None, int]]:
        """Each query's entry and its remaining life in milliseconds (-2 without one); for warms and inspection."""
        pipe = cache().pipeline(transaction=False)
        listed = list(queries)
        for query in listed:
            name = keys.result(query.scope.pin, generation, query.fingerprint)
            pipe.get(name)
            pipe.pttl(name)
        try:
            answers = pipe.execute()
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        pairs = zip(listed, answers[::2], answers[1::2], strict=True)
        return [(self._unpack(query, generation, stored) if stored else None, left) for query, stored, left in pairs]

    def lives(self, wanted: Iterable[tuple[int, Sequence[str]]], rankings: Iterable[Ranking]) -> list[list[int]]:
        """For each version and the keys of some entries, the milliseconds that each stays what it is: 0 where none
        stands at that version, of one of these rankings. LayerUnavailable."""
        allowed = bytes(map(RANKINGS.index, rankings))
        listed = list(wanted)
        calls = [(names, [head(version), allowed]) for version, names in listed if names]
        try:
            answers = iter(redis_wire.run(_LIVES, calls))
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        return [next(answers) if names else [] for _, names in listed]

    def stand(self, wanted: Sequence[Sequence[str]]) -> list[bool]:
        """For each list of keys under one tag, whether there is an entry at every one, whatever it holds; one command
        each. LayerUnavailable."""
        try:
            found = redis_wire.ask(*(("EXISTS", *names) for names in wanted))
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        return [there == len(names) for there, names in zip(found, wanted, strict=True)]

    def drop(self, query: Query, generation: int) -> None:
        """Remove one entry."""
        try:
            cache().delete(keys.result(query.scope.pin, generation, query.fingerprint))
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error

    def load_once(
        self,
        query: Query,
        version: int,
        generation: int,
        load: Callable[[], Entry],
        good: Callable[[Entry], bool],
        deadline: Deadline,
    ) -> tuple[Entry, bool]:
        """The entry of this very version, by `load` in whichever process comes first, and whether it was this one.
        `load` leaves it here; one that is not `good` was here before. OriginTimeout, and what `load` raises."""

        def landed(stored: bytes) -> Entry | None:
            entry = self._unpack(query, generation, stored)
            return entry if entry is not None and entry.version == version and good(entry) else None

        pin = query.scope.pin
        lease = keys.flight(pin, generation, query.fingerprint, version)
        return flights.across(
            lease, keys.result(pin, generation, query.fingerprint), landed, load, deadline, pin.project
        )

    def _unpack(self, query: Query, generation: int, stored: bytes) -> Entry | None:
        try:
            return unpack(NAME, stored)
        except LayerCorrupt:
            with contextlib.suppress(LayerUnavailable):
                self.drop(query, generation)
            return None


@lru_cache(maxsize=KNOWN_READINGS)
def _state(pin: Pin, generation: int) -> Packed:
    return redis_wire.packed(("MGET", keys.pending(pin, generation), keys.version(pin, generation)))


@lru_cache(maxsize=KNOWN_READINGS)
def _reading(slot: tuple[Pin, str], generation: int, also: tuple[str, ...]) -> Packed:
    pin, fingerprint = slot
    return redis_wire.packed(("MGET", *keys.search(pin, generation, fingerprint), *also), ("TIME",))


def _life(entry: Entry, store_now: int, most: int) -> int:
    """The milliseconds that an entry will live, 0 for one about to expire."""
    life = int(most * (1 - JITTER * random.random()))  # noqa: S311  (spread, not secrecy)
    if not entry.valid_until:
        return life
    return min(life, (entry.valid_until - store_now) // 1000) if fillable(entry, store_now) else 0
