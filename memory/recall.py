"""The native search: what Mem0 holds, and what it does not hold yet (DESIGN 8, PROTOCOL C1).

With nothing nearer than Mem0 the answer is the entry's stored bytes, untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings

from memory import clock, merge, nearness, rank, read
from memory.clock import Deadline
from memory.merge import Near, Weights
from memory.pending import Item
from memory.rank import Rows
from memory.read import STRICT, Wish
from memory.tenancy.projects import Policy
from memory.types import Answer, Memory, Query

UNKNOWN_SCORE = 0.5
"""Of a pending fact that shares no word with the question, where no vector can tell how near it is."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """A search's answer, and the JSON array of what to show of it."""

    answer: Answer
    results: bytes


def search(query: Query, policy: Policy, deadline: Deadline, wish: Wish = STRICT, *, explain: bool = False) -> Recalled:
    """The best of what Mem0 has and of what is on its way to it; errors as `read.search`."""
    answer = read.search(query, policy, deadline, wish)
    items = answer.pending.of(query.scope) if answer.pending else ()
    if not items:
        return Recalled(answer, answer.entry.results)
    results = orjson.loads(answer.entry.results)
    near = merge.needed(on_their_way(query, items), results, answer.entry.stored_by())
    return Recalled(answer, _merged(query, results, near, explain=explain) if near else answer.entry.results)


def on_their_way(query: Query, items: Sequence[Item]) -> list[Near]:
    """The pending items that the question may be about, scored. Filters that only Mem0 can evaluate leave all out."""
    conditions = query.conditions()
    if not rank.understands(conditions):
        return []
    today = clock.wall().date().isoformat()
    about = [
        item
        for item in items
        if (query.show_expired or item.expiration_date is None or item.expiration_date >= today)
        and rank.matches(conditions, Memory("", item.text, metadata=item.metadata))
    ]
    if not about:
        return []
    scored, by_vectors = nearness.scores(query.text, Rows([item.text for item in about]), query.scope.project)
    if not by_vectors:
        scored = [UNKNOWN_SCORE + (1 - UNKNOWN_SCORE) * score for score in scored]
    elif query.threshold is not None:
        kept = [(item, score) for item, score in zip(about, scored, strict=True) if score >= query.threshold]
        about, scored = [item for item, _ in kept], [score for _, score in kept]
    return [
        Near(_shown(item), score, (item.job or None) if item.kind == "extract" else None, fleeting=True)
        for item, score in zip(about, scored, strict=True)
    ]


def _merged(query: Query, results: Sequence[Any], near: Sequence[Near], *, explain: bool) -> bytes:
    weights = Weights(settings.MERGE_BOTH_PERCENT / 100, settings.MERGE_STM_PERCENT / 100)
    return orjson.dumps(merge.together(results, near, query.top_k, weights, explain=explain))


def _shown(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "memory": item.text,
        "score": None,
        "source": "stm",
        "pending": True,
        "job_id": item.job or None,
        "failed": item.failed,
        "metadata": item.metadata,
        "user_id": item.user_id,
        "agent_id": item.agent_id,
        "run_id": item.run_id,
        "created_at": item.accepted_at,
        "updated_at": None,
        "expiration_date": item.expiration_date,
    }
