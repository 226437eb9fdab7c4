"""Memories that the assistant was given come back in its messages; extracted again, they would breed."""

from __future__ import annotations

import re

from memory.models import SnapshotMemory
from memory.text import content_words
from memory.types import Scope

_PART = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
_QUESTION = ("?", "？")
MOST_MEMORIES = 1000
SAID_BEFORE = 0.8
"""Share of a sentence's content words that one memory holds, if the sentence only repeats it."""


class Given:
    """What a user's assistant may have been given: the memories that L3 knows."""

    def __init__(self, scope: Scope) -> None:
        rows = SnapshotMemory.objects.filter(snapshot__project_id=scope.project, snapshot__user_id=scope.user_id)
        self._known = [content_words(text) for text in rows.values_list("text", flat=True)[:MOST_MEMORIES]]

    def left_of(self, content: str) -> str:
        """A message of the assistant, the system or a tool without the sentences that only repeat a memory. Questions
        stay: the user's answer is nothing without them."""
        parts = [part for part in _PART.split(content) if part.strip()]
        left = [part for part in parts if not self._repeats(part)]
        return content if len(left) == len(parts) else "\n".join(left)

    def _repeats(self, sentence: str) -> bool:
        words = content_words(sentence)
        if not words or sentence.rstrip().endswith(_QUESTION):
            return False
        return any(len(words & known) >= SAID_BEFORE * len(words) for known in self._known)
