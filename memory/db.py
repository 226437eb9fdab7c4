"""PostgreSQL connections are few (PROTOCOL E): whoever is about to wait gives its own back first. Nobody waits for
PostgreSQL longer than the answer is of use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any, cast

from django.db import connection
from psycopg2.extras import execute_values


def release() -> None:
    """Return this thread's connection to the pool, unless a transaction is open on it."""
    if not connection.in_atomic_block:
        connection.close()


def patience(seconds: float = inf, until: float = inf) -> AbstractContextManager[None]:
    """Within it PostgreSQL may be silent for so many seconds, and nothing waits for it after `until` (on `clock`)."""
    # Of our own backend, which memory may not import.
    return cast("AbstractContextManager[None]", connection.patience(seconds, until))  # type: ignore[attr-defined]


def write_many(
    sql: str, rows: Sequence[Sequence[Any]], *, template: str | None = None, page: int = 500
) -> list[tuple[Any, ...]]:
    """Run a statement with `VALUES %s` for many rows, `page` at a time; what it returns of all. Errors are Django's."""
    with connection.cursor() as cursor, connection.wrap_database_errors:
        returning = "RETURNING" in sql
        return execute_values(cursor.cursor, sql, rows, template=template, page_size=page, fetch=returning) or []
