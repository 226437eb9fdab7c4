"""Memories that the assistant was given come back in its messages; extracted again, they would breed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memory.models import SnapshotMemory
from memory.text import normalised
from memory.types import Scope

_PART = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
_BULLET = re.compile(r"^[\s\-*•\d.)]+")
MOST_MEMORIES = 1000


def without_given(messages: Sequence[dict[str, str]], scope: Scope) -> list[dict[str, str]]:
    """The messages without those sentences of the assistant, system or tools that say a memory of the user word for
    word; what the user said is left alone, and so is what L3 does not know."""
    known = _known(scope) if any(message["role"] != "user" for message in messages) else frozenset()
    if not known:
        return list(messages)
    kept = []
    for message in messages:
        if message["role"] == "user":
            kept.append(message)
            continue
        content = message["content"]
        parts = [part for part in _PART.split(content) if part.strip()]
        left = [part for part in parts if normalised(_BULLET.sub("", part)) not in known]
        if len(left) < len(parts):
            content = "\n".join(left)
        if content.strip():
            kept.append({**message, "content": content})
    return kept


def _known(scope: Scope) -> frozenset[str]:
    rows = SnapshotMemory.objects.filter(snapshot__project_id=scope.project, snapshot__user_id=scope.user_id)
    return frozenset(normalised(text) for text in rows.values_list("text", flat=True)[:MOST_MEMORIES])
