"""PostgreSQL connections are few (PROTOCOL E): whoever is about to wait gives its own back first."""

from __future__ import annotations

from django.db import connection


def release() -> None:
    """Return this thread's connection to the pool, unless a transaction is open on it."""
    if not connection.in_atomic_block:
        connection.close()
