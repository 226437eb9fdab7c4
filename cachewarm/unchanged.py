"""Whose answers are in L2, and for how long: whom a rebuild can leave alone, found out for a page of users at once.

Whoever fills or looks at all of a user's answers notes until when all will be there, and what they answer. While that
note stands, an entry can only have been lost whole: one command a user tells whether each is there. Without it every
entry is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from django.conf import settings
from django.db import connection, transaction

from cachewarm import learned, topics, warmset
from memory import keys, rank, stack, write
from memory.tenancy.projects import Policy
from memory.tenancy.projects import policy as policy_of
from memory.types import Scope

CHUNK = 128
"""Users of one round trip to L2: some 3,000 keys."""

# Warm by all that PostgreSQL knows: the last warm ended well, at the version that is current, and so did the summaries.
# A question that may not be searched comes with its filters: it is in the warm set only if L3 evaluates them.
_STANDING = """
SELECT u.id, u.user_id, u.warmed_version, s.embedder, s.topics_digest,
    coalesce((s.counts->>'memories')::bigint, 0) + coalesce((s.counts->>'expired')::bigint, 0), s.complete,
    CASE WHEN u.answers_until > now() + %(period)s * interval '1 second' THEN u.answers ELSE '' END,
    array(SELECT q.fingerprint || CASE WHEN q.query->>'filters' = '' THEN ''
            WHEN q.weight > extract(epoch FROM now()) / %(half_life)s + %(again)s THEN ''
            ELSE ' ' || (q.query->>'filters') END
        FROM cachewarm_learnedquery q WHERE q.project_id = u.project_id AND q.user_id = u.user_id
        AND q.weight > extract(epoch FROM now()) / %(half_life)s
            + CASE WHEN s.complete THEN %(doublings)s ELSE %(again)s END
        ORDER BY q.weight DESC LIMIT CASE WHEN s.complete THEN %(most)s ELSE %(few)s END)
FROM memory_memoryuser u
LEFT JOIN memory_pinversion v ON v.project_id = u.project_id AND v.kind = 'user' AND v.pin_id = u.user_id
JOIN memory_snapshot s ON s.project_id = u.project_id AND s.user_id = u.user_id
WHERE u.project_id = %(project)s AND u.id = ANY(%(users)s) AND u.warmed_at IS NOT NULL AND u.warm_failure = ''
    AND u.warmed_version = coalesce(v.version, 0) AND s.summary_version = u.warmed_version
"""
_NOTE = """
UPDATE memory_memoryuser u SET answers = n.answers, answers_until = now() + n.life * interval '1 millisecond'
FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS n (user_id, answers, life)
WHERE u.project_id = %s AND u.user_id = n.user_id
"""


class Standing(NamedTuple):
    """A user whom PostgreSQL calls warm: with the fingerprints of the warm set, and whether the note about just these
    answers stands."""

    key: int
    scope: Scope
    version: int
    fingerprints: Sequence[str]
    noted: bool


def among(
    project: int, users: Collection[int], made_by: str, totals: Mapping[str, Mapping[str, Any]] | None
) -> dict[int, int]:
    """Of a project's users by their keys, those that every layer is warm for until after the next rebuild, with their
    versions; `made_by` is what makes vectors now, `totals` how many memories Mem0 counts for each user by project
    (None: not asked). LayerUnavailable."""
    rules = policy_of(project)
    kept, searched = warmset.rule(rules, Scope(project)), warmset.searched()
    values: dict[str, Any] = {
        "project": project,
        "users": list(users),
        "most": kept.most,
        "half_life": learned.HALF_LIFE_SECONDS,
        "doublings": learned.doublings(kept.worth),
        "few": searched.most,
        "again": learned.doublings(searched.worth),
        "period": settings.REBUILD_PERIOD_SECONDS,
    }
    with connection.cursor() as cursor:
        cursor.execute(_STANDING, values)
        rows = cursor.fetchall()
    digest = topics.digest(topics.of(project))
    counted = None if totals is None else totals.get(str(project), {})
    standing = [row for row in rows if row[3:5] == (made_by, digest) and _as_counted(row, counted)]
    return _answered(rules, standing, [query.fingerprint for query in kept.common])


def lives(rules: Policy, wanted: Sequence[tuple[Scope, int, Sequence[str]]]) -> list[list[int]]:
    """For users, versions and fingerprints, the milliseconds that each answer will be in L2. LayerUnavailable."""
    found: list[list[int]] = []
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        found += stack.L2.lives(
            [(version, _names(rules, scope, prints)) for scope, version, prints in chunk], rules.served
        )
    return found


def lasts(life: int) -> bool:
    """Whether so many milliseconds reach beyond the next rebuild."""
    return life > settings.REBUILD_PERIOD_SECONDS * 1000


def note(rules: Policy, kept: Mapping[Scope, tuple[int, Sequence[str], int]]) -> None:
    """For users at versions: the answers by fingerprint that all will be in L2 for so many milliseconds."""
    noted = sorted(
        (scope.user_id or "", _answers(version, _asked(rules, prints)), life)
        for scope, (version, prints, life) in kept.items()
    )
    if noted:
        with transaction.atomic(), connection.cursor() as cursor:
            write.lock_users([(rules.id, user) for user, *_ in noted])
            cursor.execute(_NOTE, (*map(list, zip(*noted, strict=True)), rules.id))


def _as_counted(row: Sequence[Any], counted: Mapping[str, Any] | None) -> bool:
    """Whether Mem0 counts what was listed; where that was only some, there are no fewer. A listing tells no more then,
    either: it is made again with everybody's."""
    if counted is None:
        return True
    there = int(counted.get(row[1], 0))
    return bool(there == row[5] if row[6] else there >= row[5])


def _rankable(asked: str) -> bool:
    """Whether L3 evaluates the filters, if any, that come with a fingerprint."""
    filters = asked.partition(" ")[2]
    return not filters or rank.understands(orjson.loads(filters))


def _answered(rules: Policy, rows: Sequence[Sequence[Any]], general: Sequence[str]) -> dict[int, int]:
    """Those whose warm set's answers are all in L2; `general` are the ones for everybody."""
    common = _asked(rules, general)
    standing = []
    for key, user, version, *_, complete, answers, asked in rows:
        own = [one.partition(" ")[0] for one in asked if _rankable(one)]
        if complete and not own:
            prints, said = general, common
        else:
            prints = list(dict.fromkeys([*own, *(general if complete else ())]))
            said = _asked(rules, prints)
        noted = answers == _answers(version, said)
        standing.append(Standing(key, Scope(rules.id, user), version, prints, noted))
    nothing = [one for one in standing if not one.fingerprints]
    there = _there(rules, [one for one in standing if one.noted and one.fingerprints])
    looked = _look(rules, [one for one in standing if not one.noted and one.fingerprints])
    return {one.key: one.version for one in (*nothing, *there, *looked)}


def _there(rules: Policy, noted: Sequence[Standing]) -> list[Standing]:
    found: list[bool] = []
    for start in range(0, len(noted), CHUNK):
        chunk = noted[start : start + CHUNK]
        found += stack.L2.stand([_names(rules, one.scope, one.fingerprints) for one in chunk])
    return [one for one, there in zip(noted, found, strict=True) if there]


def _look(rules: Policy, standing: Sequence[Standing]) -> list[Standing]:
    found = lives(rules, [(one.scope, one.version, one.fingerprints) for one in standing])
    least = [min(each) for each in found]
    good = [(one, life) for one, life in zip(standing, least, strict=True) if lasts(life)]
    note(rules, {one.scope: (one.version, one.fingerprints, life) for one, life in good})
    return [one for one, _ in good]


def _names(rules: Policy, scope: Scope, fingerprints: Sequence[str]) -> list[str]:
    tag = keys.tag(scope.pin, rules.generation)
    return [keys.of_result(tag, each) for each in fingerprints]


def _answers(version: int, asked: bytes) -> str:
    """32 hex characters that stand for the answers to these questions at this version."""
    return hashlib.blake2b(b"%d" % version, key=asked, digest_size=16).hexdigest()


def _asked(rules: Policy, fingerprints: Sequence[str]) -> bytes:
    """16 bytes that stand for some questions, and for how their answers are ranked."""
    said = f"{rules.generation} {' '.join(rules.served)} {' '.join(fingerprints)}"
    return hashlib.blake2b(said.encode(), digest_size=16).digest()
