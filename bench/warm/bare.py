"""The bare script: what a warm left behind, written once more by nothing but execute_values and pipelines.

The same rows go to tables of the same shape (indexes, keys, constraints) in a schema of its own, the same entries to
other keys. Reading what is to be written is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg2
import redis
from psycopg2.extras import execute_values

CHUNK = 100
"""Users of one transaction and one pipeline: as many as the rebuild takes together."""
TTL_SECONDS = 86_400
VECTOR_SECONDS = 3600
TABLES = ("memory_memoryuser", "memory_snapshot", "memory_snapshotmemory", "cachewarm_warmrun")
_KEYS = {
    "memory_snapshotmemory": "FOREIGN KEY (snapshot_id) REFERENCES bare.memory_snapshot",
    "memory_snapshot": "FOREIGN KEY (project_id) REFERENCES public.memory_project",
    "memory_memoryuser": "FOREIGN KEY (project_id) REFERENCES public.memory_project",
    "cachewarm_warmrun": "FOREIGN KEY (project_id) REFERENCES public.memory_project, "
    "ADD FOREIGN KEY (rebuild_id) REFERENCES public.cachewarm_rebuildrun",
}
_RUNS = "SELECT w.* FROM cachewarm_warmrun w WHERE w.user_id = ANY(%s)"
_SNAPSHOTS = "SELECT s.* FROM memory_snapshot s WHERE s.user_id = ANY(%s)"
_MEMORIES = (
    "SELECT m.* FROM memory_snapshotmemory m JOIN memory_snapshot s ON s.id = m.snapshot_id WHERE s.user_id = ANY(%s)"
)
_USERS = "SELECT u.id, u.warmed_version, u.warmed_at, u.rebuilt FROM memory_memoryuser u WHERE u.user_id = ANY(%s)"


class Bare:
    """A connection to each store, and nothing else."""

    def __init__(self, dsn: str, url: str) -> None:
        self._sql = psycopg2.connect(dsn)
        # JSON as the text it is.
        psycopg2.extras.register_default_jsonb(self._sql, loads=lambda text: text)
        self._redis = redis.Redis.from_url(url)

    def prepare(self) -> None:
        """Tables like those that a warm writes, with the users that it finds."""
        with self._sql, self._sql.cursor() as cursor:
            cursor.execute("CREATE SCHEMA bare")
            for table in TABLES:
                cursor.execute(f"CREATE TABLE bare.{table} (LIKE public.{table} INCLUDING ALL)")
                cursor.execute(f"ALTER TABLE bare.{table} ADD {_KEYS[table]}")
            cursor.execute("INSERT INTO bare.memory_memoryuser OVERRIDING SYSTEM VALUE SELECT * FROM memory_memoryuser")

    def write(self, users: Sequence[str], keys: Sequence[str], vectors: int) -> dict[str, float]:
        """Write once more what stands of these users, their entries at `keys`, and so many vectors."""
        seconds, cpu, rows, size = 0.0, 0.0, 0, 0
        share = max(1, len(keys) // max(1, len(users)))
        for start in range(0, len(users), CHUNK):
            standing = self._read(users[start : start + CHUNK])
            names = keys[start * share : (start + CHUNK) * share]
            entries = [(f"bare:{name}", held) for name, held in zip(names, self._redis.mget(names), strict=True)]
            made = vectors * (start + CHUNK) // len(users) - vectors * start // len(users)
            entries_1h = [(f"bare:e:{number:064x}", bytes(1536)) for number in range(start, start + made)]
            began, used = time.perf_counter(), time.process_time()
            self._store(standing)
            self._fill(entries, TTL_SECONDS)
            self._fill(entries_1h, VECTOR_SECONDS)
            seconds += time.perf_counter() - began
            cpu += time.process_time() - used
            rows += sum(map(len, standing.values()))
            size += sum(len(held) for _, held in entries)
            self._forget([name for name, _ in [*entries, *entries_1h]])
        return {"seconds": seconds, "cpu": cpu, "rows": rows, "entry_bytes": size, "entries": len(keys)}

    def _read(self, users: Sequence[str]) -> dict[str, list[Any]]:
        found = {}
        with self._sql, self._sql.cursor() as cursor:
            for table, statement in zip(TABLES, (_USERS, _SNAPSHOTS, _MEMORIES, _RUNS), strict=True):
                cursor.execute(statement, (list(users),))
                found[table] = cursor.fetchall()
        return found

    def _store(self, standing: dict[str, list[Any]]) -> None:
        with self._sql, self._sql.cursor() as cursor:
            for table in TABLES[1:]:
                statement = f"INSERT INTO bare.{table} OVERRIDING SYSTEM VALUE VALUES %s"
                execute_values(cursor, statement, standing[table], page_size=500)
            execute_values(
                cursor,
                "UPDATE bare.memory_memoryuser u SET warmed_version = v.version, warmed_at = v.at, rebuilt = v.rebuilt "
                "FROM (VALUES %s) AS v (id, version, at, rebuilt) WHERE u.id = v.id",
                standing["memory_memoryuser"],
                page_size=500,
            )

    def _fill(self, entries: Sequence[tuple[str, bytes]], seconds: int) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for name, held in entries:
            pipe.set(name, held, ex=seconds)
        pipe.execute()

    def _forget(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 500):
            self._redis.unlink(*names[start : start + 500])
