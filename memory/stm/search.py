"""Searching what was said in a session: stm.L0 (this process) → stm.L1 (Redis) → the stored messages and tiers.

What is found is current only at the session's very version, in the same life of the session (docs/decisions/0008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from typing import Any

import numpy as np
import orjson
import redis

from memory import keys, metrics, nearness, rank
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU
from memory.merge import Near
from memory.models import Session
from memory.nearness import Scores
from memory.redis_client import cache
from memory.stm import conversation, versions
from memory.stm.conversation import Conversation, Line
from memory.stm.versions import NONE, State
from memory.tenancy.projects import Policy
from memory.text import normalised
from memory.types import Memory, Pin, Query

L0, L1, STORED = "stm.L0", "stm.L1", "stm.store"
NOWHERE = "none"
"""There is no such session of this user."""
L0_BYTES = 4 << 20
L1_TTL_SECONDS = 3600
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
    bytes: int = 0
    """What it takes to keep it, about."""


def names(session_id: str, query: Query, generation: int) -> list[str]:
    """What to read of Redis in the search's one round trip: the version before what it makes current (B8)."""
    user = _user(query)
    fingerprint = query.fingerprint
    return [keys.session(user, generation, session_id), keys.session_search(user, generation, session_id, fingerprint)]


def cached(session_id: str, query: Query, policy: Policy, read: Sequence[bytes | None]) -> Found | None:
    """What stm.L0 or stm.L1 hold of this question at the version that `names` brought; None where neither does."""
    found = held(session_id, query, policy, read)
    if found is not None:
        used(found, session_id, query, policy)
    elif read[0] is not None:
        _count(policy, L0, "miss")
        _count(policy, L1, "miss")
    return found


def held(session_id: str, query: Query, policy: Policy, read: Sequence[bytes | None]) -> Found | None:
    """As `cached`, but nothing is counted or kept until the answer is `used`."""
    copy, stored = read
    if copy is None:
        return None
    state = versions.parse(copy)
    if state.row == 0:
        return Found((), NOWHERE, state)
    kept = _answers().get((query.slot[0], policy.generation, session_id, query.fingerprint))
    if kept is not None and kept.state == state:
        return kept if kept.layer == L0 else Found(kept.near, L0, state)
    found = _unpack(stored) if stored is not None else None
    return found if found is not None and found.state == state else None


def used(found: Found, session_id: str, query: Query, policy: Policy) -> None:
    """Count what `held` found, and keep here what another process had made."""
    if found.layer == NOWHERE:
        return
    _count(policy, L0, "hit" if found.layer == L0 else "miss")
    if found.layer == L1:
        _count(policy, L1, "hit")
        key = (query.slot[0], policy.generation, session_id, query.fingerprint)
        _answers().put(key, replace(found, layer=L0), found.bytes)


def look(session_id: str, query: Query, policy: Policy, *, by_words: bool = False) -> Found:
    """What the stored session holds of this question, kept for the next time; `by_words` asks no embedder, for when
    there is no time. DatabaseUnavailable."""
    user = _user(query)
    _, token = versions.take(user, session_id, policy.generation)
    talk = conversation.read(user, session_id)
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
    _answers().put(key, replace(found, layer=L0), len(packed) * 2 + OVERHEAD_BYTES)
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
    scores = _beside(scored.values, len(talk.said))
    nearby = zip(scores, scored.values, scored.reach(query.threshold), talk.lines, strict=True)
    best = [
        (score, line)
        for score, own, reaches, line in nearby
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


def _pack(found: Found) -> bytes:
    shown = [(one.shown, one.score, one.job) for one in found.near]
    return orjson.dumps((found.state.row, found.state.number, shown), option=orjson.OPT_NON_STR_KEYS)


def _unpack(stored: bytes) -> Found | None:
    try:
        row, number, shown = orjson.loads(stored)
        size = len(stored) * 2 + OVERHEAD_BYTES
        return Found(tuple(Near(*one) for one in shown), L1, State(row, number), size)
    except (ValueError, TypeError):  # not ours: the fill that follows replaces it
        return None


def _user(query: Query) -> Pin:
    return query.scope.pin


def _count(policy: Policy, layer: str, outcome: str) -> None:
    metrics.count("lookups", project=policy.id, layer=layer, outcome=outcome)


@once
def _answers() -> ByteLRU[tuple[Pin, int, str, str], Found]:
    return ByteLRU(L0_BYTES)


def forget() -> None:
    """Empty this process's memory of sessions."""
    _answers().clear()
    conversation.forget()
