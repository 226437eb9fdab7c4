"""What each layer holds of a user, and why a `strict` search would hit or miss it now.

Looking changes nothing that a search would notice: no layer is filled, no lease or lifetime renewed, no query learned.
A layer that is down is told as such; only PostgreSQL must answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import redis
from django.conf import settings

from memory import bulkhead, clock, db, embedders, identity, keys, rank, stack, versions
from memory.clock import Deadline
from memory.errors import EmbedderError, LayerError
from memory.layers import l3_summaries
from memory.layers.base import expired, pack
from memory.layers.l0_process import Held as ProcessHeld
from memory.layers.l1_vectors import CachedEmbedder
from memory.layers.l3_rows import Held as Rows
from memory.layers.l3_rows import read as read_rows
from memory.models import Snapshot
from memory.read import served
from memory.redis_client import cache
from memory.tenancy.projects import Policy
from memory.types import Entry, Memory, Pin, Query, Scope, Version

Outcome = Literal["hit", "miss", "off", "down"]

FIRST_ITEMS = 3
"""How many of an entry's memories are shown."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a strict search would find here now, and why."""

    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Holding:
    """What one layer holds for one query. Durations are in seconds; `left` is None for what has no end of its own."""

    layer: str
    verdict: Verdict
    key: str = ""
    version: int | None = None
    age: float | None = None
    left: float | None = None
    bytes: int | None = None
    count: int | None = None
    ranking: str = ""
    first: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One query and what every layer has of it, in the order a search asks them."""

    query: Query
    answers: Sequence[Holding]
    vector: Holding

    @property
    def answered_by(self) -> str:
        """The layer that would answer it now; L4 is Mem0."""
        return next((held.layer for held in self.answers if held.verdict.outcome == "hit"), "L4")


@dataclass(frozen=True, slots=True)
class VersionState:
    """The version in PostgreSQL and its leased copy in Redis, which is what searches go by while it stands."""

    stored: Version
    copy: Version | None
    left: float | None
    key: str
    redis: bool
    store_now: int

    @property
    def current(self) -> Version:
        """What a search would answer at."""
        return self.copy or self.stored

    @property
    def verdict(self) -> Verdict:
        """Whether the copy serves."""
        if not self.redis:
            return Verdict("down", "Redis does not answer: every search asks PostgreSQL")
        if self.copy is None:
            return Verdict("miss", "no copy: the next search asks PostgreSQL and keeps one")
        if self.copy.number != self.stored.number:
            return Verdict(
                "miss", "PostgreSQL has moved on: a publication is under way, or waits for this lease to end"
            )
        return Verdict("hit", "equal to PostgreSQL's")


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything about one user."""

    process: str
    process_bytes: int
    process_limit: int
    version: VersionState
    snapshot: Snapshot | None
    rows: Rows | None
    rows_verdict: Verdict
    embedder: str
    questions: Sequence[Question]
    others: Sequence[Holding]


@dataclass(frozen=True, slots=True)
class Difference:
    """Mem0's list beside L3's."""

    only_upstream: Sequence[Memory]
    only_here: Sequence[Memory]
    changed: Sequence[tuple[Memory, Memory]]
    same: int
    upstream_complete: bool
    here_complete: bool
    here_current: bool

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.only_upstream or self.only_here or self.changed)


def user(scope: Scope, policy: Policy, queries: Sequence[Query], asked: Query | None = None) -> Inspection:
    """What the layers hold of a user for these queries; for `asked` also what L3 would answer.

    DatabaseUnavailable or django.db.DatabaseError when PostgreSQL is away.
    """
    pin = scope.pin
    version = _version(pin, policy)
    rows = read_rows(pin.project, pin.id, 0, l3_summaries.NEWEST)
    listed = [asked, *queries] if asked else list(queries)
    made_by, embedder = _embedder()
    here = _process_entries(pin)
    shared = _shared(listed, version, policy)
    vectors = _vectors(listed, policy)
    questions = [
        Question(
            query,
            (
                _from_process(here.pop(query.fingerprint, None), version, policy),
                shared[index],
                _from_rows(query, rows, version, policy, made_by, answer=query is asked),
            ),
            vectors[index],
        )
        for index, query in enumerate(listed)
    ]
    plain = Query(scope, "any question")
    return Inspection(
        process=identity.process(),
        process_bytes=stack.L0.held.bytes,
        process_limit=stack.L0.held.max_bytes,
        version=version,
        snapshot=stack.L3.snapshot(pin.project, pin.id),
        rows=rows,
        rows_verdict=_from_rows(plain, rows, version, policy, made_by, answer=False).verdict,
        embedder=embedder,
        questions=questions,
        others=[_from_process(found, version, policy, fingerprint) for fingerprint, found in here.items()],
    )


def difference(scope: Scope, policy: Policy, deadline: Deadline) -> Difference:
    """Ask Mem0 for the user's memories and compare them with L3's rows. OriginError, Overloaded."""
    current = versions.stored(scope.pin).number
    db.release()
    with bulkhead.waiting():
        listing = stack.backend(policy).list(scope, deadline)
    rows = read_rows(scope.project, scope.pin.id, 0, l3_summaries.NEWEST)
    upstream = {memory.id: memory for memory in listing.memories}
    here = {memory.id: memory for memory in rows.memories} if rows else {}
    both = [(here[name], upstream[name]) for name in upstream if name in here]
    changed = [pair for pair in both if _said(pair[0]) != _said(pair[1])]
    return Difference(
        only_upstream=[memory for name, memory in upstream.items() if name not in here],
        only_here=[memory for name, memory in here.items() if name not in upstream],
        changed=changed,
        same=len(both) - len(changed),
        upstream_complete=listing.complete,
        here_complete=rows is not None and rows.complete,
        here_current=rows is not None and rows.version == current,
    )


def _said(memory: Memory) -> tuple[Any, ...]:
    return memory.text, memory.agent_id, memory.run_id, memory.expiration_date, dict(memory.metadata)


def _version(pin: Pin, policy: Policy) -> VersionState:
    key = keys.version(pin, policy.generation)
    asked = clock.now()
    pipe = cache().pipeline(transaction=False)
    pipe.get(key)
    pipe.pttl(key)
    pipe.time()
    try:
        raw, left, time = pipe.execute()
    except redis.RedisError:
        return VersionState(versions.stored(pin), None, None, key, redis=False, store_now=0)
    copy = versions.parse(pin, raw, asked) if raw else None
    now = time[0] * 1_000_000 + time[1]
    return VersionState(versions.stored(pin), copy, left / 1000 if copy else None, key, redis=True, store_now=now)


def _judge(entry: Entry, version: Version, policy: Policy, *, ended: bool) -> Verdict:
    """A search's own conditions, told one by one (PROTOCOL B8 to B10, C3)."""
    if entry.version < version.floor:
        return Verdict("miss", f"below the floor: of version {entry.version}, the floor is {version.floor}")
    if entry.version != version.number:
        return Verdict("miss", f"entry is of version {entry.version}, the current is {version.number}")
    if ended:
        return Verdict("miss", "expired: a memory in it has reached its expiration date")
    if not served(entry, policy):
        rules = f"local_search is {policy.local_search} and local_ranking {policy.local_ranking}"
        return Verdict("off", f"policy off: ranking {entry.ranking}, where {rules}")
    return Verdict("hit", "version equal")


def _first(entry: Entry) -> Sequence[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = orjson.loads(entry.results)
    return found[:FIRST_ITEMS]


# -- L0 ---------------------------------------------------------------------------------------------------------------


def _process_entries(pin: Pin) -> dict[str, tuple[ProcessHeld, int]]:
    """This process's entries of the pin by fingerprint, with sizes; seen without being used."""
    return {name: (held, size) for (of, name), held, size in stack.L0.held.items() if of == pin}


def _from_process(
    found: tuple[ProcessHeld, int] | None,
    version: VersionState,
    policy: Policy,
    fingerprint: str = "",
) -> Holding:
    if found is None:
        return Holding("L0", Verdict("miss", "no entry"))
    held, size = found
    verdict = _judge(held.entry, version.current, policy, ended=held.expired)
    if held.generation != policy.generation:
        verdict = Verdict("miss", f"entry is of generation {held.generation}, the current is {policy.generation}")
    return Holding(
        "L0",
        verdict,
        key=fingerprint,
        version=held.entry.version,
        age=held.age_ms / 1000,
        left=None if held.dies_at is None else held.dies_at - clock.now(),
        bytes=size,
        count=held.entry.count,
        ranking=held.entry.ranking,
        first=_first(held.entry),
    )


# -- L2 ---------------------------------------------------------------------------------------------------------------


def _shared(queries: Sequence[Query], version: VersionState, policy: Policy) -> list[Holding]:
    try:
        peeked = stack.L2.peek(queries, policy.generation) if version.redis else None
    except LayerError:
        peeked = None
    if peeked is None:
        return [Holding("L2", Verdict("down", "Redis does not answer")) for _ in queries]
    return [
        _from_redis(query, entry, left, version, policy) for query, (entry, left) in zip(queries, peeked, strict=True)
    ]


def _from_redis(query: Query, entry: Entry | None, left: int, version: VersionState, policy: Policy) -> Holding:
    key = keys.result(query.scope.pin, policy.generation, query.fingerprint)
    if entry is None:
        return Holding("L2", Verdict("miss", "no entry"), key=key)
    return Holding(
        "L2",
        _judge(entry, version.current, policy, ended=expired(entry, version.store_now)),
        key=key,
        version=entry.version,
        age=max(0, version.store_now - entry.as_of) / 1e6,
        left=left / 1000,
        bytes=len(pack(entry)),
        count=entry.count,
        ranking=entry.ranking,
        first=_first(entry),
    )


# -- L3 ---------------------------------------------------------------------------------------------------------------


def _from_rows(
    query: Query,
    rows: Rows | None,
    version: VersionState,
    policy: Policy,
    made_by: str | None,
    *,
    answer: bool,
) -> Holding:
    verdict = _judge_rows(query, rows, version.current, policy, made_by)
    if rows is None:
        return Holding("L3", verdict)
    entry = None
    if answer and verdict.outcome == "hit":
        try:
            entry = stack.L3.get(query, version.current, policy)
        except LayerError as error:
            verdict = Verdict("down", error.code)
    return Holding(
        "L3",
        verdict,
        version=rows.version,
        age=(rows.read_at - rows.built_at) / 1e6,
        bytes=rows.bytes,
        count=len(rows.memories),
        ranking=policy.ranking,
        first=_first(entry) if entry else (),
    )


def _judge_rows(query: Query, rows: Rows | None, version: Version, policy: Policy, made_by: str | None) -> Verdict:
    if policy.local_search != "on":
        while_away = ": ranks here only while Mem0 is away" if policy.local_search == "degraded" else ""
        return Verdict("off", f"policy off: local_search is {policy.local_search}{while_away}")
    if rows is None:
        return Verdict("miss", "no entry: this user was never warmed")
    if rows.version < version.floor:
        return Verdict("miss", f"below the floor: of version {rows.version}, the floor is {version.floor}")
    if rows.version != version.number:
        return Verdict("miss", f"rows are of version {rows.version}, the current is {version.number}")
    if not rows.complete:
        return Verdict("miss", "L3 incomplete: Mem0 listed only some of the memories")
    return _judge_ranking(query, rows, made_by)


def _judge_ranking(query: Query, rows: Rows, made_by: str | None) -> Verdict:
    if made_by is None:
        return Verdict("down", "the embedder cannot be made")
    if rows.embedder != made_by:
        return Verdict("miss", f"vectors are of “{rows.embedder or 'none'}”, the embedder is “{made_by or 'none'}”")
    if made_by and rows.rows.vectors is None:
        return Verdict("miss", "some memories have no vector yet")
    if not rank.understands(query.conditions()):
        return Verdict("miss", "its filters are left to Mem0")
    return Verdict("hit", "rows are of the current version")


# -- L1 ---------------------------------------------------------------------------------------------------------------


def _embedder() -> tuple[str | None, str]:
    """What vectors must be of to be compared (None: unknown), and how to name that."""
    try:
        made_by = l3_summaries.model()
    except EmbedderError as error:
        return None, f"{settings.EMBEDDER}: {error}"
    return made_by, made_by or "none: ranking goes by words"


def _vectors(queries: Sequence[Query], policy: Policy) -> list[Holding]:
    try:
        embedder = embedders.get()
    except EmbedderError:
        return [Holding("L1", Verdict("down", "the embedder cannot be made")) for _ in queries]
    if embedder is None:
        return [Holding("L1", Verdict("off", "no embedder: ranking goes by words")) for _ in queries]
    cached = CachedEmbedder(embedder, policy.id)
    names = [cached.key(query.text, "search") for query in queries]
    pipe = cache().pipeline(transaction=False)
    for name in names:
        pipe.pttl(name)
        pipe.strlen(name)
    try:
        found = pipe.execute()
    except redis.RedisError:
        return [Holding("L1", Verdict("down", "Redis does not answer"), key=name) for name in names]
    return [_vector(name, left, size) for name, left, size in zip(names, found[::2], found[1::2], strict=True)]


def _vector(name: str, left: int, size: int) -> Holding:
    if left < 0:
        return Holding("L1", Verdict("miss", "no vector: it is made when it is needed"), key=name)
    return Holding("L1", Verdict("hit", "cached"), key=name, left=left / 1000, bytes=size)
