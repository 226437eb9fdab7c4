"""Refreshing behind an answer that was a little old (stale while revalidating): one refresh a question, few at a time.

It is a courtesy to the next caller. What is one too many is left out, and what fails is left to the next search.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future as Running
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache as once

from memory import db
from memory.errors import MemsvcError

log = logging.getLogger(__name__)

AT_A_TIME = 4
MOST = 64

_begun: dict[Hashable, Running[None]] = {}
_lock = threading.Lock()


def begin(key: Hashable, refresh: Callable[[], object]) -> bool:
    """Refresh in the background, unless that is under way for this key or too many are; whether it was begun."""

    def run() -> None:
        try:
            refresh()
        except MemsvcError as error:
            log.info("refresh failed", extra={"reason": error.code})
        finally:
            with _lock:
                del _begun[key]
            db.release()

    with _lock:
        if key in _begun or len(_begun) >= MOST:
            return False
        _begun[key] = _threads().submit(run)
    return True


def settle() -> None:
    """Wait until none is under way."""
    with _lock:
        begun = list(_begun.values())
    wait(begun)


@once
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="refresh")
