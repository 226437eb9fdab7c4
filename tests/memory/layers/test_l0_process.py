"""L0 stays within its bytes and holds what was used last."""

from __future__ import annotations

import tracemalloc

from memory.clock import now
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU, ProcessLayer
from memory.types import Entry, Pin, Query, Scope, Version


def entry(size: int, version: int = 1) -> Entry:
    return Entry(b"[" + b" " * (size - 2) + b"]", version, 0, 0, "upstream", 0)


def put(layer: ProcessLayer, text: str, size: int) -> Query:
    query = Query(Scope(1, "ann"), text)
    layer.put(query, entry(size), Version(Pin(1, "user", "ann"), 1, 0, now()), 1, 0)
    return query


def test_ten_times_the_limit_keeps_memory_flat():
    layer = ProcessLayer(1 << 20)
    for n in range(300):
        put(layer, f"warm-up {n}", 4000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(10 * (1 << 20) // 4000):
        put(layer, f"q {n}", 4000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert layer.held.bytes <= 1 << 20
    assert grown < 2 << 20


def test_the_overhead_counted_covers_what_an_item_really_takes():
    layer = ProcessLayer(64 << 20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(5000):
        put(layer, f"q {n}", 100)
    taken = (tracemalloc.get_traced_memory()[0] - before) / 5000
    tracemalloc.stop()
    assert taken < 100 + OVERHEAD_BYTES


def test_the_least_recently_used_goes_first():
    lru: ByteLRU[str, int] = ByteLRU(30)
    for name in "abc":
        lru.put(name, 1, 10)
    lru.get("a")
    lru.put("d", 1, 10)
    assert [lru.get(name) for name in "abcd"] == [1, None, 1, 1]


def test_what_is_larger_than_the_whole_is_not_kept():
    lru: ByteLRU[str, int] = ByteLRU(30)
    lru.put("a", 1, 10)
    lru.put("huge", 1, 31)
    assert (lru.get("huge"), lru.get("a"), lru.bytes) == (None, 1, 10)


def test_replacing_counts_once():
    lru: ByteLRU[str, int] = ByteLRU(30)
    lru.put("a", 1, 10)
    lru.put("a", 2, 20)
    assert (lru.get("a"), lru.bytes) == (2, 20)
