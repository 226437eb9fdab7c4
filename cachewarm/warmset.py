"""The questions kept warm for a user. Where memsvc ranks: those the user asks, and the topics'. Where each would have
to be searched at Mem0: the few that the user comes back to, as such a search saves one later at most (see 0020). With
local search that is so of a user of whose memories L3 holds only some, and of a question that only Mem0 evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from cachewarm import learned, topics
from memory import rank
from memory.models import Snapshot
from memory.tenancy.projects import Policy, policy
from memory.text import nfc
from memory.types import Query, Scope

AGAIN = 1.5
"""Uses by today's worth above which a question is one that the user comes back to: computed at two versions lately."""


class Rule(NamedTuple):
    """What is kept: so many of a user's own questions, each worth more than so many uses, and everybody's."""

    most: int
    worth: float
    common: Sequence[Query]


def rule(rules: Policy, scope: Scope) -> Rule:
    """The policy's, for users of whom L3 holds everything; the questions for everybody about whomever the scope
    names."""
    if rules.local_search == "on":
        return Rule(settings.WARM_SET_QUERIES, 0, general(scope))
    return searched()


def searched() -> Rule:
    """What is kept where each question must be searched at Mem0."""
    return Rule(min(settings.WARM_SET_QUERIES, settings.WARM_UPSTREAM_BUDGET), AGAIN, ())


def of(scope: Scope) -> list[Query]:
    """The user's own first: where one must be searched upstream, what nobody asked is left out first. The topics' are
    as the native API builds them; each question once."""
    rules = policy(scope.project)
    kept = searched() if _cut(rules, [scope]) else rule(rules, scope)
    return _joined(_own([scope], kept).get(scope, []), kept.common)


def of_each(project: int, scopes: Sequence[Scope]) -> dict[Scope, Sequence[Query]]:
    """`of` for many users of a project. The topics' questions are the same objects for everybody: they name no user."""
    rules = policy(project)
    cut = _cut(rules, scopes)
    found: dict[Scope, Sequence[Query]] = {}
    for kept, mine in ((rule(rules, Scope(project)), [one for one in scopes if one not in cut]), (searched(), cut)):
        own = _own(mine, kept) if mine else {}
        found |= {scope: _joined(own[scope], kept.common) if scope in own else kept.common for scope in mine}
    return found


def again(scope: Scope, queries: Sequence[Query]) -> list[Query]:
    """Of a user's questions those that may be searched at Mem0."""
    worth = learned.of_each([scope], settings.WARM_SET_QUERIES, AGAIN).get(scope, [])
    kept = {query.fingerprint for query in worth}
    return [query for query in queries if query.fingerprint in kept]


def general(scope: Scope) -> list[Query]:
    """The topics' questions, about whomever the scope names."""
    asked = [Query(scope, nfc(question).strip()) for question in topics.questions(topics.of(scope.project))]
    return _joined([], asked)


def _cut(rules: Policy, scopes: Sequence[Scope]) -> Sequence[Scope]:
    """Those of whose memories L3 holds only some, where that makes a difference."""
    if rules.local_search != "on":
        return ()
    cut = Snapshot.objects.filter(project_id=rules.id, user_id__in=[one.user_id for one in scopes], complete=False)
    users = set(cut.values_list("user_id", flat=True))
    return [scope for scope in scopes if scope.user_id in users]


def _own(scopes: Sequence[Scope], kept: Rule) -> dict[Scope, list[Query]]:
    """Users' own questions under a rule: those that L3 cannot evaluate only where they may be searched."""
    found = learned.of_each(scopes, kept.most, kept.worth)
    if kept.worth:
        return found
    for scope, queries in found.items():
        if strange := {query for query in queries if not rank.understands(query.conditions())}:
            strange -= {*again(scope, queries)}
            found[scope] = [query for query in queries if query not in strange]
    return found


def _joined(own: Sequence[Query], common: Sequence[Query]) -> list[Query]:
    return list({query.fingerprint: query for query in (*own, *common)}.values())
