"""L3: each user's memories with their vectors in PostgreSQL, ranked in this process, and the summaries made of them.

A search can't fill it: warms do, and the job that writes (PROTOCOL C4). It answers questions never asked before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models.functions import Now

from memory import clock, embedders, rank
from memory.backends.base import LIST_LIMIT
from memory.embedders.base import Vectors
from memory.errors import EmbedderError, LayerUnavailable
from memory.layers import l3_rows
from memory.layers.base import encode
from memory.layers.l0_process import ByteLRU
from memory.layers.l1_vectors import CachedEmbedder
from memory.layers.l3_rows import Held
from memory.models import Snapshot, SnapshotMemory
from memory.tenancy.projects import Policy
from memory.types import Entry, Memory, Query, Scope, Version

NAME = "L3"
NEWEST = (1 << 63) - 1

_STANDS = (
    "SELECT id, version, complete, embedder FROM memory_snapshot WHERE project_id = %s AND user_id = %s FOR UPDATE"
)
_FLOOR = "SELECT floor FROM memory_pinversion WHERE project_id = %s AND kind = 'user' AND pin_id = %s FOR SHARE"
_CREATE = """
INSERT INTO memory_snapshot (project_id, user_id, version, complete, summary_version, fingerprint, embedder,
    topics_digest, topics, user_favorite_summary, recent, counts)
VALUES (%s, %s, -1, false, -1, '', '', '', '{}', '{}', '[]', '{}') ON CONFLICT DO NOTHING
"""
_OWNER = """
SELECT s.user_id, m.agent_id, m.run_id FROM memory_snapshotmemory m JOIN memory_snapshot s ON s.id = m.snapshot_id
WHERE m.memory_id = %s AND s.project_id = %s LIMIT 1
"""
_FORGET = """
WITH forgotten AS (
    UPDATE memory_snapshot s SET embedder = '' FROM memory_memoryuser u
    WHERE u.project_id = s.project_id AND u.user_id = s.user_id AND s.embedder <> ''
        AND u.active_at < now() - make_interval(days => %s)
    RETURNING s.id
)
UPDATE memory_snapshotmemory SET vector = NULL WHERE snapshot_id IN (SELECT id FROM forgotten)
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What stands of a user. `rows`: {memory id: (digest, text key)}."""

    version: int
    complete: bool
    fingerprint: str
    embedder: str
    topics_digest: str
    rows: Mapping[str, tuple[bytes, bytes]]

    def stands_for(self, fingerprint: str, complete: bool, embedder: str, topics_digest: str) -> bool:
        """Whether a warm that read this would save nothing new."""
        stands = (self.fingerprint, self.complete, self.embedder, self.topics_digest)
        return stands == (fingerprint, complete, embedder, topics_digest)

    def differs(self, memories: Sequence[Memory]) -> bool:
        """Whether a listing holds other memories, or says something else of one. Of rows that a job wrote only the
        text is compared: a listing may tell more of them."""
        if self.rows.keys() != {memory.id for memory in memories}:
            return True
        for memory in memories:
            digest, text_key = self.rows[memory.id]
            if (digest != l3_rows.digest(memory)) if digest else (text_key != l3_rows.text_key(memory.text)):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a warm listed, at the version read before the listing (PROTOCOL B8). `vectors` by `l3_rows.text_key`."""

    version: int
    complete: bool
    memories: Sequence[Memory]
    vectors: Mapping[bytes, bytes]
    embedder: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What is shown of a user without asking anything: rows are {id, memory, …}."""

    topics: Mapping[str, Any]
    favorites: Mapping[str, Any]
    recent: Sequence[Any]
    counts: Mapping[str, Any]
    topics_digest: str


class SummaryLayer:
    """Answers about one user from that user's own rows."""

    name = NAME
    fills = False

    def __init__(self, max_bytes: int | None = None) -> None:
        self.held: ByteLRU[tuple[int, str], tuple[Held, float]] = ByteLRU(
            settings.L3_PROCESS_BYTES if max_bytes is None else max_bytes,
        )

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, query: Query, version: Version, policy: Policy, *, vector: Vectors | None = None) -> Entry | None:
        """A local ranking at exactly this version, where the policy has it on, the rows are complete and the filters
        can be evaluated exactly (PROTOCOL C2, C3). `as_of` is the moment of ranking; `vector` is the question's, where
        the caller has it. LayerUnavailable."""
        if policy.local_search != "on" or query.scope.user_id is None or not rank.understands(query.conditions()):
            return None
        with _translated():
            made_by = model()
            found = self._at(query.scope.project, query.scope.user_id, version.number, made_by)
            if found is None or not _ranks(found[0], made_by):
                return None
            held, now = found
            ranked = _rank(query, held, now, policy, made_by, vector)
        return encode(ranked, version=held.version, as_of=now, ranking=policy.ranking)

    def degraded(self, query: Query, version: Version, policy: Policy) -> tuple[Entry, bool] | None:
        """A local ranking for while Mem0 is away, of any rows not below the floor, and whether it is partial
        (PROTOCOL C2). By words where no vector can be made. LayerUnavailable."""
        if policy.local_search == "off" or query.scope.user_id is None or not rank.understands(query.conditions()):
            return None
        with _translated():
            held = l3_rows.read(query.scope.project, query.scope.user_id, version.floor, NEWEST)
            if held is None:
                return None
            try:
                by = made_by if _comparable(held, made_by := model()) else ""
                ranked = _rank(query, held, held.read_at, policy, by)
            except EmbedderError:
                ranked = _rank(query, held, held.read_at, policy, "")
        as_of = held.read_at if held.version == version.number else held.built_at
        return encode(ranked, version=held.version, as_of=as_of, ranking=policy.ranking), not held.complete

    def listing(self, scope: Scope, version: Version) -> list[Memory] | None:
        """The scope's memories, expired ones included, if all are known at exactly this version. LayerUnavailable."""
        if scope.user_id is None:
            return None
        with _translated():
            held = l3_rows.read(scope.project, scope.user_id, version.number, version.number)
        if held is None or not held.complete:
            return None
        about = _about(held, scope, {})
        return list(held.memories) if about is None else [held.memories[index] for index in about]

    def owner(self, project_id: int, memory_id: str) -> Scope | None:
        """The ids a memory is filed under, where L3 knows it (PROTOCOL A11). LayerUnavailable."""
        with _translated(), connection.cursor() as cursor:
            cursor.execute(_OWNER, (memory_id, project_id))
            row = cursor.fetchone()
        return Scope(project_id, *row) if row else None

    def snapshot(self, project_id: int, user_id: str, floor: int = 0) -> Snapshot | None:
        """The user's summaries, however old but not below the floor (PROTOCOL B9), without what has expired since.
        LayerUnavailable."""
        with _translated():
            row = Snapshot.objects.filter(project_id=project_id, user_id=user_id, version__gte=floor).first()
        if row is not None:
            today = clock.wall().date().isoformat()
            row.topics = {name: _unexpired(shown, today) for name, shown in row.topics.items()}
            row.user_favorite_summary = {name: row.topics[name] for name in row.user_favorite_summary}
            row.recent = _unexpired(row.recent, today)
        return row

    # -- a job moves the rows with its version ------------------------------------------------------------------------

    def vectors_for(self, project_id: int, texts: Sequence[str]) -> Mapping[bytes, bytes] | None:
        """Vectors for rows to be added, made outside any transaction; None (leave L3 to the warm) when none can be."""
        try:
            return embed(project_id, texts)
        except EmbedderError:
            return None

    def apply_added(
        self,
        target: Scope,
        before: int,
        after: int,
        memories: Sequence[Memory],
        vectors: Mapping[bytes, bytes] | None,
    ) -> bool:
        """Add or replace rows and move them from version `before` to `after`, in the caller's transaction, if they
        stood exactly at `before` (PROTOCOL C4). The summaries keep what they say of other memories."""
        stands = self._stands(target, before)
        if stands is None or vectors is None:
            return False
        snapshot, complete, embedder = stands
        rows = SnapshotMemory.objects.filter(snapshot_id=snapshot)
        if embedder != model() or (complete and rows.count() + len(memories) >= LIST_LIMIT):
            return False
        l3_rows.write(snapshot, memories, vectors, listed=False)
        self._move(snapshot, after, {memory.id: memory.text for memory in memories})
        return True

    def apply_removed(self, target: Scope, before: int, after: int, memory_ids: Sequence[str]) -> bool:
        """Remove rows, and what the summaries say of them; otherwise as `apply_added`."""
        stands = self._stands(target, before)
        if stands is None:
            return False
        l3_rows.remove(stands[0], memory_ids)
        self._move(stands[0], after, dict.fromkeys(memory_ids))
        return True

    # -- a warm saves what it read ------------------------------------------------------------------------------------

    def known(self, scope: Scope) -> Known | None:
        """What stands of a user, for a warm to compare with."""
        found = Snapshot.objects.filter(project_id=scope.project, user_id=scope.user_id)
        row = found.values_list("pk", "version", "complete", "fingerprint", "embedder", "topics_digest").first()
        if row is None:
            return None
        rows = SnapshotMemory.objects.filter(snapshot_id=row[0]).values_list("memory_id", "digest", "text_hash")
        return Known(*row[1:], rows={memory: (bytes(digest), bytes(key)) for memory, digest, key in rows})

    def header(self, scope: Scope) -> tuple[int, str, str] | None:
        """The version, embedder and topics that a user's summaries stand for."""
        found = Snapshot.objects.filter(project_id=scope.project, user_id=scope.user_id)
        return found.values_list("summary_version", "embedder", "topics_digest").first()

    def vectors(self, scope: Scope) -> dict[bytes, bytes]:
        """The stored vectors of a user by text key."""
        rows = SnapshotMemory.objects.filter(snapshot__project_id=scope.project, snapshot__user_id=scope.user_id)
        pairs = rows.filter(vector__isnull=False).values_list("text_hash", "vector")
        return {bytes(key): bytes(vector) for key, vector in pairs if vector is not None}

    def save(self, scope: Scope, reading: Reading, summary: Summary) -> bool:
        """Replace what stands by what a warm read, in the caller's transaction; False if L3 is newer or the reading is
        below the floor (PROTOCOL B9, C4). Only rows that differ are written."""
        stands = self._standing(scope, reading.version)
        if stands is None:
            return False
        snapshot, embedder = stands
        _save_rows(snapshot, reading, same_vectors=embedder == reading.embedder)
        Snapshot.objects.filter(pk=snapshot).update(
            version=reading.version,
            complete=reading.complete,
            summary_version=reading.version,
            fingerprint=reading.fingerprint,
            embedder=reading.embedder,
            topics_digest=summary.topics_digest,
            topics=summary.topics,
            user_favorite_summary=summary.favorites,
            recent=summary.recent,
            counts=summary.counts,
            built_at=Now(),
        )
        return True

    def confirm(self, scope: Scope, version: int) -> bool:
        """Say of what stands that a warm has read the same at this version; otherwise as `save`."""
        stands = self._standing(scope, version)
        if stands is None:
            return False
        Snapshot.objects.filter(pk=stands[0]).update(version=version, summary_version=version, built_at=Now())
        return True

    def forget_inactive(self) -> int:
        """Drop the vectors of users whom nobody has asked about for L3_ACTIVE_DAYS; a later warm makes them again."""
        with connection.cursor() as cursor:
            cursor.execute(_FORGET, (settings.L3_ACTIVE_DAYS,))
            return int(cursor.rowcount)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _at(self, project: int, user_id: str, number: int, made_by: str) -> tuple[Held, int] | None:
        """The rows at exactly this version, from this process's memory or PostgreSQL, and the store's time (µs)."""
        kept = self.held.get((project, user_id))
        if kept is None or kept[0].version != number or kept[0].embedder != made_by or not kept[0].complete:
            held = l3_rows.read(project, user_id, number, number)
            if held is None:
                return None
            kept = (held, clock.now())
            self.held.put((project, user_id), kept, held.bytes)
        held, read_on = kept
        return held, held.read_at + int((clock.now() - read_on) * 1_000_000)

    def _stands(self, target: Scope, before: int) -> tuple[int, bool, str] | None:
        """The snapshot's id, completeness and embedder if it stands at `before`, its row locked."""
        with connection.cursor() as cursor:
            cursor.execute(_STANDS, (target.project, target.user_id))
            row = cursor.fetchone()
        return (row[0], row[2], row[3]) if row and row[1] == before else None

    def _standing(self, scope: Scope, version: int) -> tuple[int, str] | None:
        """The snapshot's id and embedder, its row locked and made if need be, unless it may not go to this version.
        Locks in the order of the jobs that move it: the pin, then the snapshot."""
        key = (scope.project, scope.user_id)
        with connection.cursor() as cursor:
            cursor.execute(_FLOOR, key)
            (floor,) = cursor.fetchone() or (0,)
            if version < floor:
                return None
            cursor.execute(_CREATE, key)
            cursor.execute(_STANDS, key)
            snapshot, stands, _, embedder = cursor.fetchone()
        return (snapshot, embedder) if stands <= version else None

    def _move(self, snapshot: int, after: int, texts: Mapping[str, str | None]) -> None:
        """Move to `after`; what the summaries show of changed memories follows, so that nothing deleted is shown."""
        row = Snapshot.objects.get(pk=snapshot)
        Snapshot.objects.filter(pk=snapshot).update(
            version=after,
            fingerprint="",
            topics={name: _retold(shown, texts) for name, shown in row.topics.items()},
            user_favorite_summary={name: _retold(shown, texts) for name, shown in row.user_favorite_summary.items()},
            recent=_retold(row.recent, texts),
        )


def model() -> str:
    """What makes the vectors: model, dimensions, and whether questions and stored texts are alike to it; empty where
    ranking goes by words. EmbedderError."""
    embedder = embedders.get()
    if embedder is None:
        return ""
    return f"{embedder.name}/{embedder.dimensions}" + ("/symmetric" if embedder.symmetric else "")


def embed(project_id: int, texts: Sequence[str]) -> dict[bytes, bytes]:
    """Vectors of stored texts as L3 keeps them, by text key; each distinct text once, none by words. EmbedderError."""
    embedder = embedders.get()
    distinct = {l3_rows.text_key(text): text for text in texts}
    if embedder is None or not distinct:
        return {}
    made = CachedEmbedder(embedder, project_id).embed(list(distinct.values()), "passage")
    return dict(zip(distinct, l3_rows.keep(made), strict=True))


def _save_rows(snapshot: int, reading: Reading, *, same_vectors: bool) -> None:
    rows = SnapshotMemory.objects.filter(snapshot_id=snapshot)
    known = rows.values_list("memory_id", "digest", "created_at", "updated_at")
    stands = {row[0]: (bytes(row[1]), *row[2:]) for row in known}
    changed = [
        memory
        for memory in reading.memories
        if not same_vectors or stands.get(memory.id) != (l3_rows.digest(memory), memory.created_at, memory.updated_at)
    ]
    l3_rows.write(snapshot, changed, reading.vectors, listed=True)
    l3_rows.remove(snapshot, stands.keys() - {memory.id for memory in reading.memories})


def _comparable(held: Held, made_by: str) -> bool:
    return held.embedder == made_by and (not made_by or held.rows.vectors is not None)


def _ranks(held: Held, made_by: str) -> bool:
    """Whether a ranking of these rows may stand in for Mem0's."""
    return held.complete and _comparable(held, made_by)


def _rank(
    query: Query,
    held: Held,
    now: int,
    policy: Policy,
    made_by: str,
    vector: Vectors | None = None,
) -> list[Memory]:
    """The best rows with scores, at the store's time `now`: as the policy says, or by words where `made_by` is empty.
    `vector` is of the question as it was asked."""
    among = _about(held, query.scope, query.conditions())
    today = None if query.show_expired else datetime.fromtimestamp(now / 1_000_000, UTC).date().isoformat()
    embedder = embedders.get() if made_by else None
    if embedder is None:
        ranked = rank.by_words(query.text, held.rows, query.top_k, today=today, among=among)
    else:
        text, by = query.text, rank.like_upstream
        if policy.ranking == "hybrid":
            text, by = rank.meant(text, held.rows), rank.hybrid
        if vector is None or text != query.text:
            vector = CachedEmbedder(embedder, query.scope.project).embed([text], "search")[0]
        ranked = by(
            text,
            vector,
            held.rows,
            query.top_k,
            threshold=query.threshold,
            today=today,
            among=among,
        )
    return [replace(held.memories[index], score=score) for index, score in ranked]


def _about(held: Held, scope: Scope, conditions: Mapping[str, Any]) -> list[int] | None:
    """The rows a question is about, expired ones included: the scope's, meeting the conditions. None: all."""
    if scope.agent_id is None and scope.run_id is None and not conditions:
        return None
    return [
        index
        for index, memory in enumerate(held.memories)
        if scope.agent_id in (None, memory.agent_id)
        and scope.run_id in (None, memory.run_id)
        and rank.matches(conditions, memory)
    ]


def _retold(shown: Sequence[Mapping[str, Any]], texts: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Rows of a summary with changed memories' new texts, and without removed ones."""
    told = ({**row, "memory": texts.get(row["id"], row["memory"])} for row in shown)
    return [row for row in told if row["memory"] is not None]


def _unexpired(shown: Sequence[dict[str, Any]], today: str) -> list[dict[str, Any]]:
    return [row for row in shown if row.get("expiration_date", today) >= today]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DatabaseError, EmbedderError) as error:
        raise LayerUnavailable(NAME, type(error).__name__) from error
