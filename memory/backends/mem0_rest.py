"""Mem0 behind its open-source server's REST API, 2.0.10 and later.

`docs/compatibility.md` tells what it answers to what. Some bad input makes it say 502, as an outage would: whatever is
known to be wrong is refused here, without a call, so that it is never tried again and never counted against Mem0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from django.conf import settings

from memory import clock
from memory.backends import answers, filters, forms
from memory.backends.base import LIST_LIMIT, Backend
from memory.backends.breaker import Guarded
from memory.backends.calls import Caller, changes, conversation, facts, wanted_of
from memory.clock import Deadline
from memory.errors import (
    OriginError,
    OriginNotFound,
    OriginUnavailable,
)
from memory.types import MARK_JOB, Listing, Memory, Query, Scope, Stored

ENTITY_SCAN_ROWS = 10_000
"""Rows of the whole collection that the server reads to list its entities."""
SCHEMA_SECONDS = 600.0
"""How long a server is taken to be of the version last seen."""


class Mem0REST(Caller):
    """Mem0 over REST: pooled connections, one deadline a call, retries only where they are safe."""

    name = "mem0-rest"
    in_process = False
    extracts = True

    _known: tuple[float, str | None] | None = None

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"X-API-Key": key}

    # -- reads ---------------------------------------------------------------------------------------------------------

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        """See Backend."""
        wanted = wanted_of(query)
        if wanted is None:
            return []
        body = {"query": query.text, "filters": wanted, "top_k": query.top_k, "show_expired": query.show_expired}
        if query.threshold is not None:
            body["threshold"] = query.threshold
        numbers = filters.compares_numbers(wanted)
        return answers.memories(self._read("POST", "/search", deadline, body=body, compares_numbers=numbers))

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """See Backend."""
        if not forms.is_id(memory_id):
            return None
        row = self._read("GET", _path(memory_id), deadline)
        with answers.expected():
            return None if row is None else forms.memory(row)

    def history(self, memory_id: str, deadline: Deadline) -> list[dict[str, Any]]:
        """See Backend."""
        if not forms.is_id(memory_id):
            return []
        rows: list[dict[str, Any]] = self._read("GET", f"{_path(memory_id)}/history", deadline)
        return rows

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """See Backend. A cut listing is made good by a search for each text among the marked (PROTOCOL A6); where there
        are none, after an extraction, it is not conclusive."""
        listing = self.list(scope, deadline)
        found = {memory.id: memory for memory in listing.memories if memory.job == job}
        if listing.complete:
            return Listing(list(found.values()), complete=True)
        mark = orjson.dumps({MARK_JOB: job}).decode()
        for text in dict.fromkeys(texts):
            marked = Query(scope, text, top_k=LIST_LIMIT, threshold=0.0, filters=mark, show_expired=True)
            found |= {memory.id: memory for memory in self.search(marked, deadline)}
        return Listing(list(found.values()), complete=bool(texts))

    def entities(self, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
        """See Backend. A row read counts once for each of its ids: fewer counts than the limit mean fewer rows."""
        rows = self._read("GET", "/entities", deadline)
        with answers.expected():
            entities = [{name: row[name] for name in ("type", "id", "total_memories")} for row in rows]
            return entities, sum(row["total_memories"] for row in entities) < ENTITY_SCAN_ROWS

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """See Backend. Asks for the server's version anew, and whether it takes our key."""
        self._known = None
        self._require_known(deadline)
        self._read("GET", "/configure/providers", deadline)
        return {"name": self.name, "version": f"{answers.NEEDED} or later", "host": self._host}

    def refusal(self, deadline: Deadline | None = None) -> str | None:
        """Why memsvc cannot work with this server, or None. A server that does not answer is no refusal."""
        try:
            return self._schema_says(deadline or Deadline.after(self._timeout))
        except OriginError:
            return None

    # -- writes --------------------------------------------------------------------------------------------------------

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend."""
        body = facts(scope, texts, metadata, expiration_date)
        deadline = deadline.at_most(self._timeout)
        return answers.stored(self._write("POST", "/memories", deadline, body=body, embeds_first=len(texts) == 1))

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend."""
        body = conversation(scope, messages, metadata)
        deadline = deadline.at_most(self._extract_timeout)
        return answers.stored(self._write("POST", "/memories", deadline, body=body))

    def update(
        self,
        memory_id: str,
        deadline: Deadline,
        *,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: str | None = None,
        clear_expiration: bool = False,
    ) -> None:
        """See Backend."""
        body = changes(text, metadata, expiration_date, clear=clear_expiration)
        self._write("PUT", _path(memory_id), deadline.at_most(self._timeout), body=body, embeds_first=True)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """See Backend."""
        self._write("DELETE", _path(memory_id), deadline.at_most(self._timeout))

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """See Backend."""
        self._write("DELETE", "/memories", deadline.at_most(self._timeout), params=forms.ids(scope))

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """See Backend. Mem0's API has nothing for it."""
        return False

    # -- which server it is --------------------------------------------------------------------------------------------

    def _require_known(self, deadline: Deadline) -> None:
        """OriginUnavailable, with nothing sent, for a server that memsvc cannot work with."""
        if refusal := self._schema_says(deadline):
            raise OriginUnavailable(refusal)

    def _schema_says(self, deadline: Deadline) -> str | None:
        """What is wrong with the server's version, from its own description; looked up at most every SCHEMA_SECONDS."""
        known = self._known
        if known and clock.now() < known[0]:
            return known[1]
        with answers.without_effect():
            reply = self._transport.call("GET", "/openapi.json", deadline)
            if reply.status >= 500 or reply.status == 429:
                raise answers.failure(reply)
        refusal = answers.refusal(reply, self._host)
        self._known = (clock.now() + SCHEMA_SECONDS, refusal)
        return refusal

    # Last, as below it in this class `list` is this method.
    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend. Complete only below 1000 rows: the server has no second page."""
        params = {**forms.ids(scope), "top_k": str(LIST_LIMIT), "show_expired": "true"}
        memories = answers.memories(self._read("GET", "/memories", deadline, params=params))
        return Listing(memories, complete=len(memories) < LIST_LIMIT)


def connect() -> Backend:
    """The server that MEM0_REST_API_URL and its companions describe, behind the breaker."""
    return Guarded(server())


def of_project(url: str, key: str) -> Backend:
    """A project's own server, behind a breaker and a gate of its own, at an address that a project may have."""
    name = f"{Mem0REST.name}:{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    own = server(url, key, name=name, guarded=True)
    own.name = name
    return Guarded(own)


def server(
    url: str | None = None, key: str | None = None, *, name: str = Mem0REST.name, guarded: bool = False
) -> Mem0REST:
    """The server itself; without an address that of the settings."""
    return Mem0REST.configured(
        settings.MEM0_REST_API_URL if url is None else url,
        settings.MEM0_REST_API_KEY if key is None else key,
        name=name,
        guarded=guarded,
    )


def _path(memory_id: str) -> str:
    if not forms.is_id(memory_id):
        raise OriginNotFound("Mem0 knows no such memory")
    return f"/memories/{memory_id}"
