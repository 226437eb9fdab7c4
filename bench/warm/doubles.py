"""A Mem0 and an embedder that cost next to nothing, so that what is measured is the warming itself.

Both stand in for what is measured elsewhere (`make bench-rebuild` has the real ones), and note how long they took.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from memory.backends.base import LIST_LIMIT
from memory.clock import Deadline
from memory.embedders.base import Action, Vectors
from memory.types import Listing, Memory, Query, Scope

SCAN_LIMIT = 10_000
"""Rows of the whole collection beyond which Mem0's own totals are cut."""
COMMON = 1.6
"""Length of what all texts share, beside 1 of their own: cosines lie about 0.7, as a sentence embedder's do."""
WRITTEN = "2026-11-22T10:00:00+00:00"


class Personas:
    """A Backend of `users` people, each with the sentences of one MSC persona; only what a warm asks is there."""

    name = "personas"
    in_process = False
    extracts = False

    def __init__(self, personas: Sequence[Sequence[str]], users: int) -> None:
        self.calls = 0
        self.seconds = 0.0
        self._personas, self._users = personas, users
        self._rows = sum(len(self._of(number)) for number in range(users))

    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend."""
        began = time.thread_time()
        self.calls += 1
        number = int((scope.user_id or "").rpartition("-")[2])
        memories = [
            Memory(f"{number:08x}-0000-4000-8000-{place:012x}", text, scope.user_id, None, None, {}, WRITTEN, WRITTEN)
            for place, text in enumerate(self._of(number))
        ]
        self.seconds += time.thread_time() - began
        return Listing(memories, len(memories) < LIST_LIMIT)

    def search(self, query: Query, deadline: Deadline) -> Sequence[Memory]:
        """See Backend: all there is, in no order. With local search on only users who are not warm are asked about."""
        return [replace(memory, score=0.5) for memory in self.list(query.scope, deadline).memories[: query.top_k]]

    def entities(self, deadline: Deadline) -> tuple[Sequence[dict[str, Any]], bool]:
        """See Backend: cut, as Mem0's own scan is, where it has more rows than that."""
        if self._rows >= SCAN_LIMIT:
            return [], False
        return [
            {"type": "user", "id": f"user-{number}", "total_memories": len(self._of(number))}
            for number in range(self._users)
        ], True

    def _of(self, number: int) -> Sequence[str]:
        return self._personas[number % len(self._personas)]


class Words:
    """An Embedder: the sum of a random vector for each word, and of one that all texts share."""

    name = "words"
    dimensions = 384
    symmetric = False
    remote = False

    def __init__(self) -> None:
        self.texts = 0
        self.seconds = 0.0
        self._common = COMMON * _direction("")

    def read(self, texts: Iterable[str]) -> None:
        """Know the words of texts, so that making vectors costs the same for the first and the last."""
        for word in {word for text in texts for word in text.lower().split()}:
            _direction(word)

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """See Embedder."""
        began = time.thread_time()
        made = np.stack([self._vector(text) for text in texts])
        self.texts += len(texts)
        self.seconds += time.thread_time() - began
        return made

    def _vector(self, text: str) -> Vectors:
        words = text.lower().split() or [""]
        vector = self._common + sum(map(_direction, words)) / len(words) ** 0.5
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


@cache
def _direction(word: str) -> Any:
    vector = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(Words.dimensions)
    return vector / np.linalg.norm(vector)
