"""What Mem0 in process keeps in PostgreSQL: its connections, its collection's indexes, its history.

Mem0's own pool raises when it is empty and hands out connections that died; its history is a SQLite file that neither
another process nor another machine can read. Both are replaced by objects with the same methods.
"""

from __future__ import annotations

import contextlib
import math
import select
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from django.db import connection as django_connection
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from memory.clock import Deadline
from memory.errors import OriginTimeout
from memory.types import MARK_JOB

UNBOUND_SECONDS = 30.0
"""What a statement outside any call may take: Mem0 starts threads of its own for entities."""
LAST_MESSAGES = 10
_ESCAPES = str.maketrans({"%": "%25", "&": "%26", "=": "%3D"})
COLUMNS = (
    "id",
    "memory_id",
    "old_memory",
    "new_memory",
    "event",
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
)
OWNERS = ("user_id", "agent_id", "run_id")


@dataclass
class Call:
    """One call into Mem0, seen from below it."""

    deadline: Deadline
    project: int | None
    vectors: dict[str, list[float]] = field(default_factory=dict)
    """Of texts about to be stored, made before the first of them was."""
    touched: bool = False
    """A connection was handed out: from here on PostgreSQL may have changed."""
    error: psycopg2.Error | None = None
    """The last statement that failed; Mem0 swallows some."""


current: ContextVar[Call | None] = ContextVar("mem0_call", default=None)


class _Cursor(psycopg2.extensions.cursor):  # type: ignore[misc]
    def execute(self, query: Any, vars: Any = None) -> None:
        try:
            super().execute(query, vars)
        except psycopg2.Error as error:
            if (call := current.get()) is not None:
                call.error = error
            raise


class Connections:
    """At most `size` connections, waited for and used within the call's deadline. Mem0 calls `getconn`, `putconn`."""

    def __init__(self, size: int) -> None:
        self._places = threading.BoundedSemaphore(size)
        self._idle: list[Any] = []

    def getconn(self) -> Any:
        """A live connection in a new transaction whose statements end with the call. OriginTimeout, psycopg2.Error."""
        call = current.get() or Call(Deadline.after(UNBOUND_SECONDS), None)
        if call.deadline.passed or not self._places.acquire(timeout=call.deadline.remaining()):
            raise OriginTimeout("no time or no connection left", sent=call.touched)
        try:
            connection = self._reuse() or connect()
            # LOCAL, so that it holds for nobody else behind a transaction pooler either.
            with connection.cursor() as cursor:
                limit = max(1, math.ceil(call.deadline.remaining() * 1000))
                cursor.execute("SET LOCAL statement_timeout = %s", (limit,))
        except BaseException:
            self._places.release()
            raise
        call.touched = True
        return connection

    def putconn(self, connection: Any) -> None:
        """Return a connection; what it left open is rolled back, a broken one closed."""
        try:
            if not connection.closed:
                connection.rollback()
                if connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
                    self._idle.append(connection)
                    return
            connection.close()
        except psycopg2.Error:
            connection.close()
        finally:
            self._places.release()

    def closeall(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def cursor(self) -> Iterator[Any]:
        """A cursor in a transaction of its own, committed at the end."""
        connection = self.getconn()
        try:
            with connection.cursor() as cursor:
                yield cursor
            connection.commit()
        finally:
            self.putconn(connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> Connections:
        """Mem0 copies its configuration for a second table; both share the pool."""
        return self

    def _reuse(self) -> Any | None:
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.closed and not _readable(connection):
                    return connection
                connection.close()
        return None


def _readable(connection: Any) -> bool:
    """An idle connection has something to read only when the server has said goodbye or gone."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def connect() -> Any:
    """A connection to the service's own database. psycopg2.OperationalError."""
    parameters = django_connection.get_connection_params()
    return psycopg2.connect(**{**parameters, "cursor_factory": _Cursor, "application_name": "memsvc-mem0"})


def prepare(collection: str, create: Callable[[], None]) -> None:
    """Make the extension, the collection (by calling `create`), its indexes and the history, once among all processes.

    Mem0 filters by `payload->>'user_id'` without an index: every search would read every user's rows.
    """
    with contextlib.closing(connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"memsvc:{collection}",))
        if not _exists(cursor, collection):
            create()
        for key in (*OWNERS, MARK_JOB):
            name = f"{collection}_{key}_idx"
            # IF NOT EXISTS would lock the table against writes only to find that there is nothing to do.
            if not _exists(cursor, name):
                cursor.execute(_INDEX.format(sql.Identifier(name), sql.Identifier(collection), key=sql.Literal(key)))
        names = {part: sql.Identifier(f"{collection}_{part}") for part in _PARTS}
        cursor.execute(_HISTORY.format(**names))


_PARTS = ("history", "messages", "history_memory_idx", "history_user_idx", "messages_scope_idx")
_INDEX = sql.SQL("CREATE INDEX {} ON {} ((payload->>{key})) WHERE payload->>{key} IS NOT NULL")
_HISTORY = sql.SQL("""
CREATE TABLE IF NOT EXISTS {history} (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL, memory_id text NOT NULL, old_memory text, new_memory text, event text NOT NULL,
    created_at text, updated_at text, is_deleted boolean NOT NULL, actor_id text, role text,
    user_id text, agent_id text, run_id text
);
CREATE INDEX IF NOT EXISTS {history_memory_idx} ON {history} (memory_id);
CREATE INDEX IF NOT EXISTS {history_user_idx} ON {history} (user_id);
CREATE TABLE IF NOT EXISTS {messages} (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_scope text NOT NULL, role text, content text, name text, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS {messages_scope_idx} ON {messages} (session_scope, seq)
""")


def _exists(cursor: Any, name: str) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (sql.Identifier(name).as_string(cursor),))
    return bool(cursor.fetchone()[0])


class History:
    """What Mem0 notes of each change, and its last messages of each conversation, with the methods of its own store.

    Rows carry the ids of the memory's owner, so that an erase finds the texts of memories deleted long ago.
    """

    def __init__(self, connections: Connections, collection: str) -> None:
        self._connections = connections
        self._memories = sql.Identifier(collection)
        self._history = sql.Identifier(f"{collection}_history")
        self._messages = sql.Identifier(f"{collection}_messages")

    def add_history(
        self, memory_id: str, old_memory: str | None, new_memory: str | None, event: str, **rest: Any
    ) -> None:
        """Note one change."""
        record = {"memory_id": memory_id, "old_memory": old_memory, "new_memory": new_memory, "event": event}
        self.batch_add_history([{**record, **rest}])

    def batch_add_history(self, records: Sequence[dict[str, Any]]) -> None:
        """Note changes in order. A deleted memory's owner is taken from what was noted of it before."""
        statement = sql.SQL("""
            WITH owner AS (
                (SELECT payload->>'user_id' AS user_id, payload->>'agent_id' AS agent_id, payload->>'run_id' AS run_id
                 FROM {memories} WHERE id = %(memory_id)s::uuid)
                UNION ALL
                (SELECT user_id, agent_id, run_id FROM {history} WHERE memory_id = %(memory_id)s LIMIT 1)
                LIMIT 1
            )
            INSERT INTO {history} (id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted,
                                   actor_id, role, user_id, agent_id, run_id)
            SELECT gen_random_uuid(), %(memory_id)s, %(old_memory)s, %(new_memory)s, %(event)s, %(created_at)s,
                   %(updated_at)s, %(is_deleted)s, %(actor_id)s, %(role)s, user_id, agent_id, run_id
            FROM (SELECT) AS one LEFT JOIN owner ON true
        """).format(memories=self._memories, history=self._history)
        with self._connections.cursor() as cursor:
            for record in records:
                row = {column: record.get(column) for column in COLUMNS}
                cursor.execute(statement, {**row, "is_deleted": bool(record.get("is_deleted"))})

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """What happened to one memory, oldest first."""
        statement = sql.SQL("SELECT id::text, {} FROM {} WHERE memory_id = %s ORDER BY seq").format(
            sql.SQL(", ").join(map(sql.Identifier, COLUMNS[1:])), self._history
        )
        with self._connections.cursor() as cursor:
            cursor.execute(statement, (memory_id,))
            return [dict(zip(COLUMNS, row, strict=True)) for row in cursor.fetchall()]

    def save_messages(self, messages: Sequence[dict[str, Any]], session_scope: str) -> None:
        """Keep the last messages of a conversation: Mem0 shows them to the LLM of its next extraction."""
        insert = sql.SQL("INSERT INTO {} (session_scope, role, content, name) VALUES (%s, %s, %s, %s)")
        prune = sql.SQL("""
            DELETE FROM {0} WHERE session_scope = %s AND seq NOT IN
            (SELECT seq FROM {0} WHERE session_scope = %s ORDER BY seq DESC LIMIT %s)
        """)
        with self._connections.cursor() as cursor:
            for message in messages[-LAST_MESSAGES:]:
                row = (session_scope, message.get("role"), message.get("content"), message.get("name"))
                cursor.execute(insert.format(self._messages), row)
            cursor.execute(prune.format(self._messages), (session_scope, session_scope, LAST_MESSAGES))

    def get_last_messages(self, session_scope: str, limit: int = LAST_MESSAGES) -> list[dict[str, Any]]:
        """The last messages of a conversation, oldest first."""
        statement = sql.SQL("""
            SELECT role, content, name, created_at FROM
            (SELECT * FROM {} WHERE session_scope = %s ORDER BY seq DESC LIMIT %s) AS last ORDER BY seq
        """).format(self._messages)
        with self._connections.cursor() as cursor:
            cursor.execute(statement, (session_scope, limit))
            names = ("role", "content", "name", "created_at")
            return [dict(zip(names, (*row[:3], row[3].isoformat()), strict=True)) for row in cursor.fetchall()]

    def forget(self, owner: Mapping[str, str]) -> None:
        """Remove every text noted of memories with these ids, and the conversations held under them (PROTOCOL D)."""
        conditions = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(key)) for key in owner)
        # Mem0 names a conversation by its ids, escaped and joined by `&`.
        parts = [f"{key}={value.translate(_ESCAPES)}" for key, value in owner.items()]
        messages = sql.SQL("DELETE FROM {} WHERE string_to_array(session_scope, '&') @> %s").format(self._messages)
        with self._connections.cursor() as cursor:
            cursor.execute(sql.SQL("DELETE FROM {} WHERE ").format(self._history) + conditions, tuple(owner.values()))
            cursor.execute(messages, (parts,))

    def reset(self) -> None:
        """Mem0 calls it when it drops everything; memsvc never does."""
        raise NotImplementedError("memsvc never resets Mem0")

    def close(self) -> None:
        """Nothing is held open."""
