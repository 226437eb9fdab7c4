"""The questions kept warm for a user: the topics', and those the user really asks."""

from __future__ import annotations

from cachewarm import learned, topics
from memory.text import nfc
from memory.types import Query, Scope


def of(scope: Scope) -> list[Query]:
    """Topics first: they are what is asked of everybody. Each as the native API builds it, each once."""
    asked = [Query(scope, nfc(question).strip()) for question in topics.questions(topics.of(scope.project))]
    return list(dict.fromkeys([*asked, *learned.of(scope)]))
