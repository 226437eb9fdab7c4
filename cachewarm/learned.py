"""Which questions users really ask: noted where an answer had to be computed, saved off the request's path."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings
from django.db import connection

from cachewarm.models import LearnedQuery
from memory import clock, db, write
from memory.types import Query, Scope

MOST_NOTED = 2000
"""Questions kept in the process until they are saved; more in one second are a sample anyway."""
MOST_CHARACTERS = 2000
"""Of a question that is learned: a longer one is a message somebody sent, which nobody sends again."""
HALF_LIFE_SECONDS = 7 * 24 * 3600

# Weights are log2 of a sum of 2^(age in half-lives): what was added never has to decay, newer uses just weigh more.
_SAVE = """
INSERT INTO cachewarm_learnedquery AS q (project_id, user_id, fingerprint, query, weight) VALUES %s
ON CONFLICT (project_id, user_id, fingerprint) DO UPDATE SET weight = greatest(q.weight, excluded.weight)
    + ln(1 + exp(-least(abs(q.weight - excluded.weight), 60) * ln(2.0::float8))) / ln(2.0::float8)
"""
_WORTH = f"(%s, %s, %s, %s::jsonb, extract(epoch FROM clock_timestamp()) / {HALF_LIFE_SECONDS} + ln(%s) / ln(2.0))"
_ERASED = """
SELECT e.project_id, e.user_id, extract(epoch FROM clock_timestamp() - max(e.accepted_at))::float8
FROM memory_erasure e JOIN unnest(%s::bigint[], %s::text[]) AS u (project_id, user_id)
    ON u.project_id = e.project_id AND u.user_id = e.user_id
GROUP BY e.project_id, e.user_id
"""
_BEST = """
SELECT u.project_id, u.user_id, q.query::text FROM unnest(%s::bigint[], %s::text[]) AS u (project_id, user_id)
JOIN LATERAL (SELECT query, weight FROM cachewarm_learnedquery l
    WHERE l.project_id = u.project_id AND l.user_id = u.user_id
        AND l.weight > extract(epoch FROM now()) / %s + %s
    ORDER BY weight DESC LIMIT %s) q ON true
ORDER BY u.project_id, u.user_id, q.weight DESC
"""
_TRIM = """
DELETE FROM cachewarm_learnedquery WHERE id IN (
    SELECT id FROM (
        SELECT q.id, row_number() OVER (PARTITION BY q.project_id, q.user_id ORDER BY q.weight DESC) AS place
        FROM cachewarm_learnedquery q JOIN unnest(%s::bigint[], %s::text[]) AS u (project_id, user_id)
            ON u.project_id = q.project_id AND u.user_id = q.user_id) ranked
    WHERE place > %s)
"""


@dataclass(slots=True)
class Noted:
    """How often a question was asked since the process first noted it, at `since` on `clock.now()`."""

    since: float
    times: int = 1


_noted: dict[Query, Noted] = {}
_lock = threading.Lock()


def note(query: Query) -> None:
    """Remember a question until the process's upkeep saves it, within a second or so."""
    if query.scope.user_id is None or not settings.WARM_SET_QUERIES or len(query.text) > MOST_CHARACTERS:
        return
    with _lock:
        if query in _noted:
            _noted[query].times += 1
        elif len(_noted) < MOST_NOTED:
            _noted[query] = Noted(clock.now())


def forget() -> None:
    """Drop what was noted and not saved."""
    with _lock:
        _noted.clear()


def save() -> None:
    """Write what was noted to PostgreSQL; each user keeps twice the warm set's size. Where it cannot be written it is
    forgotten, and learned again."""
    with _lock:
        noted = dict(_noted)
        _noted.clear()
    noted = _of_this_life(noted) if noted else {}
    if not noted:
        return
    rows = [
        (query.scope.project, query.scope.user_id, query.fingerprint, orjson.dumps(_kept(query)).decode(), one.times)
        for query, one in noted.items()
    ]
    users = sorted({(query.scope.project, query.scope.user_id or "") for query in noted})
    write.touch_users(users)
    db.write_many(_SAVE, sorted(rows), template=_WORTH)
    with connection.cursor() as cursor:
        cursor.execute(
            _TRIM,
            ([project for project, _ in users], [user for _, user in users], 2 * settings.WARM_SET_QUERIES),
        )


def of_each(scopes: Sequence[Scope], most: int, worth: float = 0) -> dict[Scope, list[Query]]:
    """Users' questions most worth keeping warm, best first, so many each at most, of those worth more than so many uses
    of today; none of who has none."""
    found: dict[Scope, list[Query]] = {}
    with connection.cursor() as cursor:
        projects, users = [scope.project for scope in scopes], [scope.user_id for scope in scopes]
        cursor.execute(_BEST, (projects, users, HALF_LIFE_SECONDS, doublings(worth), most))
        for project, user, kept in cursor.fetchall():
            scope = Scope(project, user)
            found.setdefault(scope, []).append(_query(scope, orjson.loads(kept)))
    return found


def doublings(worth: float) -> float:
    """By how much a weight must be above today's to be worth more than so many uses."""
    return math.log2(worth) if worth else -math.inf


def forget_user(project_id: int, user_id: str) -> tuple[int, list[str]]:
    """Remove a user's questions, in the caller's transaction; how many, and their texts."""
    rows = LearnedQuery.objects.filter(project_id=project_id, user_id=user_id)
    texts = [kept["text"] for kept in rows.values_list("query", flat=True)]
    return rows.delete()[0], texts


def _of_this_life(noted: dict[Query, Noted]) -> dict[Query, Noted]:
    """Those noted since their users were last erased (PROTOCOL D), if ever: by durations, as clocks differ."""
    users = {(query.scope.project, query.scope.user_id) for query in noted}
    with connection.cursor() as cursor:
        cursor.execute(_ERASED, ([project for project, _ in users], [user for _, user in users]))
        erased = {(project, user): seconds for project, user, seconds in cursor.fetchall()}
    now = clock.now()
    return {
        query: one
        for query, one in noted.items()
        if now - one.since < erased.get((query.scope.project, query.scope.user_id), float("inf"))
    }


def _kept(query: Query) -> dict[str, Any]:
    return {
        "text": query.text,
        "top_k": query.top_k,
        "threshold": query.threshold,
        "filters": query.filters,
        "show_expired": query.show_expired,
        "agent_id": query.scope.agent_id,
        "run_id": query.scope.run_id,
    }


def _query(scope: Scope, kept: dict[str, Any]) -> Query:
    return Query(
        Scope(scope.project, scope.user_id, kept["agent_id"], kept["run_id"]),
        kept["text"],
        top_k=kept["top_k"],
        threshold=kept["threshold"],
        filters=kept["filters"],
        show_expired=kept["show_expired"],
    )
