"""When to try again: full jitter, the server's own Retry-After, and a budget against storms of retries."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_SECONDS = 3600.0
"""What a server may ask us to wait at most; more is taken as this."""


def backoff(attempt: int, *, base: float, most: float, draw: Callable[[], float] = random.random) -> float:
    """Seconds before retry number `attempt` (0 is the first): any, as likely, up to base x 2^attempt and `most`."""
    return draw() * min(most, base * 2.0 ** min(attempt, 30))


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header, which is a number of seconds or an HTTP date; None without a usable one."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MOST_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - now).total_seconds()), MOST_SECONDS)


class Budget:
    """Retries as a share of calls: each call earns `share` of a retry, at most `burst` are saved up. One per process.

    Without a lock, which a fork could leave held: two threads at the same moment may cost or gain one retry.
    """

    def __init__(self, share: float = 0.1, burst: float = 10.0) -> None:
        self._share, self._burst, self._saved = share, burst, burst

    @property
    def left(self) -> int:
        """Retries that may be made now."""
        return int(self._saved)

    def earn(self) -> None:
        """A call was made."""
        self._saved = min(self._burst, self._saved + self._share)

    def spend(self) -> bool:
        """Whether a retry may be made; it is paid for if so."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
