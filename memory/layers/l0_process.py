"""L0: encoded answers in the process's own memory, bounded in bytes; the version makes old ones harmless."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from django.conf import settings

from memory import clock
from memory.types import Entry, Pin, Query, Version

K = TypeVar("K")
V = TypeVar("V")

OVERHEAD_BYTES = 800
"""What one item costs beside its payload: key, entry, links (measured with tracemalloc, rounded up)."""


class ByteLRU(Generic[K, V]):
    """A least-recently-used map bounded in bytes, safe in threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; None when it is not here."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of `size` bytes, dropping the least recently used; one larger than the bound is not kept."""
        with self._lock:
            self._drop(key)
            if size > self.max_bytes:
                return
            self._items[key] = (value, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._drop(next(iter(self._items)))

    def drop(self, key: K) -> None:
        """Remove one value, if it is here."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._items.clear()
            self.bytes = 0

    def items(self) -> list[tuple[K, V, int]]:
        """Everything held, least recently used first, with sizes; for inspection."""
        with self._lock:
            return [(key, value, size) for key, (value, size) in self._items.items()]

    def __len__(self) -> int:
        return len(self._items)

    def _drop(self, key: K) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.bytes -= item[1]


@dataclass(slots=True)
class Held:
    """An entry in L0. All moments are on `clock.now()`: its age needs no store's clock. Only `confirmed_at` changes."""

    entry: Entry
    born_at: float
    dies_at: float | None
    confirmed_at: float
    generation: int

    @property
    def age_ms(self) -> int:
        """Milliseconds since the answer was true for certain."""
        return max(0, int((clock.now() - self.born_at) * 1000))

    @property
    def expired(self) -> bool:
        """Whether a memory in it has expired (PROTOCOL B10)."""
        return self.dies_at is not None and clock.now() >= self.dies_at


class ProcessLayer:
    """Answers by pin and fingerprint. One newest entry a query; equality with the version decides (PROTOCOL B8)."""

    name = "L0"
    fills = True

    def __init__(self, max_bytes: int | None = None) -> None:
        self.held: ByteLRU[tuple[Pin, str], Held] = ByteLRU(settings.L0_MAX_BYTES if max_bytes is None else max_bytes)

    def get(self, query: Query, version: Version, generation: int) -> Held | None:
        """The entry computed at this version, confirmed current by it; None otherwise."""
        held = self.any(query, generation)
        if held is None or held.entry.version != version.number:
            return None
        # Two requests may write it in either order: the earlier moment is as true, only sooner too old.
        held.confirmed_at = max(held.confirmed_at, version.confirmed_at)
        return held

    def any(self, query: Query, generation: int) -> Held | None:
        """The entry of this query whatever its version, unless something in it has expired."""
        held = self.held.get(query.slot)
        if held is None or held.generation != generation or held.expired:
            return None
        return held

    def put(self, query: Query, entry: Entry, version: Version, generation: int, store_now: int) -> None:
        """Keep an entry read or computed at `version`; `store_now` is the store's time in microseconds."""
        now = clock.now()
        born = now - max(0, store_now - entry.as_of) / 1e6
        dies = now + (entry.valid_until - store_now) / 1e6 if entry.valid_until else None
        self._keep(query, Held(entry, born, dies, version.confirmed_at, generation))

    def _keep(self, query: Query, held: Held) -> None:
        size = len(held.entry.results) + len(held.entry.jobs) + OVERHEAD_BYTES
        self.held.put(query.slot, held, size)
