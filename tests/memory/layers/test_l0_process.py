"""L0 stays within its bytes and holds what was used last."""

from __future__ import annotations

import subprocess
import sys

from memory.clock import now
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU, ProcessLayer
from memory.types import Entry, Pin, Query, Scope, Version


def entry(size: int, version: int = 1) -> Entry:
    return Entry(b"[" + b" " * (size - 2) + b"]", version, 0, 0, "upstream", 0)


def put(layer: ProcessLayer, text: str, size: int) -> Query:
    query = Query(Scope(1, "ann"), text)
    layer.put(query, entry(size), Version(Pin(1, "user", "ann"), 1, 0, now()), 1, 0)
    return query


MEASURE = """
import sys, tracemalloc
from tests.memory.layers.test_l0_process import put
from memory.layers.l0_process import ProcessLayer

limit, before, count, size = map(int, sys.argv[1:])
layer = ProcessLayer(limit)
for n in range(before):
    put(layer, f"warm-up {n}", size)
tracemalloc.start()
start = tracemalloc.get_traced_memory()[0]
for n in range(count):
    put(layer, f"q {n}", size)
print(layer.held.bytes, tracemalloc.get_traced_memory()[0] - start)
"""


def measured(*numbers: int) -> tuple[int, int]:
    """Bytes held by L0's own account and bytes that really came, in a process where nothing else runs."""
    words = [sys.executable, "-c", MEASURE, *map(str, numbers)]
    held, grown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return int(held), int(grown)


def test_ten_times_the_limit_keeps_memory_flat():
    held, grown = measured(1 << 20, 300, 10 * (1 << 20) // 4000, 4000)
    assert held <= 1 << 20
    assert grown < 2 << 20


def test_the_overhead_counted_covers_what_an_item_really_takes():
    held, grown = measured(64 << 20, 0, 5000, 100)
    assert held == 5000 * (100 + OVERHEAD_BYTES)
    assert grown < held


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
