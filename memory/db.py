"""PostgreSQL connections are few (PROTOCOL E): whoever is about to wait gives its own back first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connection
from psycopg2.extras import execute_values


def release() -> None:
    """Return this thread's connection to the pool, unless a transaction is open on it."""
    if not connection.in_atomic_block:
        connection.close()


def write_many(sql: str, rows: Sequence[Sequence[Any]], *, template: str | None = None, page: int = 500) -> None:
    """Run a statement with `VALUES %s` for many rows, `page` at a time. Errors are Django's."""
    with connection.cursor() as cursor, connection.wrap_database_errors:
        execute_values(cursor.cursor, sql, rows, template=template, page_size=page)
