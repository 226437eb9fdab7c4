"""Calls to a Mem0 over HTTP: reads may be tried again, writes only while nothing of them can have taken effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from memory import retry
from memory.backends import answers, filters
from memory.backends.transport import Reply, Transport
from memory.clock import Deadline
from memory.errors import OriginRateLimited, OriginRejected, OriginUnavailable

ATTEMPTS = 3
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 2.0


class Caller:
    """What the backends over HTTP share. Which server they meet, and what its 404 means, is theirs to say."""

    def __init__(
        self,
        transport: Transport,
        *,
        timeout: float = 30.0,
        extract_timeout: float = 100.0,
        pause: Callable[[float], None] = time.sleep,
        retry_share: float = 0.1,
    ) -> None:
        self._transport = transport
        self._timeout, self._extract_timeout = timeout, extract_timeout
        self._pause = pause
        self.budget = retry.Budget(retry_share)

    def _require_known(self, deadline: Deadline) -> None:
        """OriginUnavailable, with nothing sent, for a server that memsvc cannot work with."""

    def _reply(
        self, method: str, path: str, deadline: Deadline, params: Mapping[str, str] | None, body: bytes | None
    ) -> Reply:
        return self._transport.call(method, path, deadline, params=params, body=body)

    def _read(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        compares_numbers: bool = False,
    ) -> Any:
        """A call that changes nothing: whatever went wrong on the way may be tried again."""
        deadline = deadline.at_most(self._timeout)
        encoded = _encoded(body)

        def attempt() -> Any:
            self._require_known(deadline)
            with answers.without_effect():
                reply = self._reply(method, path, deadline, params, encoded)
                return answers.body(reply, compares_numbers=compares_numbers)

        return self._retried(attempt, deadline)

    def _write(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        embeds_first: bool = False,
    ) -> Any:
        """A call that is tried again only while nothing of it can have taken effect."""
        encoded = _encoded(body)

        def attempt() -> Any:
            self._require_known(deadline)
            reply = self._reply(method, path, deadline, params, encoded)
            return answers.body(reply, embeds_first=embeds_first)

        return self._retried(attempt, deadline)

    def _retried(self, attempt: Callable[[], Any], deadline: Deadline) -> Any:
        self.budget.earn()
        for number in range(ATTEMPTS - 1):
            try:
                return attempt()
            except (OriginUnavailable, OriginRateLimited) as error:
                wait = error.retry_after
                if wait is None:
                    wait = retry.backoff(number, base=BACKOFF_SECONDS, most=BACKOFF_MAX_SECONDS)
                if error.sent or wait >= deadline.remaining() or not self.budget.spend():
                    raise
            self._pause(wait)
        return attempt()


def _encoded(body: Any) -> bytes | None:
    if body is None:
        return None
    if not filters.storable(body):
        raise OriginRejected("texts and metadata must not hold NUL or lone surrogates")
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise OriginRejected("metadata must be JSON with numbers of at most 64 bits") from error
