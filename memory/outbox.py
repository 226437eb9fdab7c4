"""Telling Celery of work, off the request: a thread publishes, so that a broker that is down or slow costs no caller
anything. Whatever is lost here is found again by the sweeper: PostgreSQL is the queue (PROTOCOL A1)."""

from __future__ import annotations

import logging
import os
import threading
from queue import Empty, Full, Queue

from celery import Signature
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

MOST_WAITING = 10_000

_waiting: Queue[Signature] = Queue(MOST_WAITING)
_thread: threading.Thread | None = None
_pid = 0
_lock = threading.Lock()


def send(task: Signature) -> None:
    """Publish a task soon. It may be lost; it never raises and never waits."""
    _ensure_thread()
    try:
        _waiting.put_nowait(task)
    except Full:
        log.warning("outbox full: left to the sweeper", extra={"outcome": "dropped"})


def _ensure_thread() -> None:
    global _thread, _pid
    if _thread is not None and _thread.is_alive() and _pid == os.getpid():
        return
    with _lock:
        if _thread is None or not _thread.is_alive() or _pid != os.getpid():
            _pid = os.getpid()
            _thread = threading.Thread(target=_publish, name="outbox", daemon=True)
            _thread.start()


def _publish() -> None:
    while True:
        task = _waiting.get()
        try:
            task.apply_async(retry=False)
        except (OperationalError, OSError):
            dropped = 1 + _empty()
            log.warning("broker away: left to the sweeper", extra={"outcome": "dropped", "count": dropped})


def _empty() -> int:
    """Forget what waits: with the broker away the sweeper will hand all of it over."""
    dropped = 0
    while True:
        try:
            _waiting.get_nowait()
        except Empty:
            return dropped
        dropped += 1
