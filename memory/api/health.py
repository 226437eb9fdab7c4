"""`/healthz`: the process answers. `/readyz`: it may be sent requests, and what it depends on is how."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import redis
from celery import current_app
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError as BrokerError

from memory import clock, db, stack, upkeep
from memory.clock import Deadline
from memory.errors import OriginError
from memory.redis_client import cache

T = TypeVar("T")

QUEUES = ("deliver", "warm", "rebuild")
EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 1.0
START_SECONDS = 60.0
"""After so long a process that never saw a worker serves without: reads and accepted writes need none."""
MEM0_EVERY_SECONDS = 5.0
MEM0_PATIENCE_SECONDS = 3.0

_FAILURES = (DatabaseError, redis.RedisError, BrokerError, OriginError, OSError)


class Look(Generic[T]):
    """One dependency, looked at in a thread of its own: whatever hangs, hangs there and not in a request."""

    def __init__(self, ask: Callable[[], T], *, every: float, patience: float, now: Callable[[], float]) -> None:
        self._ask, self._every, self._patience, self._now = ask, every, patience, now
        self._answer: T | None = None
        self._asked_at = now() - every
        self._thread: threading.Thread | None = None
        self._deadline = Deadline.after(0)

    def begin(self) -> None:
        """Look again, if it is time and the last look has ended."""
        if self._now() - self._asked_at < self._every or (self._thread and self._thread.is_alive()):
            return
        self._asked_at = self._now()
        self._deadline = Deadline.after(self._patience)
        self._thread = threading.Thread(target=self._run, name="readyz", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the look that has begun, within its patience."""
        if self._thread:
            self._thread.join(self._deadline.remaining())

    def answer(self) -> T | None:
        """What was seen last; None for a dependency that failed or does not answer."""
        hangs = self._thread is not None and self._thread.is_alive() and self._deadline.passed
        return None if hangs else self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except _FAILURES:
            self._answer = None
        finally:
            db.release()


class Readiness:
    """What one process knows of its readiness."""

    def __init__(self, workers: Callable[[], set[str]] = upkeep.workers, now: Callable[[], float] = clock.now) -> None:
        def look(ask: Callable[[], T], every: float = EVERY_SECONDS, patience: float = PATIENCE_SECONDS) -> Look[T]:
            return Look(ask, every=every, patience=patience, now=now)

        self._workers, self._now, self._began = workers, now, now()
        self._migrated = self._served = self._mem0_seen = False
        self._database = look(self._ask_database)
        self._cache = look(lambda: _ask_cache())
        self._broker = look(lambda: _ask_broker())
        self._mem0 = look(self._ask_mem0, MEM0_EVERY_SECONDS, MEM0_PATIENCE_SECONDS)
        self._lock = threading.Lock()

    def report(self) -> tuple[int, dict[str, Any]]:
        """The status and body to answer with."""
        with self._lock:
            looks = (self._database, self._cache, self._broker)
            for look in looks:
                look.begin()
            for look in looks:
                look.wait()
            return self._told()

    def _told(self) -> tuple[int, dict[str, Any]]:
        seen = self._database.answer()
        states = {
            "postgresql": _up(seen is not None),
            "cache": _up(self._cache.answer()),
            "broker": _up(self._broker.answer()),
            "mem0": self._mem0_state(seen is not None),
            **{f"worker:{queue}": _up(queue in (seen or ())) for queue in QUEUES},
        }
        if waits_for := self._waits_for(states):
            word = "down" if self._served else "starting"
            return 503, {"status": word, "waits_for": waits_for, "dependencies": states}
        self._served = True
        # In process the first look builds Mem0, so that no search has to.
        self._mem0.begin()
        healthy = all(state == "up" for state in states.values())
        return 200, {"status": "ready" if healthy else "degraded", "dependencies": states}

    def _waits_for(self, states: dict[str, str]) -> str | None:
        """Why no request should come here yet; None when they may."""
        if states["postgresql"] == states["cache"] == "down":
            return "postgresql or cache"
        if not self._migrated:
            return "migrations" if states["postgresql"] == "up" else "postgresql"
        missing = any(states[f"worker:{queue}"] == "down" for queue in QUEUES)
        return "workers" if missing and not self._served and self._now() - self._began < START_SECONDS else None

    def _mem0_state(self, database: bool) -> str:
        """Before the first look: in process it lives in PostgreSQL, over REST nobody knows yet."""
        if self._mem0.answer() or (not self._mem0_seen and database and not settings.MEM0_USE_REST_API):
            return "up"
        return "down" if self._mem0_seen else "degraded"

    def _ask_database(self) -> set[str]:
        """The queues with a worker seen lately; none before the migrations are applied."""
        self._migrated = self._migrated or _migrated()
        return self._workers() if self._migrated else set()

    def _ask_mem0(self) -> bool:
        try:
            stack.origin().check(Deadline.after(MEM0_PATIENCE_SECONDS))
        finally:
            self._mem0_seen = True
        return True


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


def _ask_cache() -> bool:
    return bool(cache().ping())


def _ask_broker() -> bool:
    with current_app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=1)
    return True


def _up(answers: object) -> str:
    return "up" if answers else "down"
