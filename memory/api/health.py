"""`/healthz`: the process answers. `/readyz`: it may be sent requests, and what it depends on is how."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis
from celery import current_app
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError as BrokerError

from memory import clock, stack, upkeep
from memory.clock import Deadline
from memory.errors import OriginError, OriginTimeout
from memory.redis_client import cache

QUEUES = ("deliver", "warm", "rebuild")
KEPT_SECONDS = 1.0
START_SECONDS = 60.0
"""After so long a process that never saw a worker serves without: reads and accepted writes need none."""
MEM0_EVERY_SECONDS = 5.0
MEM0_TIMEOUT_SECONDS = 2.0

Report = tuple[int, dict[str, Any]]


class Readiness:
    """What one process knows of its readiness: asked of its dependencies at most once in KEPT_SECONDS."""

    def __init__(self, workers: Callable[[], set[str]] = upkeep.workers, now: Callable[[], float] = clock.now) -> None:
        self._workers, self._now = workers, now
        self._began = now()
        self._migrated = False
        self._served = False
        self._kept: tuple[float, Report] | None = None
        self._mem0: str | None = None
        self._mem0_asked_at = -MEM0_EVERY_SECONDS
        self._lock = threading.Lock()

    def report(self) -> Report:
        """The status and body to answer with."""
        with self._lock:
            if self._kept is None or self._now() - self._kept[0] >= KEPT_SECONDS:
                self._kept = (self._now(), self._ask())
            return self._kept[1]

    def _ask(self) -> Report:
        database, seen = self._ask_database()
        states = {
            "postgresql": database,
            "cache": _up(_ask_cache),
            "broker": _up(_ask_broker),
            "mem0": self._mem0 or ("degraded" if settings.MEM0_USE_REST_API else database),
            **{f"worker:{queue}": "up" if queue in seen else "down" for queue in QUEUES},
        }
        healthy = all(state == "up" for state in states.values())
        waits_for = self._waits_for(states, seen)
        self._served = self._served or waits_for is None
        if self._served:
            self._look_at_mem0()
        if waits_for:
            word = "down" if self._served else "starting"
            return 503, {"status": word, "waits_for": waits_for, "dependencies": states}
        return 200, {"status": "ready" if healthy else "degraded", "dependencies": states}

    def _waits_for(self, states: dict[str, str], seen: set[str]) -> str | None:
        """Why no request should come here yet; None when they may."""
        if states["postgresql"] == states["cache"] == "down":
            return "postgresql or cache"
        if not self._migrated:
            return "migrations" if states["postgresql"] == "up" else "postgresql"
        if not self._served and not seen.issuperset(QUEUES) and self._now() - self._began < START_SECONDS:
            return "workers"
        return None

    def _ask_database(self) -> tuple[str, set[str]]:
        """PostgreSQL's state, and the queues with a worker seen lately."""
        try:
            self._migrated = self._migrated or _migrated()
            return "up", self._workers() if self._migrated else set()
        except DatabaseError:
            return "down", set()

    def _look_at_mem0(self) -> None:
        """Ask Mem0 beside the request, as it may be slow. In process the first look builds it: no search has to."""
        if self._now() - self._mem0_asked_at >= MEM0_EVERY_SECONDS:
            self._mem0_asked_at = self._now()
            threading.Thread(target=self._ask_mem0, name="readyz", daemon=True).start()

    def _ask_mem0(self) -> None:
        try:
            stack.origin().check(Deadline.after(MEM0_TIMEOUT_SECONDS))
            self._mem0 = "up"
        except OriginTimeout:
            self._mem0 = "degraded"
        except OriginError:
            self._mem0 = "down"


_readiness = Readiness()


@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """The process is there."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """200 while this process can accept writes or answer reads."""
    status, body = _readiness.report()
    return JsonResponse(body, status=status)


def _migrated() -> bool:
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def _ask_cache() -> None:
    cache().ping()


def _ask_broker() -> None:
    with current_app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=1)


def _up(ask: Callable[[], None]) -> str:
    try:
        ask()
    except (redis.RedisError, BrokerError, OSError):
        return "down"
    return "up"
