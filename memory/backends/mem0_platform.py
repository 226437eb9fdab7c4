"""Mem0's hosted Platform (its v3 API) as the origin. Tested against a stand-in of its contract, not the service itself.

An add is only queued there: it counts as made once its event has succeeded (PROTOCOL B3). What has no answer by the
deadline is of unknown outcome, and delivery looks for its mark (A5). `docs/compatibility.md` says what is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
from django.conf import settings

from memory import retry
from memory.backends import answers, filters, forms
from memory.backends.base import Backend
from memory.backends.breaker import Guarded
from memory.backends.calls import Caller, changes, conversation, facts, wanted_of
from memory.backends.transport import Reply
from memory.clock import Deadline
from memory.errors import OriginError, OriginNotFound, OriginRejected, OriginTimeout, OriginUnavailable
from memory.types import Listing, Memory, Query, Scope, Stored

PAGE_ROWS = 100
PAGES_MOST = 100
"""Pages read of one listing; a longer one is cut there and says so."""
POLL_SECONDS, POLL_MAX_SECONDS = 0.2, 2.0
KINDS = ("user", "agent", "run")


class Mem0Platform(Caller):
    """The Platform over its API, sharing connections, deadlines and retries with Mem0's server over REST."""

    name = "mem0-platform"
    in_process = False
    extracts = True

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"Authorization": f"Token {key}"}

    # -- reads ---------------------------------------------------------------------------------------------------------

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        """See Backend."""
        wanted = wanted_of(query)
        if wanted is None:
            return []
        body = {
            "query": query.text,
            "filters": {"AND": list(_parts(wanted))},
            "top_k": query.top_k,
            "show_expired": query.show_expired,
        }
        if query.threshold is not None:
            body["threshold"] = query.threshold
        return answers.memories(self._read("POST", "/v3/memories/search/", deadline, body=body))

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """See Backend."""
        try:
            row = self._read("GET", _path(memory_id), deadline)
        except OriginNotFound:
            return None
        with answers.expected():
            return forms.memory(row)

    def history(self, memory_id: str, deadline: Deadline) -> list[dict[str, Any]]:
        """See Backend."""
        try:
            rows: list[dict[str, Any]] = self._read("GET", f"{_path(memory_id)}history/", deadline)
        except OriginNotFound:
            return []
        return rows

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """See Backend. Compared here, and not by a filter on metadata: one that the Platform read otherwise than meant
        would find nothing, and the add would be made twice."""
        listing = self.list(scope, deadline)
        return Listing([memory for memory in listing.memories if memory.job == job], listing.complete)

    def entities(self, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
        """See Backend."""
        rows, complete = self._pages("GET", "/v1/entities/", deadline)
        with answers.expected():
            return [
                {"type": row["type"], "id": row.get("name") or row["id"], "total_memories": row["total_memories"]}
                for row in rows
                if row["type"] in KINDS
            ], complete

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """See Backend. The ping takes a key."""
        answer = self._read("GET", "/v1/ping/", deadline)
        if not isinstance(answer, dict) or answer.get("status") != "ok":
            raise OriginUnavailable(f"what answers at {self._host} is not Mem0's Platform: see MEM0_REST_API_URL")
        return {"name": self.name, "version": "v3", "host": self._host}

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
        return _in_order(texts, self._added(body, deadline.at_most(self._timeout)))

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend."""
        body = conversation(scope, messages, metadata)
        return self._added(body, deadline.at_most(self._extract_timeout))

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
        self._write("PUT", _path(memory_id), deadline.at_most(self._timeout), body=body)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """See Backend."""
        self._write("DELETE", _path(memory_id), deadline.at_most(self._timeout))

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """See Backend."""
        with suppress(OriginNotFound):
            self._write("DELETE", "/v1/memories/", deadline.at_most(self._timeout), params=forms.ids(scope))

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """See Backend. The Platform's API has nothing for it."""
        return False

    # -- events --------------------------------------------------------------------------------------------------------

    def _added(self, body: Mapping[str, Any], deadline: Deadline) -> list[Stored]:
        answer = self._write("POST", "/v3/memories/add/", deadline, body=body)
        with answers.expected(sent=True):
            if not answer.get("event_id"):
                return answers.stored(answer)
            event = self._ended(str(answer["event_id"]), deadline)
            return [_stored(row) for row in event["results"]]

    def _ended(self, event_id: str, deadline: Deadline) -> Mapping[str, Any]:
        """The event of an add once it has succeeded. OriginRejected when it failed; OriginTimeout, sent, when neither
        is known by the deadline. Errors on the way say nothing about the add: the event is asked for again."""
        number = 0
        while True:
            wait = retry.backoff(number, base=POLL_SECONDS, most=POLL_MAX_SECONDS)
            try:
                event: Mapping[str, Any] = self._read("GET", f"/v1/event/{quote(event_id, safe='')}/", deadline)
            except OriginRejected as error:
                raise OriginUnavailable(f"the add's event cannot be read: {error}", sent=True) from error
            except OriginError as error:
                event, wait = {}, max(wait, error.retry_after or 0.0)
            with answers.expected(sent=True):
                status = event.get("status")
            if status == "SUCCEEDED":
                return event
            if status == "FAILED":
                raise OriginRejected("Mem0 accepted the add, and its event failed")
            if wait >= deadline.remaining():
                raise OriginTimeout("the add's event had not ended by the deadline", sent=True)
            self._pause(wait)
            number += 1

    # -- one call ------------------------------------------------------------------------------------------------------

    def _reply(
        self, method: str, path: str, deadline: Deadline, params: Mapping[str, str] | None, body: bytes | None
    ) -> Reply:
        reply = super()._reply(method, path, deadline, params, body)
        if reply.status == 404 and path.startswith("/v1/memories/") and _names_a_memory(reply.body):
            raise OriginNotFound("Mem0 knows no such memory", status=404)
        return reply

    def _pages(
        self, method: str, path: str, deadline: Deadline, body: Any = None
    ) -> tuple[list[Mapping[str, Any]], bool]:
        """The rows of all pages by their ids, and whether they are all: fewer or more than counted means that it
        changed meanwhile. One deadline for all pages."""
        deadline = deadline.at_most(self._timeout)
        rows: dict[Any, Mapping[str, Any]] = {}
        for page in range(1, PAGES_MOST + 1):
            params = {"page": str(page), "page_size": str(PAGE_ROWS)}
            answer = self._read(method, path, deadline, params=params, body=body)
            with answers.expected():
                rows |= {(row["id"], row.get("type")): row for row in answer["results"]}
                if not answer["next"]:
                    return list(rows.values()), len(rows) == answer["count"]
        return list(rows.values()), False

    # Last, as below it in this class `list` is this method.
    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend. Page by page."""
        body = {"filters": {"AND": [{name: value} for name, value in forms.ids(scope).items()]}, "show_expired": True}
        rows, complete = self._pages("POST", "/v3/memories/", deadline, body)
        with answers.expected():
            return Listing([forms.memory(row) for row in rows], complete)


def connect() -> Backend:
    """The Platform that MEM0_REST_API_URL and its companions name, behind the breaker."""
    url, key = settings.MEM0_REST_API_URL, settings.MEM0_REST_API_KEY
    return Guarded(Mem0Platform.configured(url, key, name=Mem0Platform.name))


def _path(memory_id: str) -> str:
    if not forms.is_id(memory_id):
        raise OriginNotFound("Mem0 knows no such memory")
    return f"/v1/memories/{memory_id}/"


def _names_a_memory(body: bytes) -> bool:
    """Whether a 404 is about a memory. One about the path, as from another kind of server, is our configuration."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    words = [told.get(name) for name in ("detail", "error", "message")] if isinstance(told, dict) else []
    return any(isinstance(word, str) and "memor" in word.lower() for word in words)


def _parts(wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Filters in the server's form as the Platform's: each condition by itself, those on metadata under its name."""
    for key, condition in wanted.items():
        if key in filters.IDS:
            yield {key: condition}
        elif key in ("OR", "NOT"):
            yield {key: [{"AND": list(_parts(group))} for group in condition]}
        elif not isinstance(condition, Mapping):
            yield {"metadata": {key: condition}}
        else:
            if "nin" in condition:
                raise OriginRejected("Mem0's Platform knows no nin")
            for operator, value in condition.items():
                yield {"metadata": {key: value if operator == "eq" else {operator: value}}}


def _stored(row: Mapping[str, Any]) -> Stored:
    text = row["memory"] if "memory" in row else row["data"]["memory"]
    return Stored(row["id"], text, row.get("event", "ADD"))


def _in_order(texts: Sequence[str], stored: Sequence[Stored]) -> list[Stored]:
    """Results in the order of the texts, which an event does not promise; as they come where the texts were changed.
    With too few of them it is unknown which are missing."""
    if len(stored) < len(texts):
        raise OriginUnavailable("the add's event tells of fewer memories than were sent", sent=True)
    left = list(stored)
    if sorted(texts) != sorted(one.memory for one in left):
        return left
    return [left.pop([one.memory for one in left].index(text)) for text in texts]
