"""The backend itself: Django asks for a connection as ever, and gets one of the process's pool.

Session settings survive a return to the pool: use SET LOCAL, and advisory locks of a transaction.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.extras
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import IsolationLevel

from memsvc.postgres import waiting
from memsvc.postgres.pool import Pool

_pools: dict[tuple[tuple[str, str], ...], Pool] = {}
_lock = threading.Lock()

STATEMENT_MARGIN_SECONDS = 1.0


def _forget() -> None:
    """In a child after fork: its parent's connections are not its own (psycopg2 leaves them open there)."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget)


class DatabaseWrapper(base.DatabaseWrapper):
    """POOL_SIZE connections at most in a process, POOL_TIMEOUT_SECONDS to wait for one or for PostgreSQL,
    STATEMENT_TIMEOUT_SECONDS for one statement (0: no limit), less within `patience`."""

    _pool: Pool | None = None
    patience = staticmethod(waiting.patience)

    def get_connection_params(self) -> dict[str, Any]:
        """Django's own, with limits on how long a dead server can go unnoticed."""
        params = super().get_connection_params()
        limit = round(self.settings_dict.get("STATEMENT_TIMEOUT_SECONDS", 0) * 1000)
        if limit:
            params["options"] = f"{params.get('options', '')} -c statement_timeout={limit}".strip()
        seconds = max(2, math.ceil(self.settings_dict.get("POOL_TIMEOUT_SECONDS", 3)))
        dead = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000}
        return {"connect_timeout": seconds, **dead, **params}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """One of the pool, waiting at most POOL_TIMEOUT_SECONDS; else OperationalError."""
        self._pool = self._pool_for(conn_params)
        if self._pool is None:
            return super().get_new_connection(conn_params)
        self.isolation_level = IsolationLevel.READ_COMMITTED
        return self._pool.take()

    def _close(self) -> None:
        if self._pool is None or self.connection is None:
            super()._close()  # type: ignore[misc]  # private, and so not in the stubs
        else:
            # Forgotten before it is somebody else's: inside a transaction Django would keep it.
            connection, self.connection = self.connection, None
            self._pool.give(connection)

    def close_pool(self) -> None:
        """Django calls it before it drops a test database and when the time zone changes."""
        with _lock:
            pool = _pools.pop(_key(self.get_connection_params()), None)
        if pool:
            pool.close()

    def _pool_for(self, params: dict[str, Any]) -> Pool | None:
        size = self.settings_dict.get("POOL_SIZE", 0)
        if self.alias == NO_DB_ALIAS or not size:
            return None
        if "isolation_level" in self.settings_dict["OPTIONS"]:
            raise ImproperlyConfigured("The pool's connections are READ COMMITTED: set no isolation_level.")
        key = _key(params)
        with _lock:
            if key not in _pools:
                seconds = self.settings_dict["POOL_TIMEOUT_SECONDS"]
                limit = self.settings_dict.get("STATEMENT_TIMEOUT_SECONDS", 0)
                factory = functools.partial(
                    waiting.Connection,
                    connect_seconds=seconds,
                    # The server's own limit comes first: it ends the statement and keeps the connection.
                    statement_seconds=limit + STATEMENT_MARGIN_SECONDS if limit else math.inf,
                )
                _pools[key] = Pool(lambda: _connect(params, factory), size=size, seconds=seconds)
            return _pools[key]


def _connect(params: dict[str, Any], factory: Callable[..., waiting.Connection]) -> waiting.Connection:
    # No keyword of ours reaches libpq: psycopg2 calls the factory with the address alone.
    connection: waiting.Connection = psycopg2.connect(**params, connection_factory=factory)
    # As Django does: JSON fields decode for themselves.
    psycopg2.extras.register_default_jsonb(conn_or_curs=connection, loads=lambda text: text)
    return connection


def _key(params: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in params.items()))
