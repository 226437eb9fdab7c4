"""Searching what was said in a session: stm.L0 (this process) → stm.L1 (Redis) → the stored messages and tiers.

What is found is current only at the session's very version, in the same life of the session (docs/decisions/0008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache as once
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import redis
from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models.functions import Now

from memory import keys, metrics, nearness, rank
from memory.errors import DatabaseUnavailable
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU
from memory.merge import Near
from memory.models import Message, Session, Tier
from memory.nearness import Scores
from memory.pending import message_id
from memory.rank import Rows
from memory.redis_client import cache
from memory.stm import versions
from memory.stm.versions import NONE, State
from memory.tenancy.projects import Policy
from memory.text import content_words, normalised
from memory.types import Memory, Pin, Query

L0, L1, STORED = "stm.L0", "stm.L1", "stm.store"
NOWHERE = "none"
"""There is no such session of this user."""
MOST_TURNS = 500
"""Of a longer session the newest turns are searched as they were said, the older ones as their tier tells them."""
L0_BYTES, HELD_BYTES = 4 << 20, 16 << 20
L1_TTL_SECONDS = 3600
ROW_BYTES = 2500
"""What a turn takes in this process beside its text: words and objects."""
WARM_TURNS = 50
NEIGHBOUR = 0.5
"""Share of the scores beside it that a message gains: an answer often has no word of the question it answers. Measured:
docs/decisions/0010."""
STANDS_OUT = 0.9
"""Quantile of a session's scores above which one lifts its neighbours."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a question found in a session, and which layer told."""

    near: tuple[Near, ...]
    layer: str
    state: State


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was said, or is told of older turns (`turn` is
    then the last of them, `role` the tier's name)."""

    id: str
    turn: int
    role: str
    text: str
    metadata: Mapping[str, Any]
    at: str | None
    job: str | None = None
    """The job that handed it to extraction."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session as this process last read it, ready to be ranked."""

    state: State
    turns: int
    extracted: int
    said: tuple[Line, ...]
    told: tuple[Line, ...]
    rows: Rows

    @property
    def lines(self) -> tuple[Line, ...]:
        """Everything there is to find, in the order of `rows`."""
        return (*self.said, *self.told)


def names(session_id: str, query: Query, generation: int) -> list[str]:
    """What to read of Redis in the search's one round trip: the version before what it makes current (B8)."""
    user = _user(query)
    fingerprint = query.fingerprint
    return [keys.session(user, generation, session_id), keys.session_search(user, generation, session_id, fingerprint)]


def cached(session_id: str, query: Query, policy: Policy, read: Sequence[bytes | None]) -> Found | None:
    """What stm.L0 or stm.L1 hold of this question at the version that `names` brought; None where neither does."""
    copy, stored = read
    if copy is None:
        return None
    state = versions.parse(copy)
    if state.row == 0:
        return Found((), NOWHERE, state)
    key = (_user(query), policy.generation, session_id, query.fingerprint)
    held = _answers().get(key)
    if held is not None and held.state == state:
        _count(policy, L0, "hit")
        return Found(held.near, L0, state)
    _count(policy, L0, "miss")
    found = _unpack(stored) if stored is not None else None
    if found is None or found.state != state:
        _count(policy, L1, "miss")
        return None
    _count(policy, L1, "hit")
    _answers().put(key, found, len(stored or b"") * 2 + OVERHEAD_BYTES)
    return found


def look(session_id: str, query: Query, policy: Policy, *, by_words: bool = False) -> Found:
    """What the stored session holds of this question, kept for the next time; `by_words` asks no embedder, for when
    there is no time. DatabaseUnavailable."""
    user = _user(query)
    _, token = versions.take(user, session_id, policy.generation)
    talk = _conversation(user, session_id)
    state = talk.state if talk else NONE
    if token is not None:
        versions.keep(user, session_id, policy.generation, state, token)
    if talk is None:
        return Found((), NOWHERE, state)
    scored = nearness.scores(query.text, talk.rows, policy.id, by_words=by_words)
    found = Found(tuple(_ranked(session_id, talk, query, policy, scored)), STORED, state)
    if not scored.whole:  # the next one may know better
        return found
    packed = _pack(found)
    key = (user, policy.generation, session_id, query.fingerprint)
    _answers().put(key, found, len(packed) * 2 + OVERHEAD_BYTES)
    try:
        cache().set(keys.session_search(*key), packed, ex=L1_TTL_SECONDS)
        outcome = "stored"
    except redis.RedisError:
        outcome = "error"
    metrics.count("fills", project=policy.id, layer=L1, outcome=outcome)
    return found


def warm(session_pk: int) -> None:
    """Embed a session's newest turns, so that the next search finds their vectors in L1."""
    session = Session.objects.filter(pk=session_pk).first()
    if session is not None:
        rows = session.messages.order_by("-turn").values_list("content", flat=True)
        nearness.warm(list(rows[:WARM_TURNS]), session.project_id)


def _ranked(session_id: str, talk: Conversation, query: Query, policy: Policy, scored: Scores) -> list[Near]:
    conditions = query.conditions()
    if not rank.understands(conditions):
        return []
    asked = normalised(query.text) if query.text.endswith("?") else None
    values = _beside(scored.values, len(talk.said))
    best = [
        (value, line)
        for value, own, line, reaches in zip(
            values, scored.values, talk.lines, scored.reach(query.threshold), strict=True
        )
        if own > 0
        and reaches
        and normalised(line.text) != asked  # the very question, said in the session before it was asked here
        and (not conditions or rank.matches(conditions, Memory("", line.text, metadata=line.metadata)))
    ]
    best.sort(key=lambda one: (-one[0], -one[1].turn))
    return [Near(_shown(session_id, line, talk, query, policy), score, line.job) for score, line in best[: query.top_k]]


def _beside(values: Sequence[float], turns: int) -> list[float]:
    """Scores, still 0 to 1, with what the first `turns` of them gain from neighbours that stand out."""
    said = np.array(values[:turns])
    above = np.maximum(said - np.quantile(said, STANDS_OUT), 0) if turns else said
    said[1:] += NEIGHBOUR * above[:-1]
    said[:-1] += NEIGHBOUR * above[1:]
    return [value / (1 + 2 * NEIGHBOUR) for value in (*said.tolist(), *values[turns:])]


def _shown(session_id: str, line: Line, talk: Conversation, query: Query, policy: Policy) -> dict[str, Any]:
    waits = policy.extract_on != "never" and line.role == "user" and line.turn > talk.extracted
    return {
        "id": line.id,
        "memory": line.text,
        "score": None,
        "source": "stm",
        "pending": waits,
        "session_id": session_id,
        "turn": line.turn,
        "role": line.role,
        "metadata": dict(line.metadata),
        "user_id": query.scope.user_id,
        "agent_id": None,
        "run_id": None,
        "created_at": line.at,
        "updated_at": None,
        "expiration_date": None,
    }


def _conversation(user: Pin, session_id: str) -> Conversation | None:
    """The session as PostgreSQL has it; of one that this process has read before only what is new is read."""
    try:
        session = Session.objects.filter(
            project_id=user.project,
            session_id=session_id,
            user_id=user.id,
            last_at__gte=Now() - timedelta(hours=settings.STM_SESSION_HOURS),
        ).first()
        if session is None:
            return None
        held = _talks().get((user, session_id))
        if held is not None and held.state == State(session.pk, session.version):
            return held
        grown = held is not None and (held.state.row, held.extracted) == (session.pk, session.extracted)
        talk = _read(session, held if grown else None)
    except DatabaseError as error:
        raise DatabaseUnavailable("the session cannot be read") from error
    _talks().put((user, session_id), talk, sum(4 * len(line.text) + ROW_BYTES for line in talk.lines))
    return talk


def _read(session: Session, held: Conversation | None) -> Conversation:
    """Everything up to now; the version was read before, so what came since is at worst read again."""
    seen = held.said[-1].turn if held and held.said else max(0, session.turns - MOST_TURNS)
    rows = Message.objects.filter(session=session, turn__gt=seen).order_by("turn")
    fresh = rows.values_list("turn", "role", "content", "metadata", "created_at", "job_id")
    said = (*(held.said if held else ()), *(_line(session, *row) for row in fresh))[-MOST_TURNS:]
    told = tuple(_told(session, said[0].turn if said else 1))
    return Conversation(
        State(session.pk, session.version),
        session.turns,
        session.extracted,
        said,
        told,
        Rows([line.text for line in (*said, *told)]),
    )


def _line(session: Session, turn: int, role: str, text: str, metadata: Any, at: datetime, job: UUID | None) -> Line:
    name = message_id(session.session_id, turn)
    return Line(name, turn, role, text, metadata, at.isoformat(), str(job) if job else None)


def _told(session: Session, first: int) -> list[Line]:
    """What the tiers tell that no message says as well: of turns before the first read, or in an LLM's own words."""
    lines = []
    for tier in Tier.objects.filter(session=session).order_by("first"):
        if tier.first < first or tier.made_by != "extractive":
            for index, text in enumerate(tier.text.split("\n")):
                if content_words(text):
                    name = f"stm-{session.session_id}-{tier.name}-{index}"
                    lines.append(Line(name, tier.last, tier.name, text, {}, None))
    return lines


def _pack(found: Found) -> bytes:
    shown = [(one.shown, one.score, one.job) for one in found.near]
    return orjson.dumps((found.state.row, found.state.number, shown), option=orjson.OPT_NON_STR_KEYS)


def _unpack(stored: bytes) -> Found | None:
    try:
        row, number, shown = orjson.loads(stored)
        return Found(tuple(Near(*one) for one in shown), L1, State(row, number))
    except (ValueError, TypeError):  # not ours: the fill that follows replaces it
        return None


def _user(query: Query) -> Pin:
    return query.scope.pin


def _count(policy: Policy, layer: str, outcome: str) -> None:
    metrics.count("lookups", project=policy.id, layer=layer, outcome=outcome)


@once
def _answers() -> ByteLRU[tuple[Pin, int, str, str], Found]:
    return ByteLRU(L0_BYTES)


@once
def _talks() -> ByteLRU[tuple[Pin, str], Conversation]:
    return ByteLRU(HELD_BYTES)


def forget() -> None:
    """Empty this process's memory of sessions."""
    _answers().clear()
    _talks().clear()
