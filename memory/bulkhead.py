"""Calls that may wait hold at most half of a process's threads (PROTOCOL E), so that a stalled Mem0 slows no hit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once

from django.conf import settings

from memory.errors import Overloaded

LEAST = 16
LEAST_EMBEDDING = 4


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


@once
def _embedding_places() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(max(LEAST_EMBEDDING, settings.WEB_THREADS // 4))


@contextmanager
def embedding() -> Iterator[None]:
    """A place for making vectors that others ask for; Overloaded at once when all are taken.

    Not among `waiting`: a search that waits there for Mem0 may need this vector to end.
    """
    if not _embedding_places().acquire(blocking=False):
        raise Overloaded("too many texts are being embedded", retry_after=1)
    try:
        yield
    finally:
        _embedding_places().release()
