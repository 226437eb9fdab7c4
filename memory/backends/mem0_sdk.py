"""Mem0 in this process (package `mem0ai`): vectors in the service's own PostgreSQL, ranked exactly, embedded by ours.

One instance a process, made at first use and never before a fork. Its telemetry is off and its logs, which print
memories, are mute. Metadata under Mem0's own names (`types.MEM0_KEYS`) is Mem0's and does not come back.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2
from django.conf import settings
from django.db import connection as django_connection
from psycopg2 import sql

from memory import db, embedders
from memory.backends import filters, forms, gate
from memory.backends.mem0_postgres import Call, Connections, History, current, prepare
from memory.clock import Deadline
from memory.embedders.base import Action, Embedder
from memory.errors import (
    EmbedderError,
    OriginError,
    OriginNotFound,
    OriginRateLimited,
    OriginRejected,
    OriginTimeout,
    OriginUnavailable,
)
from memory.layers.l1_vectors import CachedEmbedder
from memory.types import MARK_JOB, Listing, Memory, Query, Scope, Stored

PGVECTOR = (0, 8)
LIST_ROWS = 100_000
"""Rows of one listing; a longer one says that it is cut."""
DEFAULT_THRESHOLD = 0.1
SILENCE_SECONDS = 0.25
"""After a deadline: PostgreSQL's own word that it ended a statement keeps the connection."""


class Mem0SDK:
    """Mem0 by its Python package. A call cannot be abandoned: it is refused, or stopped between two of its statements
    and within each of them, when its deadline has passed."""

    name = "mem0-sdk"
    in_process = True

    @property
    def extracts(self) -> bool:
        """Whether an LLM is set."""
        return bool(settings.OPENAI_API_KEY or settings.OPENAI_BASE_URL)

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        """See Backend."""
        wanted = filters.for_search(query.scope, query.conditions())
        if wanted is None:
            return []
        with _call(deadline, query.scope.project) as call:
            found = _mem0().search(
                query.text,
                top_k=query.top_k,
                filters=wanted,
                threshold=DEFAULT_THRESHOLD if query.threshold is None else query.threshold,
                show_expired=query.show_expired,
            )
            # Mem0 goes on without its keyword half when that fails: another ranking, and nobody would know.
            if call.error is not None:
                raise call.error
        return [forms.memory(row) for row in found["results"]]

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """See Backend."""
        if not forms.is_id(memory_id):
            return None
        with _call(deadline):
            row = _mem0().get(memory_id)
        return forms.memory(row) if row else None

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend. Each text is stored by itself: when a call fails, the first ones may be there."""
        named = forms.ids(scope)
        _require_storable(texts, metadata)
        if expiration_date is not None:
            forms.day(expiration_date)
        with _call(deadline, scope.project, write=True) as call:
            # One batch, before anything is stored: an embedder that is away leaves nothing half done.
            vectors = _embedder(scope.project).embed(texts, "passage")
            call.vectors = dict(zip(texts, vectors.tolist(), strict=True))
            added = _mem0().add(
                [{"role": "user", "content": text} for text in texts],
                **named,
                metadata=dict(metadata),
                expiration_date=expiration_date,
                infer=False,
            )
        return _stored(added)

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend."""
        if not self.extracts:
            said = [message["content"] for message in messages if message["role"] == "user"]
            return self.add(scope, [text for text in said if text.strip()], metadata, None, deadline)
        named = forms.ids(scope)
        _require_storable(messages, metadata)
        conversation = [{"role": message["role"], "content": message["content"]} for message in messages]
        with _call(deadline, scope.project, write=True):
            return _stored(_mem0().add(conversation, **named, metadata=dict(metadata), infer=True))

    def update(
        self,
        memory_id: str,
        deadline: Deadline,
        *,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: str | None = None,
        clear_expiration: bool = False,
    ) -> None:
        """See Backend."""
        _require_storable(text, metadata)
        changes: dict[str, Any] = {}
        if text is not None:
            changes["text"] = text
        if metadata is not None:
            changes["metadata"] = dict(metadata)
        if clear_expiration or expiration_date is not None:
            changes["expiration_date"] = None if clear_expiration else forms.day(expiration_date or "")
        with _call(deadline, write=True) as call:
            _known(memory_id, call).update(memory_id, **changes)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """See Backend."""
        with _call(deadline, write=True) as call:
            _known(memory_id, call).delete(memory_id)

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """See Backend."""
        named = forms.ids(scope)
        with _call(deadline, write=True):
            _mem0().delete_all(**named)

    def history(self, memory_id: str, deadline: Deadline) -> list[dict[str, Any]]:
        """See Backend."""
        if not forms.is_id(memory_id):
            return []
        with _call(deadline):
            noted: list[dict[str, Any]] = _mem0().history(memory_id)
            return noted

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """See Backend. By metadata filter: always conclusive."""
        return self._listed({**forms.ids(scope), MARK_JOB: job}, deadline)

    def entities(self, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
        """See Backend. Counted by PostgreSQL over every row."""
        statement = sql.SQL(" UNION ALL ").join(
            sql.SQL(
                "SELECT {kind} AS type, payload->>{key} AS id, count(*) AS total_memories FROM {table}"
                " WHERE payload->>{key} IS NOT NULL GROUP BY payload->>{key}"
            ).format(
                kind=sql.Literal(kind), key=sql.Literal(f"{kind}_id"), table=sql.Identifier(settings.MEM0_COLLECTION)
            )
            for kind in ("user", "agent", "run")
        )
        with _call(deadline), _mem0().vector_store.connection_pool.cursor() as cursor:
            cursor.execute(statement)
            return [{"type": kind, "id": name, "total_memories": n} for kind, name, n in cursor.fetchall()], True

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """See Backend."""
        with _call(deadline), _mem0().vector_store.connection_pool.cursor() as cursor:
            cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            (pgvector,) = cursor.fetchone()
        from mem0 import __version__

        return {"name": self.name, "version": __version__, "pgvector": pgvector, "extracts": self.extracts}

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """Remove what Mem0 noted of the scope's memories, deleted ones included (PROTOCOL D)."""
        named = forms.ids(scope)
        with _call(deadline, write=True):
            _mem0().db.forget(named)
        return True

    def _listed(self, wanted: Mapping[str, str], deadline: Deadline) -> Listing:
        with _call(deadline):
            rows = _mem0().get_all(filters=dict(wanted), top_k=LIST_ROWS, show_expired=True)["results"]
        return Listing([forms.memory(row) for row in rows], complete=len(rows) < LIST_ROWS)

    # Last, as below it in this class `list` is this method.
    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend."""
        return self._listed(forms.ids(scope), deadline)


def _known(memory_id: str, call: Call) -> Any:
    """Mem0, if it has that memory; else OriginNotFound, without asking where it is no id of Mem0's."""
    mem0 = _mem0() if forms.is_id(memory_id) else None
    known = mem0 is not None and mem0.vector_store.get(memory_id) is not None
    call.touched = False
    if not known:
        raise OriginNotFound("Mem0 knows no such memory")
    return mem0


def _require_storable(*values: Any) -> None:
    if not all(map(filters.storable, values)):
        raise OriginRejected("PostgreSQL can keep neither NUL nor half a surrogate pair")


def _stored(added: Mapping[str, Any]) -> list[Stored]:
    return [Stored(row["id"], row["memory"], row["event"]) for row in added["results"]]


# -- one call ----------------------------------------------------------------------------------------------------------


@contextmanager
def _call(deadline: Deadline, project: int | None = None, *, write: bool = False) -> Iterator[Call]:
    """Around a use of Mem0: whatever it raises leaves as an OriginError that holds no text."""
    if deadline.passed:
        raise OriginTimeout("the deadline passed before Mem0 was asked")
    with gate.of(Mem0SDK.name).passing(deadline), _within(deadline, project, write=write) as call:
        yield call


@contextmanager
def _within(deadline: Deadline, project: int | None, *, write: bool) -> Iterator[Call]:
    call = Call(deadline, project)
    token = current.set(call)
    try:
        # The server ends its statements at the deadline itself; one that has stopped does not.
        with db.patience(until=deadline.at + SILENCE_SECONDS):
            yield call
    except OriginError as error:
        error.sent = write and call.touched
        raise
    except Exception as error:  # noqa: BLE001  the border to a foreign library, whatever it may raise
        # `from None`: a driver's message can quote the row it failed on.
        raise _translated(error, sent=write and call.touched) from None
    finally:
        current.reset(token)


def _translated(error: Exception, *, sent: bool) -> OriginError:
    if isinstance(error, EmbedderError):
        return OriginUnavailable(str(error), sent=sent)
    if isinstance(error, psycopg2.Error):
        return _of_postgresql(error, sent=sent)
    if hasattr(error.__cause__, "request"):
        return _of_llm(error.__cause__, sent=sent)
    # Of its own errors, only plain ones tell what was wrong without quoting it.
    said = str(error) if type(error) is ValueError else type(error).__name__
    return OriginRejected(said, sent=sent)


def _of_postgresql(error: psycopg2.Error, *, sent: bool) -> OriginError:
    said = f"{type(error).__name__} {error.pgcode or ''}".strip()
    if isinstance(error, psycopg2.errors.QueryCanceled):
        return OriginTimeout(said, sent=sent)
    if isinstance(error, psycopg2.DataError | psycopg2.IntegrityError):
        return OriginRejected(said, sent=sent)
    return OriginUnavailable(said, sent=sent)


def _of_llm(error: Any, *, sent: bool) -> OriginError:
    """An LLM that failed: Mem0 asks it before it stores anything."""
    status = getattr(error, "status_code", None)
    said = f"the LLM answered {status}" if status else "the LLM did not answer"
    if status == 429:
        return OriginRateLimited(said, sent=sent)
    if status in (400, 413, 422):
        return OriginRejected(said, status=status, sent=sent)
    return OriginUnavailable(said, sent=sent)


# -- the instance ------------------------------------------------------------------------------------------------------

_instance: Any = None
_building = threading.Lock()
_parents: list[Any] = []


def _after_fork() -> None:
    """A child makes its own, and never drops its parent's: that would hang up the parent's connections."""
    global _instance, _building
    _parents.append(_instance)
    _instance, _building = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _mem0() -> Any:
    """This process's Mem0, made now if there is none. What goes wrong leaves none behind: the next call tries again."""
    global _instance
    if _instance is None:
        with _building:
            if _instance is None:
                _instance = _build()
    return _instance


def close() -> None:
    """Drop this process's Mem0 and its idle connections; the next call makes a new one."""
    global _instance
    with _building:
        gone, _instance = _instance, None
    if gone is not None:
        gone.vector_store.connection_pool.closeall()


def _build() -> Any:
    home = settings.MEMSVC_HOME / "mem0"
    home.mkdir(parents=True, exist_ok=True)
    # Mem0 reads both when it is imported.
    os.environ["MEM0_TELEMETRY"] = "false"
    os.environ["MEM0_DIR"] = str(home)
    logging.getLogger("mem0").setLevel(logging.CRITICAL + 1)
    from mem0 import Memory as Mem0  # a second of CPU, and absent where Mem0 is reached over REST

    connections = Connections(settings.MEM0_CONNECTIONS)
    mem0 = Mem0.from_config(_configuration(connections))
    mem0.db.close()
    mem0.db = History(connections, settings.MEM0_COLLECTION)
    mem0.embedding_model = _Embedding()
    mem0.llm = _BoundedLLM(mem0.llm)
    prepare(settings.MEM0_COLLECTION, mem0.vector_store.create_col)
    return mem0


def _configuration(connections: Connections) -> dict[str, Any]:
    embedder = embedders.get()
    if embedder is None:
        raise EmbedderError("Mem0 in process needs an embedder: EMBEDDER=none works with MEM0_USE_REST_API=true only")
    # Its clients want a key even where they are never used.
    key = {"api_key": settings.OPENAI_API_KEY or "unset"}
    llm = {**key, "model": settings.LLM_MODEL}
    if settings.OPENAI_BASE_URL:
        llm["openai_base_url"] = settings.OPENAI_BASE_URL
    return {
        "vector_store": {
            "provider": "pgvector",
            "config": {
                "connection_pool": connections,
                "collection_name": settings.MEM0_COLLECTION,
                "embedding_model_dims": embedder.dimensions,
                # Exact: with its index Mem0 filters by user after the nearest neighbours, and loses most results.
                "hnsw": False,
                "diskann": False,
            },
        },
        "embedder": {"provider": "openai", "config": key},
        "llm": {"provider": "openai", "config": llm},
        "history_db_path": ":memory:",
    }


class _Embedding:
    """Our embedder behind L1, with the methods of Mem0's."""

    def embed(self, text: str, memory_action: str = "add") -> list[float]:
        call = current.get()
        if call is not None and memory_action != "search" and text in call.vectors:
            return call.vectors[text]
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str = "add") -> list[list[float]]:
        call = current.get()
        action: Action = "search" if memory_action == "search" else "passage"
        vectors: list[list[float]] = _embedder(call.project if call else None).embed(texts, action).tolist()
        return vectors


def _embedder(project: int | None) -> Embedder:
    """Behind the project's L1. A call that names no project goes without: another's L1 would tell what it holds."""
    embedder = embedders.get()
    if embedder is None:
        raise EmbedderError("EMBEDDER is none")
    return embedder if project is None else CachedEmbedder(embedder, project)


class _BoundedLLM:
    """Mem0's LLM with one try, ended by the call's deadline."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def generate_response(self, *args: Any, **kwargs: Any) -> Any:
        call = current.get()
        seconds = settings.MEM0_EXTRACT_TIMEOUT_SECONDS
        if call is not None:
            seconds = min(seconds, max(0.001, call.deadline.remaining()))
        bounded = copy.copy(self._llm)
        bounded.client = self._llm.client.with_options(timeout=seconds, max_retries=0)
        return bounded.generate_response(*args, **kwargs)


# -- checks ------------------------------------------------------------------------------------------------------------


def pgvector_problem() -> str | None:
    """What keeps Mem0 from storing vectors in this database, and the mend; None when nothing does.
    django.db.DatabaseError when the database cannot be asked."""
    if importlib.util.find_spec("psycopg") and importlib.util.find_spec("psycopg_pool"):
        return "Mem0 would use psycopg 3, which is not supported beside psycopg2: `pip uninstall psycopg psycopg-pool`."
    with django_connection.cursor() as cursor:
        cursor.execute(
            "SELECT default_version, installed_version,"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
            " FROM pg_available_extensions WHERE name = 'vector'"
        )
        row = cursor.fetchone()
        cursor.execute(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'",
            (django_connection.ops.quote_name(settings.MEM0_COLLECTION),),
        )
        made = cursor.fetchone()
    return _extension_problem(row) or _collection_problem(made and made[0])


def _extension_problem(row: tuple[str, str | None, bool] | None) -> str | None:
    if row is None:
        return (
            "PostgreSQL has no pgvector: install version 0.8 or later on its server (Debian: postgresql-NN-pgvector)."
        )
    default, installed, superuser = row
    if installed and _version(installed) >= PGVECTOR:
        return None
    if _version(default) < PGVECTOR:
        return f"PostgreSQL has pgvector {default}: install version 0.8 or later on its server."
    if installed:
        return f"The database has pgvector {installed}: run `ALTER EXTENSION vector UPDATE` in it."
    return None if superuser else "Run `CREATE EXTENSION vector` in the database, as a superuser."


def _collection_problem(dimensions: int | None) -> str | None:
    embedder = embedders.get()
    if dimensions is None or embedder is None or dimensions == embedder.dimensions:
        return None
    return (
        f"The collection {settings.MEM0_COLLECTION} holds vectors of {dimensions} dimensions, {embedder.name} makes"
        f" {embedder.dimensions}: set MEM0_COLLECTION to a new name, or the embedder that filled it."
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
