"""One load for each key at a time in this process (PROTOCOL E, G7): who asks for the same meanwhile waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from typing import Any, TypeVar

from memory import metrics
from memory.clock import Deadline
from memory.errors import OriginTimeout

T = TypeVar("T")

_flying: dict[Hashable, Future[Any]] = {}
_lock = threading.Lock()


def join(key: Hashable, load: Callable[[], T], deadline: Deadline) -> tuple[T, bool]:
    """The outcome of `load` or of the one already under way for `key`, and whether this call led it.

    Followers share the leader's error. OriginTimeout for a follower whose deadline passes first.
    """
    with _lock:
        flight = _flying.get(key)
        leads = flight is None
        if flight is None:
            flight = _flying[key] = Future()
    if not leads:
        metrics.count("loads_joined")
        try:
            return flight.result(timeout=deadline.remaining()), False
        except NotDone as error:
            raise OriginTimeout("an identical search is still under way") from error
    try:
        found = load()
    except BaseException as error:  # whatever ends the leader must not leave its followers waiting
        _land(key)
        flight.set_exception(error)
        raise
    _land(key)
    flight.set_result(found)
    return found, True


def _land(key: Hashable) -> None:
    with _lock:
        _flying.pop(key, None)
