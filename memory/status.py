"""How the service is at this moment, over all processes: a few small questions to PostgreSQL and one to Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from django.db import connection
from django.db.models import Count, Min
from django.db.models.functions import Now

from memory import stack
from memory.backends.breaker import Guarded
from memory.delivery import SENDABLE
from memory.models import CounterTotal, Job, Project
from memory.models.jobs import UNFINISHED
from memory.redis_client import cache

QUEUES = ("deliver", "warm", "rebuild")
ALIVE_SECONDS = 10.0
MOST_FAILED = 1000
LAYERS = ("L0", "L2", "L3", "L4")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its workers: how many were seen lately, and when one last was."""

    name: str
    workers: int
    seen_seconds: float | None

    @property
    def alive(self) -> bool:
        """Whether anybody works on it."""
        return self.workers > 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Unfinished jobs by state, failed ones nobody has dismissed (MOST_FAILED at most), and why some wait."""

    states: Mapping[str, int]
    failed: int
    oldest_seconds: float | None
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Share:
    """How often something happened, and its part of all."""

    name: str
    count: int
    percent: float


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator looks at first."""

    queues: Sequence[Queue]
    swept_seconds: float | None
    backlog: Backlog
    searches: Sequence[Share]
    upstream_calls: Sequence[Share]
    redis: Mapping[str, Any] | None
    breaker: Mapping[str, Any] | None


def read() -> Status:
    """The state now. Redis may be away (`redis` is then None); django.db.DatabaseError when PostgreSQL is."""
    beats = _beats()
    totals = _totals("searches", "upstream_calls")
    searches = Counter({name: totals["searches"].get(name, 0) for name in LAYERS})
    origin = stack.origin()
    return Status(
        queues=[_queue(name, beats) for name in QUEUES],
        swept_seconds=beats.get("duty:sweep", (0, None))[1],
        backlog=backlog(),
        searches=_shares(searches),
        upstream_calls=_shares(totals["upstream_calls"]),
        redis=_redis(),
        breaker=origin.state() if isinstance(origin, Guarded) else None,
    )


def backlog() -> Backlog:
    """What waits to be delivered."""
    unfinished = Job.objects.filter(state__in=UNFINISHED).order_by()
    states = dict.fromkeys(UNFINISHED, 0) | dict(unfinished.values_list("state").annotate(n=Count("pk")))
    oldest = unfinished.filter(state__in=SENDABLE).aggregate(age=Now() - Min("accepted_at"))["age"]
    held = unfinished.exclude(reason="").values_list("reason").annotate(n=Count("pk"))
    # By project, so that the index on (project, state) serves among millions of finished jobs.
    projects = list(Project.objects.values_list("pk", flat=True))
    failed = Job.objects.filter(project__in=projects, state="failed", dismissed_at=None).order_by()
    return Backlog(
        states=states,
        failed=failed.values("pk")[:MOST_FAILED].count(),
        oldest_seconds=None if oldest is None else oldest.total_seconds(),
        held=dict(held),
    )


def _beats() -> dict[str, tuple[int, float | None]]:
    """{queue or duty: (processes seen lately, seconds since the last was)}, by PostgreSQL's clock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT CASE WHEN name LIKE 'worker:%%' THEN split_part(name, ':', 2) ELSE name END AS who,"
            " count(*) FILTER (WHERE at > clock_timestamp() - make_interval(secs => %s)),"
            " extract(epoch FROM clock_timestamp() - max(at))::float8 FROM memory_heartbeat GROUP BY who",
            (ALIVE_SECONDS,),
        )
        return {who: (count, seconds) for who, count, seconds in cursor.fetchall()}


def _queue(name: str, beats: Mapping[str, tuple[int, float | None]]) -> Queue:
    return Queue(name, *beats.get(name, (0, None)))


def _totals(*names: str) -> dict[str, Counter[str]]:
    """Counters over all projects, by the one label each of these has."""
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    rows = CounterTotal.objects.filter(name__in=names).values_list("name", "labels", "total")
    for name, labels, total in rows:
        found[name][labels.partition("=")[2]] += total
    return found


def _shares(counts: Mapping[str, int]) -> list[Share]:
    whole = sum(counts.values())
    return [Share(name, n, 100 * n / whole if whole else 0.0) for name, n in counts.items()]


def _redis() -> dict[str, Any] | None:
    try:
        memory: Any = cache().info("memory")
    except redis.RedisError:
        return None
    return {"used": memory["used_memory"], "limit": memory["maxmemory"], "policy": memory["maxmemory_policy"]}
