"""Waiting for a write to be stored or warm. One thread a process asks PostgreSQL for all who wait, so a hundred waits
cost as much as one; nobody who waits runs a worker's step (PROTOCOL E)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from memory import bulkhead, db
from memory.clock import Deadline
from memory.errors import Overloaded
from memory.models import Job

log = logging.getLogger(__name__)

TICK_SECONDS = 0.02
PAUSE_SECONDS = 1.0
"""After asking failed in a way nobody foresaw: each failure is logged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The job as it stood at the end of the wait; `warm` is {status, reason?} where that was waited for and ended,
    `late` when the deadline passed before it did."""

    job: Job
    warm: dict[str, str] | None = None
    late: bool = False


def until_stored(job: Job, deadline: Deadline) -> Outcome:
    """Wait until the job is `completed` or `failed`, at most until the deadline. Overloaded when too many wait."""
    db.release()
    with bulkhead.waiting():
        _jobs.wait(job.pk, deadline)
    return Outcome(_now(job))


def until_warm(job: Job, deadline: Deadline) -> Outcome:
    """Wait until the job has ended and a warm at its version has too (PROTOCOL C4). Overloaded when too many wait."""
    db.release()
    with bulkhead.waiting():
        _jobs.wait(job.pk, deadline)
        ended = _now(job)
        if ended.state != "completed":
            return Outcome(ended)
        if not settings.PROACTIVE_CACHE_ENABLED:
            return Outcome(ended, {"status": "off", "reason": "warming is switched off"})
        if ended.user_id is None or ended.version is None:
            return Outcome(ended, {"status": "off", "reason": "only users are warmed"})
        db.release()
        warm = _warms.wait((ended.project_id, ended.user_id, ended.version), deadline)
        return Outcome(ended, warm, late=warm is None)


def _now(job: Job) -> Job:
    """The job as PostgreSQL has it. While it is away, as it was: the write is accepted, and an error would have the
    caller send it again."""
    try:
        return Job.objects.get(pk=job.pk)
    except DatabaseError:
        db.release()
        return job


class _Watch:
    """Waiters by key, and the one thread that asks for all of them while there are any."""

    def __init__(self, ask: Callable[[list[Any]], dict[Any, Any]]) -> None:
        self._ask = ask
        self._waiters: dict[Any, list[Future[Any]]] = {}
        self._watching = False
        self._lock = threading.Lock()

    def wait(self, key: Any, deadline: Deadline) -> Any:
        """What was answered for the key; None at the deadline. Overloaded when no thread can be had to ask."""
        waiter: Future[Any] = Future()
        with self._lock:
            if not self._watching:  # it may have none to ask for and still sleep: then it finds this one
                self._start()
            self._waiters.setdefault(key, []).append(waiter)
        try:
            return waiter.result(timeout=deadline.remaining())
        except NotDone:
            return None
        finally:
            with self._lock:
                left = [other for other in self._waiters.pop(key, []) if other is not waiter]
                if left:
                    self._waiters[key] = left

    def _start(self) -> None:
        try:
            threading.Thread(target=self._watch, name="waits", daemon=True).start()
        except RuntimeError as error:
            raise Overloaded("no thread to wait with", retry_after=1) from error
        self._watching = True

    def _watch(self) -> None:
        try:
            while keys := self._keys():
                time.sleep(self._tick(keys))
        except BaseException:  # whatever ends this thread, the next to wait starts another
            with self._lock:
                self._watching = False
            raise

    def _tick(self, keys: list[Any]) -> float:
        """Ask and tell; the seconds to sleep then, without a connection."""
        try:
            answers = self._ask(keys)
        except DatabaseError:  # PostgreSQL is away: those who wait do so until their deadlines
            answers = {}
        except Exception:  # a thread's border: those who wait have no other to ask for them
            log.exception("waits cannot be looked after")
            return PAUSE_SECONDS
        finally:
            db.release()
        for key, answer in answers.items():
            self._tell(key, answer)
        return TICK_SECONDS

    def _keys(self) -> list[Any]:
        """Who waits for what; where nobody does the watch has ended, before another may wait."""
        with self._lock:
            self._watching = bool(self._waiters)
            return list(self._waiters)

    def _tell(self, key: Any, answer: Any) -> None:
        with self._lock:
            waiters = self._waiters.get(key, [])
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(answer)


def _ended_jobs(ids: list[int]) -> dict[int, bool]:
    ended = Job.objects.filter(pk__in=ids, state__in=("completed", "failed"))
    return dict.fromkeys(ended.values_list("pk", flat=True), True)


_WARMTH = """
SELECT u.project_id, u.user_id, u.warmed_version, u.warm_superseded_version, u.warm_failed_version, u.warm_failure
FROM memory_memoryuser u JOIN unnest(%s::bigint[], %s::text[]) AS w (project_id, user_id) USING (project_id, user_id)
"""


def _ended_warms(wanted: list[tuple[int, str, int]]) -> dict[tuple[int, str, int], dict[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(_WARMTH, ([project for project, _, _ in wanted], [user for _, user, _ in wanted]))
        rows = {(row[0], row[1]): row[2:] for row in cursor.fetchall()}
    answers = {}
    for key in wanted:
        warmed, superseded, failed, failure = rows.get(key[:2], (0, 0, 0, ""))
        if warmed >= key[2]:
            answers[key] = {"status": "completed"}
        elif superseded >= key[2]:
            answers[key] = {"status": "superseded", "reason": "a later write is being warmed"}
        elif failed >= key[2]:
            answers[key] = {"status": "failed", "reason": failure}
    return answers


_jobs = _Watch(_ended_jobs)
_warms = _Watch(_ended_warms)
