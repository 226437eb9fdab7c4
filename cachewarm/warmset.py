"""The questions kept warm for a user. Where memsvc ranks: those the user asks, and the topics'. Where each would have
to be searched at Mem0: the few that the user comes back to, as such a search saves one later at most (see 0020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from cachewarm import learned, topics
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
    """The policy's; the questions for everybody about whomever the scope names."""
    if rules.local_search == "on":
        return Rule(settings.WARM_SET_QUERIES, 0, general(scope))
    return Rule(min(settings.WARM_SET_QUERIES, settings.WARM_UPSTREAM_BUDGET), AGAIN, ())


def of(scope: Scope) -> list[Query]:
    """The user's own first: where one must be searched upstream, what nobody asked is left out first. The topics' are
    as the native API builds them; each question once."""
    kept = rule(policy(scope.project), scope)
    return _joined(learned.of_each([scope], kept.most, kept.worth).get(scope, []), kept.common)


def of_each(project: int, scopes: Sequence[Scope]) -> dict[Scope, Sequence[Query]]:
    """`of` for many users of a project. The topics' questions are the same objects for everybody: they name no user."""
    kept = rule(policy(project), Scope(project))
    own = learned.of_each(scopes, kept.most, kept.worth)
    return {scope: _joined(own[scope], kept.common) if scope in own else kept.common for scope in scopes}


def general(scope: Scope) -> list[Query]:
    """The topics' questions, about whomever the scope names."""
    asked = [Query(scope, nfc(question).strip()) for question in topics.questions(topics.of(scope.project))]
    return _joined([], asked)


def _joined(own: Sequence[Query], common: Sequence[Query]) -> list[Query]:
    return list({query.fingerprint: query for query in (*own, *common)}.values())
