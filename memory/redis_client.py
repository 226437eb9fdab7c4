"""The one connection to CACHE. Every call is bounded by REDIS_TIMEOUT_SECONDS, and a Redis that failed a moment ago is
not asked again at once: an outage costs each process one time-out every `REST_SECONDS`, not one a request."""

from __future__ import annotations

import threading
from functools import cache as once
from typing import Any

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from memory import clock

REST_SECONDS = 0.5

_down_until = 0.0
_lock = threading.Lock()


def failed() -> None:
    """Let CACHE rest: it did not answer in time."""
    global _down_until
    with _lock:
        _down_until = clock.now() + REST_SECONDS


class _Resting:
    """Refuses to connect while Redis rests after a failure."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        if clock.now() < _down_until:
            raise redis.ConnectionError("CACHE failed a moment ago")
        try:
            super().connect(*args, **kwargs)  # type: ignore[misc]
        except (redis.ConnectionError, redis.TimeoutError):
            failed()
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.TimeoutError:
            failed()
            raise


class _Tcp(_Resting, Connection):
    pass


class _Tls(_Resting, SSLConnection):
    pass


class _Unix(_Resting, UnixDomainSocketConnection):
    pass


@once
def cache() -> redis.Redis:
    """CACHE, answering bytes. Calls raise redis.RedisError; a connection whose call was abandoned is closed."""
    pool = redis.ConnectionPool.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=1024,
    )
    kinds = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
    pool.connection_class = kinds[pool.connection_class]
    return redis.Redis(connection_pool=pool)
