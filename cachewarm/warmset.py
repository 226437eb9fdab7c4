"""The questions kept warm for a user: those the user really asks, and the topics'."""

from __future__ import annotations

from collections.abc import Sequence

from cachewarm import learned, topics
from memory.text import nfc
from memory.types import Query, Scope


def of(scope: Scope) -> list[Query]:
    """The user's own first: where each must be searched upstream, what nobody asked is left out first. The topics' are
    as the native API builds them; each question once."""
    return _joined(learned.of_each([scope]).get(scope, []), general(scope))


def of_each(project: int, scopes: Sequence[Scope]) -> dict[Scope, Sequence[Query]]:
    """`of` for many users of a project. The topics' questions are the same objects for everybody: they name no user."""
    own, common = learned.of_each(scopes), general(Scope(project))
    return {scope: _joined(own[scope], common) if scope in own else common for scope in scopes}


def general(scope: Scope) -> list[Query]:
    """The topics' questions, about whomever the scope names."""
    asked = [Query(scope, nfc(question).strip()) for question in topics.questions(topics.of(scope.project))]
    return _joined([], asked)


def _joined(own: Sequence[Query], common: Sequence[Query]) -> list[Query]:
    return list({query.fingerprint: query for query in (*own, *common)}.values())
