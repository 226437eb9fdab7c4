"""One number of users: warmed by the rebuild stretch by stretch beside the bare script, then found unchanged."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.measure import cpu
from bench.services import servers

SETTINGS = {
    "MEM0_USE_REST_API": "true",
    "MEM0_REST_API_URL": "http://127.0.0.1:9",
    "LOCAL_SEARCH": "on",
    "LOCAL_RANKING": "hybrid",
    "PROACTIVE_CACHE_ENABLED": "false",
    "REBUILD_CALLS_PER_SECOND": "1000000",
}
STRETCHES, LEAST, MOST = 10, 200, 1000
"""Of a rebuild: so many, of at least and at most so many users."""
LIGHT = 5
"""Rebuilds that find nobody changed."""
USER_KB = 100
"""Room in Valkey for a user's entries, twice over."""
_USERS = """
INSERT INTO memory_memoryuser (project_id, user_id, warmed_version, warm_superseded_version, warm_failed_version,
    warm_failure, active_at)
SELECT %(project)s, 'user-' || n, 0, 0, 0, '', now() - n * interval '1 millisecond'
FROM generate_series(0, %(users)s - 1) AS n
"""
_PINS = """
INSERT INTO memory_pinversion (project_id, kind, pin_id, version, floor)
SELECT %(project)s, 'user', 'user-' || n, 1700000000000000 + n, 0 FROM generate_series(0, %(users)s - 1) AS n
"""
_SIZES = """
SELECT relname, pg_relation_size(c.oid), pg_indexes_size(c.oid), coalesce(pg_total_relation_size(reltoastrelid), 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %(schema)s AND relname = ANY(%(tables)s)
"""


def measured(users: int) -> dict[str, Any]:
    """Every figure of it, as it was taken."""
    with servers(SETTINGS, cache_mb=256 + users * USER_KB // 1024) as services:
        from bench.warm import bare, worker

        project = _populate(users)
        plain = bare.Bare(os.environ["DATABASE_URL"], os.environ["REDIS_URL"])
        plain.prepare()
        servers_of = (services.postgres.process.record.pid, services.cache.process.record.pid)
        size = min(MOST, max(LEAST, users // STRETCHES))
        with worker.started(users, size) as rebuild:
            assert rebuild.ask("begin", full=True)
            stretches = _stretches(users, size, rebuild, plain, project, servers_of)
            rebuild.ask("work", until=users + 1)
            sizes = {schema: _sizes(schema, bare.TABLES) for schema in ("public", "bare")}
            light = []
            for _ in range(LIGHT):
                full = rebuild.ask("begin", full=False)
                light.append({"full": full, **rebuild.ask("work", until=users + 1)})
        return {
            "users": users,
            "stretches": stretches,
            "unchanged": light,
            "postgresql": sizes,
            "valkey": _valkey(project, users),
            "memories": _memories(),
        }


def _populate(users: int) -> int:
    """Users whom memsvc knows, each written once, nobody warm."""
    from django.db import connection

    from memory.models import Project

    project = Project.objects.create(name="Bench", slug="bench").pk
    with connection.cursor() as cursor:
        for statement in (_USERS, _PINS):
            cursor.execute(statement, {"project": project, "users": users})
        cursor.execute("VACUUM ANALYZE memory_memoryuser, memory_pinversion")
    return int(project)


def _stretches(
    users: int, size: int, rebuild: Any, plain: Any, project: int, servers_of: tuple[int, int]
) -> list[dict[str, Any]]:
    done = []
    for start in range(0, users, size):
        names = [f"user-{number}" for number in range(start, min(start + size, users))]
        before = cpu(*servers_of)
        warm = rebuild.ask("work", until=start + len(names))
        warm["servers_cpu"] = cpu(*servers_of) - before
        before = cpu(*servers_of)
        bare = plain.write(names, _keys(project, names), warm["embedded"])
        bare["servers_cpu"] = cpu(*servers_of) - before
        done.append({"warm": warm, "bare": bare})
        print(".", end="", flush=True, file=sys.stderr)
    return done


def _keys(project: int, users: Sequence[str]) -> list[str]:
    """Of the entries that a warm leaves, user by user."""
    from cachewarm import warmset
    from memory import keys
    from memory.tenancy.projects import policy
    from memory.types import Scope

    generation = policy(project).generation
    asked = [query.fingerprint for query in warmset.of(Scope(project, "nobody"))]
    tags = [keys.tag(Scope(project, user).pin, generation) for user in users]
    return [keys.of_result(tag, each) for tag in tags for each in asked]


def _sizes(schema: str, tables: Sequence[str]) -> dict[str, dict[str, int]]:
    """Bytes of each table: rows, indexes, TOAST."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(_SIZES, {"schema": schema, "tables": list(tables)})
        return {name: {"rows": rows, "indexes": indexes, "toast": toast} for name, rows, indexes, toast in cursor}


def _valkey(project: int, users: int) -> dict[str, float]:
    """Bytes that an entry takes with its key and what Valkey keeps of it, and how many a user has."""
    from memory.redis_client import cache

    names = _keys(project, [f"user-{number}" for number in range(0, users, max(1, users // 100))])
    held = [cache().memory_usage(name) or 0 for name in names]
    return {"sample": len(held), "bytes_of_entry": statistics.mean(held), "evicted": _evicted()}


def _memories() -> int:
    from memory.models import SnapshotMemory

    return SnapshotMemory.objects.count()


def embedding(texts: int) -> dict[str, float]:
    """Seconds that the local embedder takes for a sentence, apart from all else."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "memsvc.settings")
    os.environ.update(SECRET_KEY="of no use here", EMBEDDER_SYMMETRIC="false")
    from memory.embedders import local
    from tests import data

    said = [text for sentences in data.load("msc-personas.json.gz") for text in sentences][: texts + 1]
    embedder = local.make()
    embedder.embed(said[:1], "passage")
    began, used = time.perf_counter(), time.process_time()
    embedder.embed(said[1:], "passage")
    return {
        "seconds": (time.perf_counter() - began) / texts,
        "cpu": (time.process_time() - used) / texts,
        "texts": texts,
    }


def _evicted() -> int:
    from memory.redis_client import cache

    return int(cache().info("stats")["evicted_keys"])
