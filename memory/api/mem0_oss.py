"""Mem0's open-source server, so that who calls it today changes one URL. Synchronous as it is there, with the oddities
that callers rely on: 200 `null` for an unknown memory, 20 results unless told so, 422 for bad fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpResponse
from django.urls import URLPattern, re_path
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from memory import read
from memory.api.fields import Day, Flag, Metadata, Number, Record, Text, Whole, from_query
from memory.api.mem0_forms import (
    IDS,
    READ_SECONDS,
    BadRequest,
    Conversation,
    Mem0Door,
    NotOffered,
    asked,
    body,
    checked,
    exception_handler,
    facts,
    refused,
    results,
    shown,
)
from memory.api.mem0_search import Searching, Wanted, queries
from memory.clock import Deadline
from memory.models import Job
from memory.tenancy.keys import Caller

ADD = Record(
    {
        **IDS,
        "messages": Conversation(),
        "metadata": Metadata(),
        "infer": Flag(),
        "expiration_date": Day(),
    },
    required=("messages",),
    defaults={"infer": True},
)
SEARCH = Record(
    {"query": Text(trim=True), "top_k": Whole(1, 1000), "threshold": Number(0, 1), "show_expired": Flag()},
    required=("query",),
    defaults={"top_k": 20},
)
LIST = Record({**IDS, "top_k": Whole(0, 1000), "show_expired": Flag()}, defaults={"top_k": 20, "show_expired": False})
UPDATE = Record({"text": Text(), "metadata": Metadata(), "expiration_date": Day(clears=True)})
WORDS = {"true": True, "1": True, "false": False, "0": False}


class OSSDoor(Mem0Door):
    """A route in the words of Mem0's server."""

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """As on the Platform's surface, but a bad field is 422 with a list."""
        return _handler

    def given(self, request: Request, shape: Record) -> dict[str, Any]:
        """The query string as the shape wants it."""
        sent: dict[str, Any] = {}
        for name, kind in shape.fields.items():
            if name in request.query_params:
                value = request.query_params[name]
                sent[name] = WORDS.get(value.lower(), value) if isinstance(kind, Flag) else from_query(kind, value)
        return checked(shape, sent)


class Memories(OSSDoor):
    """All memories under some ids, and new ones."""

    def get(self, request: Request) -> Response:
        """List them, newest first."""
        sent = self.given(request, LIST)
        ids = {name: sent[name] for name in IDS if name in sent}
        if not ids:
            raise NotOffered("memsvc lists memories by user_id, agent_id or run_id, never everyone's.")
        found, _ = self.listed(asked(ids), expired=sent["show_expired"])
        return Response({"results": [_memory(shown(memory)) for memory in found[: sent["top_k"]]]})

    def post(self, request: Request) -> Response:
        """Store them, and answer with what was stored."""
        sent = checked(ADD, body(request))
        refused(body(request), ("memory_type", "prompt"))
        scope = self.scope_of({name: sent[name] for name in IDS if name in sent})
        metadata = sent.get("metadata", {})
        if sent["infer"]:
            if "expiration_date" in sent:
                raise BadRequest("expiration_date goes with infer=false: what is extracted has none.")
            payload = {"messages": sent["messages"], "metadata": metadata}
            return _stored(self.wait([self.accept("extract", scope, payload)])[0])
        told = facts(sent["messages"], metadata, sent.get("expiration_date"))
        return _stored(self.wait([self.accept("add", scope, {"memories": told})])[0])

    def delete(self, request: Request) -> Response:
        """Delete everything under the ids."""
        ids = self.given(request, Record(IDS))
        if odd := sorted(request.query_params.keys() - ids.keys()):
            raise BadRequest(f"A delete takes user_id, agent_id and run_id, not {', '.join(odd)}.")
        if not ids:
            raise BadRequest("At least one identifier is required: user_id, agent_id or run_id.")
        return _done(self.wait(self.delete_all([ids]))[0], "All relevant memories deleted")


class Search(OSSDoor, Searching):
    """The best memories for a query."""

    @staticmethod
    def wanted(sent: dict[str, Any], caller: Caller) -> Wanted:
        """See Searching."""
        good = checked(SEARCH, sent)
        return Wanted(queries(sent, good, good["top_k"], caller), good["top_k"])

    @staticmethod
    def row(found: Mapping[str, Any]) -> dict[str, Any]:
        """See Searching."""
        return _memory(found) | {"score": found["score"]}


class OneMemory(OSSDoor):
    """A memory by its id."""

    def get(self, request: Request, memory_id: str) -> HttpResponse:
        """Read it; an unknown one is null."""
        found = self.find(memory_id)
        if found is None:
            return HttpResponse(b"null", content_type="application/json")
        return Response(_memory(shown(found)) | {"score": None})

    def put(self, request: Request, memory_id: str) -> Response:
        """Change it."""
        sent = checked(UPDATE, body(request))
        if not sent:
            raise BadRequest("At least one of text, metadata, or expiration_date must be provided.")
        return _done(self.wait([self.change("update", memory_id, sent)])[0], "Memory updated successfully!")

    def delete(self, request: Request, memory_id: str) -> Response:
        """Delete it."""
        return _done(self.wait([self.change("delete", memory_id, {})])[0], "Memory deleted successfully")


class History(OSSDoor):
    """What happened to a memory."""

    def get(self, request: Request, memory_id: str) -> Response:
        """Its changes, oldest first; none of an unknown one."""
        found = self.find(memory_id)
        if found is None:
            return Response([])
        return Response(read.history(found.id, self.policy, Deadline.after(READ_SECONDS)))


class Entities(OSSDoor):
    """The users, agents and runs that have memories."""

    def get(self, request: Request) -> Response:
        """All of them; of a key bound to a user, that user."""
        rows, _ = self.entities()
        return Response(rows)


class Entity(OSSDoor):
    """A user, agent or run."""

    def delete(self, request: Request, kind: str, name: str) -> Response:
        """Delete all its memories."""
        ids = checked(Record(IDS), {f"{kind}_id": name})
        return _done(self.wait(self.delete_all([ids]))[0], "Entity deleted")


class NotHere(OSSDoor):
    """What concerns the whole server."""

    scope = "read"

    def handle(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """501."""
        raise NotOffered("memsvc does not offer this: ask Mem0's own server behind it.")

    get = post = put = patch = delete = handle


def _handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    found = exception_handler(error, context)
    if found is not None and isinstance(error, ValidationError) and isinstance(error.detail, dict):
        fields = [(name, str(told)) for name, messages in error.detail.items() for told in messages]
        listed = [{"type": "value_error", "loc": ["body", name], "msg": told, "input": None} for name, told in fields]
        return Response({"detail": listed}, status=422)
    return found


def _memory(row: Mapping[str, Any]) -> dict[str, Any]:
    """A memory in the server's words: ids and expiry only where there are any."""
    told = {name: row[name] for name in ("id", "memory")}
    told |= {"hash": hashlib.md5(row["memory"].encode(), usedforsecurity=False).hexdigest()}
    told |= {
        "metadata": dict(row["metadata"]) or None,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    there = ("user_id", "agent_id", "run_id", "expiration_date")
    return told | {name: row[name] for name in there if row[name] is not None}


def _stored(job: Job) -> Response:
    """What was stored; 202 with the event where time was up first."""
    if job.state != "completed":
        return Response({"results": [], "event_id": str(job.job_id)}, status=202)
    return Response({"results": results(job)})


def _done(job: Job, said: str) -> Response:
    if job.state != "completed":
        return Response({"message": "Accepted; still on its way to Mem0.", "event_id": str(job.job_id)}, status=202)
    return Response({"message": said})


def route(pattern: str, view: type[APIView], name: str) -> URLPattern:
    """A path; unlike the server's, a slash at its end does no harm."""
    return re_path(rf"^{pattern}/?\Z", view.as_view(), name=f"oss-{name}")


MEMORY = r"(?P<memory_id>[^/]+)"
ENTITY = r"entities/(?P<kind>user|agent|run)/(?P<name>[\s\S]*[^/])"
"""Never with a slash at its end, which may be the id's own or one too many: 404, as from the server."""

urlpatterns = [
    route("memories", Memories, "memories"),
    route(f"memories/{MEMORY}", OneMemory, "memory"),
    route(f"memories/{MEMORY}/history", History, "history"),
    route("search", Search, "search"),
    route("entities", Entities, "entities"),
    re_path(rf"^{ENTITY}\Z", Entity.as_view(), name="oss-entity"),
    route(r"(?:reset|configure(?:/providers)?|generate-instructions)", NotHere, "not-offered"),
]
