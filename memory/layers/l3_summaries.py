"""L3: each user's memories with their vectors in PostgreSQL, ranked in this process, and the summaries made of them.

A search can't fill it: warms do, and the job that writes (PROTOCOL C4). It answers questions never asked before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction

from memory import clock, db, embedders, rank
from memory.backends.base import LIST_LIMIT
from memory.embedders.base import Vectors
from memory.errors import EmbedderError, LayerUnavailable
from memory.layers import l3_rows
from memory.layers.base import encode_each
from memory.layers.l0_process import ByteLRU
from memory.layers.l1_vectors import CachedEmbedder
from memory.layers.l3_rows import Held
from memory.models import Snapshot, SnapshotMemory
from memory.tenancy.projects import Policy
from memory.types import Entry, Memory, Query, Scope, Version

NAME = "L3"
NEWEST = (1 << 63) - 1
FORGET_USERS = 500
"""Users of one transaction that drops snapshots."""

_STANDS = (
    "SELECT id, version, complete, embedder FROM memory_snapshot WHERE project_id = %s AND user_id = %s FOR UPDATE"
)
# Rows are locked in the order in which jobs lock theirs (PROTOCOL B1): projects, then ids by their bytes.
_FLOORS = """
SELECT p.project_id, p.pin_id, p.floor FROM memory_pinversion p
JOIN unnest(%s::bigint[], %s::text[]) AS wanted (project_id, pin_id) USING (project_id, pin_id)
WHERE p.kind = 'user' ORDER BY p.project_id, p.pin_id COLLATE "C" FOR SHARE OF p
"""
_STAND_EACH = """
SELECT s.project_id, s.user_id, s.version, s.embedder FROM memory_snapshot s
JOIN unnest(%s::bigint[], %s::text[]) AS wanted (project_id, user_id) USING (project_id, user_id)
ORDER BY s.project_id, s.user_id COLLATE "C" FOR UPDATE OF s
"""
_SAVE = """
INSERT INTO memory_snapshot AS s (project_id, user_id, version, complete, summary_version, fingerprint, embedder,
    topics_digest, topics, user_favorite_summary, recent, counts, built_at)
VALUES %s ON CONFLICT (project_id, user_id) DO UPDATE SET version = excluded.version, complete = excluded.complete,
    summary_version = excluded.summary_version, fingerprint = excluded.fingerprint, embedder = excluded.embedder,
    topics_digest = excluded.topics_digest, topics = excluded.topics,
    user_favorite_summary = excluded.user_favorite_summary, recent = excluded.recent, counts = excluded.counts,
    built_at = excluded.built_at
WHERE s.version <= excluded.version RETURNING id, project_id, user_id, xmax = 0
"""
_SAVED = "(%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, %s::jsonb, %s::jsonb, statement_timestamp())"
_CONFIRM = """
UPDATE memory_snapshot s SET version = seen.version, summary_version = seen.version, built_at = now()
FROM unnest(%s::bigint[], %s::text[], %s::bigint[]) AS seen (project_id, user_id, version)
WHERE s.project_id = seen.project_id AND s.user_id = seen.user_id
"""
_KNOWN = """
SELECT s.project_id, s.user_id, s.id, s.version, s.complete, s.fingerprint, s.embedder, s.topics_digest
FROM memory_snapshot s
JOIN unnest(%s::bigint[], %s::text[]) AS wanted (project_id, user_id) USING (project_id, user_id)
"""
_DIGESTS = """
SELECT snapshot_id, memory_id, digest, text_hash, created_at, updated_at FROM memory_snapshotmemory
WHERE snapshot_id = ANY(%s)
"""
_VECTORS = """
SELECT s.project_id, s.user_id, m.text_hash, m.vector FROM memory_snapshotmemory m
JOIN memory_snapshot s ON s.id = m.snapshot_id
JOIN unnest(%s::bigint[], %s::text[]) AS wanted (project_id, user_id) USING (project_id, user_id)
WHERE m.vector IS NOT NULL
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


_UNKEPT = """
SELECT s.id FROM memory_snapshot s JOIN memory_memoryuser u ON u.project_id = s.project_id AND u.user_id = s.user_id
WHERE u.active_at < now() - make_interval(days => %s) ORDER BY s.id LIMIT %s FOR UPDATE OF s SKIP LOCKED
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
        vectors = {} if vector is None else {query.text: vector}
        return self.get_each(query.scope, [query], version, policy, vectors)[0]

    def get_each(
        self,
        user: Scope,
        queries: Sequence[Query],
        version: Version,
        policy: Policy,
        vectors: Mapping[str, Vectors],
        as_of: int | None = None,
    ) -> list[Entry | None]:
        """`get` for many questions about one user, whatever user the queries name; `vectors` by their texts, `as_of`
        where it is another moment."""
        entries: list[Entry | None] = [None] * len(queries)
        if policy.local_search != "on" or user.user_id is None:
            return entries
        with _translated():
            made_by = model()
            found = self._at(user.project, user.user_id, version.number, made_by)
            if found is None or not _ranks(found[0], made_by):
                return entries
            held, now = found
            asked = [place for place, query in enumerate(queries) if rank.understands(query.conditions())]
            ranked = _rank([queries[place] for place in asked], held, now, policy, made_by, vectors)
        for place, entry in zip(asked, _encoded(held, ranked, now if as_of is None else as_of, policy), strict=True):
            entries[place] = entry
        return entries

    def hold(self, project: int, versions: Mapping[str, int]) -> None:
        """Have ready the rows of users who stand at these versions, for `get_each`. LayerUnavailable."""
        with _translated():
            wanted = {
                user: version
                for user, version in versions.items()
                if (kept := self.held.get((project, user))) is None or kept[0].version != version
            }
            for user, held in l3_rows.read_each(project, wanted).items() if wanted else ():
                self.held.put((project, user), (held, clock.now()), held.bytes)

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
                ranked = _rank([query], held, held.read_at, policy, by)
            except EmbedderError:
                ranked = _rank([query], held, held.read_at, policy, "")
        as_of = held.read_at if held.version == version.number else held.built_at
        return _encoded(held, ranked, as_of, policy)[0], not held.complete

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
        l3_rows.write(((snapshot, memory) for memory in memories), vectors, listed=False)
        self._move(snapshot, after, {memory.id: memory.text for memory in memories})
        return True

    def apply_removed(self, target: Scope, before: int, after: int, memory_ids: Sequence[str]) -> bool:
        """Remove rows, and what the summaries say of them; otherwise as `apply_added`."""
        stands = self._stands(target, before)
        if stands is None:
            return False
        l3_rows.remove((stands[0], memory) for memory in memory_ids)
        self._move(stands[0], after, dict.fromkeys(memory_ids))
        return True

    # -- a warm saves what it read ------------------------------------------------------------------------------------

    def known(self, scopes: Sequence[Scope]) -> dict[Scope, Known]:
        """What stands of users, for a warm to compare with."""
        with connection.cursor() as cursor:
            cursor.execute(_KNOWN, _columns(scopes))
            snapshots = cursor.fetchall()
        stand = _stand([row[2] for row in snapshots])
        found = {}
        for project, user, snapshot, version, complete, seen, embedder, topics in snapshots:
            rows = {memory: said[:2] for memory, said in stand.get(snapshot, {}).items()}
            found[Scope(project, user)] = Known(version, complete, seen, embedder, topics, rows)
        return found

    def vectors(self, scopes: Sequence[Scope]) -> dict[Scope, dict[bytes, bytes]]:
        """The stored vectors of users by text key."""
        found: dict[Scope, dict[bytes, bytes]] = {}
        with connection.cursor() as cursor:
            cursor.execute(_VECTORS, _columns(scopes))
            for project, user, key, vector in cursor.fetchall():
                found.setdefault(Scope(project, user), {})[bytes(key)] = bytes(vector)
        return found

    def save(self, read: Mapping[Scope, tuple[Reading, Summary]]) -> set[Scope]:
        """Replace what stands of users by what a warm read, in the caller's transaction; which it did: not where L3 is
        newer or the reading is below the floor (PROTOCOL B9, C4). Only rows that differ are written."""
        embedders = self._standing({scope: reading.version for scope, (reading, _) in read.items()})
        rows = [_saved(scope, *read[scope]) for scope in embedders]
        saved = db.write_many(_SAVE, rows, template=_SAVED) if rows else []
        snapshots = {Scope(project, user): snapshot for snapshot, project, user, _ in saved}
        _save_rows(
            {scope: (snapshots[scope], read[scope][0], embedders[scope]) for scope in snapshots},
            {snapshot for snapshot, _, _, made in saved if not made},
        )
        return set(snapshots)

    def confirm(self, versions: Mapping[Scope, int]) -> set[Scope]:
        """Say of what stands that a warm has read the same at this version; otherwise as `save`."""
        allowed = list(self._standing(versions))
        with connection.cursor() as cursor:
            cursor.execute(_CONFIRM, (*_columns(allowed), [versions[scope] for scope in allowed]))
        return set(allowed)

    def forget_inactive(self) -> int:
        """Drop the vectors of users whom nobody has asked about for L3_ACTIVE_DAYS, and after L3_KEEP_DAYS all there is
        of them; a later warm makes it again. How many vectors."""
        self._forget_unkept()
        with connection.cursor() as cursor:
            cursor.execute(_FORGET, (settings.L3_ACTIVE_DAYS,))
            return int(cursor.rowcount)

    def _forget_unkept(self) -> None:
        while True:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_UNKEPT, (settings.L3_KEEP_DAYS, FORGET_USERS))
                snapshots = [row[0] for row in cursor.fetchall()]
                SnapshotMemory.objects.filter(snapshot_id__in=snapshots).delete()
                Snapshot.objects.filter(pk__in=snapshots).delete()
            if len(snapshots) < FORGET_USERS:
                return

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

    def _standing(self, versions: Mapping[Scope, int]) -> dict[Scope, str]:
        """Which users may go to these versions, with the embedder of what stands, empty where nothing does; floors and
        snapshots locked, in this order, as the jobs that move them do."""
        ordered = sorted(versions, key=lambda scope: (scope.project, scope.user_id))
        with connection.cursor() as cursor:
            cursor.execute(_FLOORS, _columns(ordered))
            floors = {Scope(*row[:2]): row[2] for row in cursor.fetchall()}
            cursor.execute(_STAND_EACH, _columns(ordered))
            stand = {Scope(*row[:2]): row[2:] for row in cursor.fetchall()}
        return {
            scope: stand.get(scope, (0, ""))[1]
            for scope in ordered
            if max(floors.get(scope, 0), stand.get(scope, (0, ""))[0]) <= versions[scope]
        }

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


def _columns(scopes: Sequence[Scope]) -> tuple[list[int], list[str | None]]:
    """Projects and users, as `unnest` takes them."""
    return [scope.project for scope in scopes], [scope.user_id for scope in scopes]


def _saved(scope: Scope, reading: Reading, summary: Summary) -> tuple[Any, ...]:
    shown = (summary.topics, summary.favorites, summary.recent, summary.counts)
    return (
        scope.project,
        scope.user_id,
        reading.version,
        reading.complete,
        reading.version,
        reading.fingerprint,
        reading.embedder,
        summary.topics_digest,
        *(orjson.dumps(part).decode() for part in shown),
    )


def _stand(snapshots: Sequence[int]) -> dict[int, dict[str, tuple[bytes, bytes, str | None, str | None]]]:
    """By snapshot and memory id: digest, text key, times."""
    found: dict[int, dict[str, tuple[bytes, bytes, str | None, str | None]]] = {}
    if snapshots:
        with connection.cursor() as cursor:
            cursor.execute(_DIGESTS, (list(snapshots),))
            for snapshot, memory, digest, key, created, updated in cursor.fetchall():
                found.setdefault(snapshot, {})[memory] = (bytes(digest), bytes(key), created, updated)
    return found


def _save_rows(saved: Mapping[Scope, tuple[int, Reading, str]], stood: Collection[int]) -> None:
    """Write what differs from the rows of those snapshots that `stood` before."""
    stand = _stand(list(stood))
    changed, gone = [], []
    vectors: dict[bytes, bytes] = {}
    for snapshot, reading, embedder in saved.values():
        rows = stand.get(snapshot, {})
        same_vectors = embedder == reading.embedder
        for memory in reading.memories:
            said = (l3_rows.digest(memory), l3_rows.text_key(memory.text), memory.created_at, memory.updated_at)
            if not same_vectors or rows.get(memory.id) != said:
                changed.append((snapshot, memory))
        gone += [(snapshot, memory) for memory in rows.keys() - {memory.id for memory in reading.memories}]
        vectors.update(reading.vectors)
    l3_rows.write(changed, vectors, listed=True)
    l3_rows.remove(gone)


def _comparable(held: Held, made_by: str) -> bool:
    return held.embedder == made_by and (not made_by or held.rows.vectors is not None)


def _ranks(held: Held, made_by: str) -> bool:
    """Whether a ranking of these rows may stand in for Mem0's."""
    return held.complete and _comparable(held, made_by)


def _encoded(held: Held, ranked: Sequence[rank.Ranked], as_of: int, policy: Policy) -> list[Entry]:
    return encode_each(held.shown, ranked, version=held.version, as_of=as_of, ranking=policy.ranking)


def _rank(
    queries: Sequence[Query],
    held: Held,
    now: int,
    policy: Policy,
    made_by: str,
    vectors: Mapping[str, Vectors] | None = None,
) -> list[rank.Ranked]:
    """For each question the best rows, at the store's time `now`: as the policy says, or by words where `made_by` is
    empty. `vectors` are of questions as they were asked."""
    if not made_by or policy.ranking != "hybrid":
        return [_rank_one(query, held, now, made_by, vectors or {}) for query in queries]
    ranked: dict[int, rank.Ranked] = {}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, query in enumerate(queries):
        alike.setdefault((query.scope.agent_id, query.scope.run_id, query.filters, query.show_expired), []).append(
            index
        )
    for places in alike.values():
        first = queries[places[0]]
        texts = [rank.meant(queries[index].text, held.rows) for index in places]
        found = rank.hybrid_each(
            texts,
            _vectors(texts, queries[places[0]].scope.project, vectors or {}),
            held.rows,
            [queries[index].top_k for index in places],
            [rank.THRESHOLD if (least := queries[index].threshold) is None else least for index in places],
            today=_today(first, now),
            among=_about(held, first.scope, first.conditions()),
        )
        ranked |= zip(places, found, strict=True)
    return [ranked[index] for index in range(len(queries))]


def _rank_one(query: Query, held: Held, now: int, made_by: str, vectors: Mapping[str, Vectors]) -> rank.Ranked:
    """As Mem0 would, or by words."""
    among, today = _about(held, query.scope, query.conditions()), _today(query, now)
    if not made_by:
        return rank.by_words(query.text, held.rows, query.top_k, today=today, among=among)
    (vector,) = _vectors([query.text], query.scope.project, vectors)
    return rank.like_upstream(
        query.text, vector, held.rows, query.top_k, threshold=query.threshold, today=today, among=among
    )


def _vectors(texts: Sequence[str], project: int, known: Mapping[str, Vectors]) -> list[Vectors]:
    """Those that are known, and of the rest new ones. EmbedderError."""
    if missing := [text for text in texts if text not in known]:
        embedder = embedders.get()
        if embedder is None:
            raise EmbedderError("there is no embedder")
        made = CachedEmbedder(embedder, project, bounded=True).embed(missing, "search")
        known = {**known, **dict(zip(missing, made, strict=True))}
    return [known[text] for text in texts]


def _today(query: Query, now: int) -> str | None:
    return None if query.show_expired else datetime.fromtimestamp(now / 1_000_000, UTC).date().isoformat()


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
