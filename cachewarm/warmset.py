"""The questions kept warm for a user: those the user really asks, and the topics'."""

from __future__ import annotations

from cachewarm import learned, topics
from memory.text import nfc
from memory.types import Query, Scope


def of(scope: Scope) -> list[Query]:
    """The user's own first: where each must be searched upstream, what nobody asked is left out first. The topics' are
    as the native API builds them; each question once."""
    general = [Query(scope, nfc(question).strip()) for question in topics.questions(topics.of(scope.project))]
    return list(dict.fromkeys([*learned.of(scope), *general]))
