"""The clocks memsvc measures with.

Ages, leases and deadlines use `now()`: seconds on a clock that no one sets and that goes on while the machine is
suspended (PROTOCOL A2, B12). `wall()` is only ever shown to people; two hosts' wall clocks are never compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since some fixed moment, suspension included."""
    return time.clock_gettime(_CLOCK)


def wall() -> datetime:
    """The time of day in UTC, for showing."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on `now()` after which an answer is of no use."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(now() + seconds)

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - now())

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return now() >= self.at

    def at_most(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, now() + seconds))
