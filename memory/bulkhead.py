"""Calls that may wait hold at most half of a process's threads (PROTOCOL E), so that a stalled Mem0 slows no hit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once

from django.conf import settings

from memory.errors import Overloaded

LEAST = 16


@once
def _places() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(places())


def places() -> int:
    """How many calls of this process may wait at a time."""
    return max(LEAST, settings.WEB_THREADS // 2)


@contextmanager
def waiting() -> Iterator[None]:
    """A place for a call that may wait; Overloaded at once when all are taken."""
    if not _places().acquire(blocking=False):
        raise Overloaded("too many calls of this process are waiting", retry_after=1)
    try:
        yield
    finally:
        _places().release()
