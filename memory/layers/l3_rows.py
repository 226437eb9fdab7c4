"""L3's rows in PostgreSQL: how a memory and its vector are kept, compared and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from django.db import connection

from memory import db
from memory.embedders.base import Vectors
from memory.rank import Rows
from memory.text import text_hash
from memory.types import Memory

KEPT = np.dtype("<f2")
"""float16: half of float32's bytes; on LoCoMo the ten best stay the ten best."""
PAGE = 500
"""Rows of one INSERT: about 0.5 MB with 384 dimensions."""
ROW_BYTES, TEXT_FACTOR = 1600, 30
"""What a row costs in this process beside its vector: objects, and its text with its words indexed (5 to 9 bytes a
character) and, where a question came without accents, their spelling (17 to 20)."""

_UPSERT = """
INSERT INTO memory_snapshotmemory AS m (snapshot_id, memory_id, text, text_hash, agent_id, run_id, metadata, digest,
    created_at, updated_at, expiration_date, vector)
VALUES %s
ON CONFLICT (snapshot_id, memory_id) DO UPDATE SET text = excluded.text, text_hash = excluded.text_hash,
    agent_id = excluded.agent_id, run_id = excluded.run_id, metadata = excluded.metadata, digest = excluded.digest,
    created_at = excluded.created_at, updated_at = excluded.updated_at,
    expiration_date = excluded.expiration_date, vector = excluded.vector
"""
_READ = """
SELECT s.version, s.complete, s.embedder, (extract(epoch FROM s.built_at) * 1000000)::bigint,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    m.memory_id, m.text, m.agent_id, m.run_id, m.metadata::text, m.created_at, m.updated_at, m.expiration_date, m.vector
FROM memory_snapshot s LEFT JOIN memory_snapshotmemory m ON m.snapshot_id = s.id
WHERE s.project_id = %(project)s AND s.user_id = %(user)s AND s.version >= %(least)s AND s.version <= %(most)s
ORDER BY m.memory_id
"""


@dataclass(frozen=True, slots=True)
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
    if not rows:
        return None
    version, complete, embedder, built_at, read_at = rows[0][:5]
    rows = [row[5:] for row in rows if row[5] is not None]
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


def write(snapshot: int, memories: Sequence[Memory], vectors: Mapping[bytes, bytes], *, listed: bool) -> None:
    """Insert or replace rows. `listed`: they are as Mem0 listed them; otherwise a job wrote them and a listing may
    still tell otherwise of everything but the text."""
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
        for memory in memories
    ]
    if values:
        db.write_many(_UPSERT, values, page=PAGE)


def remove(snapshot: int, memory_ids: Iterable[str]) -> None:
    """Delete rows; ids without one are no error."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM memory_snapshotmemory WHERE snapshot_id = %s AND memory_id = ANY(%s)",
            (snapshot, list(memory_ids)),
        )


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
