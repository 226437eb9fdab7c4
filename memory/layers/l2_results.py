"""L2: encoded answers in Redis, each carrying the version it was computed at."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
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
# nothing below the floor is kept (B9). The copy may be missing; then equality at look-up is the guard.
_FILL = """
local copy = redis.call('GET', KEYS[1])
if copy then
  local version, floor = string.match(copy, '^(%d+):(%d+)$')
  if tonumber(version) > tonumber(ARGV[2]) or tonumber(floor) > tonumber(ARGV[2]) then return 0 end
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1
"""


# Whether every entry stands at one version, may be served and lives on for a while. ARGV: what such an entry begins
# with, the milliseconds, the rankings that are served, a byte each. One that dies with a memory in it does not count.
_STAND = """
for _, key in ipairs(KEYS) do
  local head = redis.call('GETRANGE', key, 0, 28)
  if string.sub(head, 1, 12) ~= ARGV[1] or string.sub(head, 21, 28) ~= string.rep('\\0', 8)
    or not string.find(ARGV[3], string.sub(head, 29, 29), 1, true)
    or redis.call('PTTL', key) <= tonumber(ARGV[2]) then return 0 end
end
return 1
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

    def put(self, query: Query, entry: Entry, generation: int, store_now: int) -> bool:
        """Keep an entry; False when it was refused as older than the version, below the floor or about to expire."""
        return self.put_many([(query, entry)], generation, store_now)[0]

    def put_many(self, filled: Iterable[tuple[Query, Entry]], generation: int, store_now: int) -> list[bool]:
        """Keep many entries in one round trip; whether each was kept."""
        fill = cache().register_script(_FILL)
        pipe = cache().pipeline(transaction=False)
        kept: list[bool] = []
        for query, entry in filled:
            kept.append(fillable(entry, store_now))
            if kept[-1]:
                pin = query.scope.pin
                names = [keys.version(pin, generation), keys.result(pin, generation, query.fingerprint)]
                fill(keys=names, args=[pack(entry), entry.version, _lifetime_ms()], client=pipe)
        try:
            answers = iter(pipe.execute() if any(kept) else ())
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error
        return [sent and bool(next(answers)) for sent in kept]

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

    def stand(
        self, wanted: Iterable[tuple[int, Sequence[str]]], milliseconds: int, rankings: Iterable[Ranking]
    ) -> list[bool]:
        """For each version and the keys of some entries, whether all of them stand at it for longer than that, none of
        them to expire before by a memory's date, each of one of these rankings. LayerUnavailable."""
        check, allowed = cache().register_script(_STAND), bytes(map(RANKINGS.index, rankings))
        pipe = cache().pipeline(transaction=False)
        for version, names in wanted:
            check(keys=names, args=[head(version), milliseconds, allowed], client=pipe)
        try:
            return [bool(answer) for answer in pipe.execute()]
        except redis.RedisError as error:
            raise LayerUnavailable(NAME, type(error).__name__) from error

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


def _lifetime_ms() -> int:
    return int(settings.L2_TTL_SECONDS * 1000 * random.uniform(1 - JITTER, 1))  # noqa: S311  (spread, not secrecy)
