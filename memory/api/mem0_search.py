"""A search in Mem0's words: what both of its surfaces ask of memsvc, and how they show what was found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from django.http import HttpResponse
from rest_framework.request import Request

from memory import logs, read, recall
from memory.api.answers import cache_status
from memory.api.encoding import OPTIONS
from memory.api.mem0_forms import READ_SECONDS, Mem0Door, asked, body, scope_of
from memory.clock import Deadline
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU
from memory.read import STRICT
from memory.tenancy.keys import Caller
from memory.tenancy.projects import Policy
from memory.types import Answer, Query

SHOWN_BYTES = 4 << 20


class Wanted(NamedTuple):
    """A search as its body says it: a query for each alternative of its filters. `fields` are those to show, all if
    there are none."""

    queries: tuple[Query, ...]
    top_k: int
    fields: tuple[str, ...] = ()

    @property
    def user_id(self) -> str | None:
        """Whom it is about, where it is about one."""
        return self.queries[0].scope.user_id if len(self.queries) == 1 else None


_shown: ByteLRU[tuple[type, int, tuple[str, ...], bytes], bytes] = ByteLRU(SHOWN_BYTES)
"""Stored results in a surface's words."""


class Searching(Mem0Door):
    """The best memories for a query."""

    scope = "read"

    @staticmethod
    @abstractmethod
    def wanted(sent: dict[str, Any], caller: Caller) -> Wanted:
        """What a body asks, if the caller may. BadRequest, ValidationError, KeyBound."""

    @staticmethod
    @abstractmethod
    def row(found: Mapping[str, Any]) -> dict[str, Any]:
        """A result in the surface's words."""

    @staticmethod
    def meta(answered: Sequence[Answer]) -> dict[str, Any]:
        """What the surface says beside the results."""
        return {}

    def post(self, request: Request) -> HttpResponse:
        """Search."""
        wanted = self.wanted(body(request), self.caller)
        deadline = Deadline.after(READ_SECONDS)
        answered = [read.search(query, self.policy, deadline) for query in wanted.queries]
        content, headers = self.told(answered, wanted)
        return HttpResponse(content, headers=headers)

    @classmethod
    def at_hand(cls, wanted: Wanted, policy: Policy, began: float) -> tuple[bytes, dict[str, str]] | None:
        """The answer and its headers where it is stored and current; None otherwise, and then nothing is counted."""
        if len(wanted.queries) != 1:
            return None
        found = recall.at_hand(wanted.queries[0], policy, STRICT)
        return cls.told([found.answer], wanted) if found else None

    @classmethod
    def told(cls, answered: Sequence[Answer], wanted: Wanted) -> tuple[bytes, dict[str, str]]:
        """The best over all alternatives, best first, as an answer and its headers."""
        headers = {"Content-Type": "application/json"}
        if answered:
            logs.note(layer=answered[0].layer, version=str(answered[0].version), reason=answered[0].reason)
        if len(answered) == 1:
            headers["Cache-Status"] = cache_status(answered[0])
        meta = orjson.dumps(cls.meta(answered), option=OPTIONS).removeprefix(b"{")
        return b'{"results":%b%b%b' % (cls._results(answered, wanted), b"," if meta != b"}" else b"", meta), headers

    @classmethod
    def _results(cls, answered: Sequence[Answer], wanted: Wanted) -> bytes:
        if len(answered) != 1:
            return cls._rendered(answered, wanted)
        stored = answered[0].entry.results
        key = (cls, wanted.top_k, wanted.fields, stored)
        shown = _shown.get(key)
        if shown is None:
            shown = cls._rendered(answered, wanted)
            _shown.put(key, shown, len(stored) + len(shown) + OVERHEAD_BYTES)
        return shown

    @classmethod
    def _rendered(cls, answered: Sequence[Answer], wanted: Wanted) -> bytes:
        rows = {row["id"]: row for answer in answered for row in orjson.loads(answer.entry.results)}
        best = list(rows.values())
        if len(answered) > 1:
            best.sort(key=lambda row: row["score"] or 0.0, reverse=True)
        kept = {"id", *wanted.fields}
        told = [
            {name: value for name, value in cls.row(one).items() if not wanted.fields or name in kept}
            for one in best[: wanted.top_k]
        ]
        return orjson.dumps(told, option=OPTIONS)


def queries(sent: Mapping[str, Any], checked: Mapping[str, Any], top_k: int, caller: Caller) -> tuple[Query, ...]:
    """The queries of a body whose fields were checked. BadRequest, KeyBound."""
    text, threshold, expired = checked["query"], checked.get("threshold"), checked.get("show_expired", False)
    return tuple(
        Query(scope_of(branch.ids, caller), text, top_k, threshold, branch.filters(), expired) for branch in asked(sent)
    )
