"""Whom a rebuild can leave alone, found out for a whole page of users: one query, and one command of Redis a user."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import connection

from cachewarm import topics
from memory import keys, stack
from memory.tenancy.projects import policy as policy_of
from memory.text import nfc
from memory.types import Pin, Query, Scope

CHUNK = 64
"""Users of one round trip to L2: some 900 keys."""

# Warm by all that PostgreSQL knows: the last warm ended well, at the version that is current, and so did the summaries.
_STANDING = """
SELECT u.id, u.project_id, u.user_id, u.warmed_version, s.embedder, s.topics_digest,
    coalesce((s.counts->>'memories')::bigint, 0) + coalesce((s.counts->>'expired')::bigint, 0),
    array(SELECT q.fingerprint FROM cachewarm_learnedquery q
        WHERE q.project_id = u.project_id AND q.user_id = u.user_id ORDER BY q.weight DESC LIMIT %(queries)s)
FROM memory_memoryuser u
LEFT JOIN memory_pinversion v ON v.project_id = u.project_id AND v.kind = 'user' AND v.pin_id = u.user_id
JOIN memory_snapshot s ON s.project_id = u.project_id AND s.user_id = u.user_id
WHERE u.id = ANY(%(users)s) AND u.warmed_at IS NOT NULL AND u.warm_failure = ''
    AND u.warmed_version = coalesce(v.version, 0) AND s.summary_version = u.warmed_version
"""


def among(users: Collection[int], made_by: str, totals: Mapping[str, Mapping[str, Any]] | None) -> list[int]:
    """Of users by their keys, those that every layer is warm for until after the next rebuild; `made_by` is what makes
    vectors now, `totals` how many memories Mem0 counts for each user by project (None: not asked). Some that are warm
    may be left out: whoever has a memory that will expire. LayerUnavailable."""
    with connection.cursor() as cursor:
        cursor.execute(_STANDING, {"users": list(users), "queries": settings.WARM_SET_QUERIES})
        rows = cursor.fetchall()
    by_project: dict[int, list[tuple[int, Pin, int, list[str]]]] = {}
    digests: dict[int, str] = {}
    for key, project, user, version, embedder, digest, count, learned in rows:
        if project not in digests:
            digests[project] = topics.digest(topics.of(project))
        counted = count if totals is None else totals.get(str(project), {}).get(user, 0)
        if (embedder, digest, count) == (made_by, digests[project], counted):
            by_project.setdefault(project, []).append((key, Pin(project, "user", user), version, learned))
    return [key for project, standing in by_project.items() for key in _answered(project, standing)]


def _answered(project: int, standing: Sequence[tuple[int, Pin, int, list[str]]]) -> list[int]:
    """Those whose warm set's answers are all in L2."""
    rules = policy_of(project)
    asked = [nfc(question).strip() for question in topics.questions(topics.of(project))]
    general = [Query(Scope(project, "anyone"), question).fingerprint for question in asked]
    wanted = []
    for _, pin, version, learned in standing:
        tag = keys.tag(pin, rules.generation)
        wanted.append((version, [keys.of_result(tag, each) for each in dict.fromkeys([*learned, *general])]))
    least = settings.REBUILD_PERIOD_SECONDS * 1000
    held: list[bool] = []
    for start in range(0, len(wanted), CHUNK):
        held += stack.L2.stand(wanted[start : start + CHUNK], least, rules.served)
    return [key for (key, *_), stands in zip(standing, held, strict=True) if stands]
