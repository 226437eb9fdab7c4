"""L3's rows in PostgreSQL: how a memory and its vector are kept, compared and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from django.db import connection

from memory import db
from memory.embedders.base import Vectors
from memory.layers.base import Shown, shown
from memory.rank import Rows
from memory.text import text_hash
from memory.types import Memory

KEPT = np.dtype("<f2")
"""float16: half of float32's bytes; on LoCoMo the ten best stay the ten best."""
PAGE = 500
"""Rows of one INSERT: about 0.5 MB with 384 dimensions."""
KEYS_MOST = 4096
"""Texts whose keys a process remembers: a warm asks for each several times."""
ROW_BYTES, TEXT_FACTOR = 2100, 31
"""What a row costs in this process beside its vector: objects, how answers show it, and its text with its words indexed
(5 to 9 bytes a character) and, where a question came without accents, their spelling (17 to 20)."""

_UPSERT = """
INSERT INTO memory_snapshotmemory AS m (snapshot_id, memory_id, text, text_hash, agent_id, run_id, metadata, digest,
    created_at, updated_at, expiration_date, vector)
VALUES %s
ON CONFLICT (snapshot_id, memory_id) DO UPDATE SET text = excluded.text, text_hash = excluded.text_hash,
    agent_id = excluded.agent_id, run_id = excluded.run_id, metadata = excluded.metadata, digest = excluded.digest,
    created_at = excluded.created_at, updated_at = excluded.updated_at,
    expiration_date = excluded.expiration_date, vector = excluded.vector
"""
_COLUMNS = """
SELECT s.user_id, s.version, s.complete, s.embedder, (extract(epoch FROM s.built_at) * 1000000)::bigint,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    m.memory_id, m.text, m.agent_id, m.run_id, m.metadata::text, m.created_at, m.updated_at, m.expiration_date, m.vector
FROM memory_snapshot s LEFT JOIN memory_snapshotmemory m ON m.snapshot_id = s.id
"""
_READ = f"""
{_COLUMNS} WHERE s.project_id = %(project)s AND s.user_id = %(user)s AND s.version BETWEEN %(least)s AND %(most)s
ORDER BY m.memory_id
"""
_READ_EACH = f"""
{_COLUMNS} JOIN unnest(%(users)s::text[], %(versions)s::bigint[]) AS wanted (user_id, version)
    ON wanted.user_id = s.user_id AND wanted.version = s.version
WHERE s.project_id = %(project)s ORDER BY s.id, m.memory_id
"""
_REMOVE = """
DELETE FROM memory_snapshotmemory m USING unnest(%s::bigint[], %s::text[]) AS gone (snapshot_id, memory_id)
WHERE m.snapshot_id = gone.snapshot_id AND m.memory_id = gone.memory_id
"""


@dataclass(frozen=True)
class Held:
    """A user's rows as one statement read them; `rows` are the same memories, ready to be ranked. `built_at` and
    `read_at` are in µs on PostgreSQL's clock."""

    version: int
    complete: bool
    embedder: str
    built_at: int
    read_at: int
    memories: tuple[Memory, ...]
    rows: Rows

    @cached_property
    def shown(self) -> list[Shown]:
        """The memories as answers show them."""
        return list(map(shown, self.memories))

    @property
    def bytes(self) -> int:
        """About what it takes in this process, once ranked."""
        texts = sum(len(memory.text) for memory in self.memories)
        vectors = 0 if self.rows.vectors is None else self.rows.vectors.nbytes
        return vectors + TEXT_FACTOR * texts + ROW_BYTES * (1 + len(self.memories))


def read(project: int, user_id: str, least: int, most: int) -> Held | None:
    """A user's rows if their version is between `least` and `most`; one statement, so of one moment."""
    with connection.cursor() as cursor:
        cursor.execute(_READ, {"project": project, "user": user_id, "least": least, "most": most})
        rows = cursor.fetchall()
    return _held(rows) if rows else None


def read_each(project: int, versions: Mapping[str, int]) -> dict[str, Held]:
    """By user the rows of those that stand at exactly these versions; one statement."""
    with connection.cursor() as cursor:
        users: dict[str, Any] = {"project": project, "users": list(versions), "versions": list(versions.values())}
        cursor.execute(_READ_EACH, users)
        return {user: _held(list(rows)) for user, rows in groupby(cursor.fetchall(), key=itemgetter(0))}


def _held(rows: Sequence[tuple[Any, ...]]) -> Held:
    """What one user's rows say; without any memory there is one row of the snapshot alone."""
    user_id, version, complete, embedder, built_at, read_at = rows[0][:6]
    rows = [row[6:] for row in rows if row[6] is not None]
    memories = tuple(
        Memory(
            id=row[0],
            text=row[1],
            user_id=user_id,
            agent_id=row[2],
            run_id=row[3],
            metadata=orjson.loads(row[4]),
            created_at=row[5],
            updated_at=row[6],
            expiration_date=row[7],
        )
        for row in rows
    )
    return Held(version, complete, embedder, built_at, read_at, memories, rankable(memories, [row[8] for row in rows]))


def write(rows: Iterable[tuple[int, Memory]], vectors: Mapping[bytes, bytes], *, listed: bool) -> None:
    """Insert or replace rows, each of a snapshot. `listed`: they are as Mem0 listed them; otherwise a job wrote them
    and a listing may still tell otherwise of everything but the text."""
    values = [
        (
            snapshot,
            memory.id,
            memory.text,
            hashed := text_key(memory.text),
            memory.agent_id,
            memory.run_id,
            orjson.dumps(dict(memory.metadata)).decode(),
            digest(memory) if listed else b"",
            memory.created_at,
            memory.updated_at,
            memory.expiration_date,
            vectors.get(hashed),
        )
        for snapshot, memory in rows
    ]
    if values:
        db.write_many(_UPSERT, values, page=PAGE)


def remove(rows: Iterable[tuple[int, str]]) -> None:
    """Delete rows by snapshot and memory id; those without one are no error."""
    if gone := list(rows):
        with connection.cursor() as cursor:
            cursor.execute(_REMOVE, ([snapshot for snapshot, _ in gone], [memory for _, memory in gone]))


@lru_cache(maxsize=KEYS_MOST)
def text_key(text: str) -> bytes:
    """16 bytes that stand for a text: what its vector is found by."""
    return bytes.fromhex(text_hash(text))


def keep(vectors: Vectors) -> list[bytes]:
    """Vectors as they are stored."""
    return [row.tobytes() for row in vectors.astype(KEPT)]


def loosen(kept: Sequence[bytes]) -> Vectors:
    """Stored vectors as an array of shape (len(kept), dimensions), float32."""
    if not kept:
        return np.empty((0, 0), dtype=np.float32)
    return np.frombuffer(b"".join(kept), dtype=KEPT).reshape(len(kept), -1).astype(np.float32)


def digest(memory: Memory) -> bytes:
    """16 bytes of what a memory says and where it belongs; its times left out."""
    said: list[Any] = [memory.text, memory.agent_id, memory.run_id, memory.expiration_date, dict(memory.metadata)]
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def fingerprint(memories: Iterable[Memory]) -> str:
    """32 hex characters that stand for a whole listing, in whatever order it came."""
    whole = hashlib.blake2b(digest_size=16)
    for memory in sorted(memories, key=lambda memory: memory.id):
        whole.update(orjson.dumps([memory.id, memory.created_at, memory.updated_at]) + digest(memory))
    return whole.hexdigest()


def rankable(memories: Sequence[Memory], kept: Sequence[Any]) -> Rows:
    """Memories ready to be ranked; by words only where a stored vector is missing."""
    whole = all(vector is not None for vector in kept)
    days = [memory.expiration_date for memory in memories]
    return Rows(
        [memory.text for memory in memories],
        loosen([bytes(vector) for vector in kept]) if whole else None,
        days if any(days) else (),
    )
