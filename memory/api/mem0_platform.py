"""Mem0's Platform API, so that its official clients work unchanged: reads and writes of the native API, in other words.
Adds are asynchronous unless asked otherwise; updates and deletes answer when they are done.

`docs/compatibility.md` says which parameters do nothing here and which are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.core import signing
from django.urls import URLPattern, re_path
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from memory import read, stack, versions, write
from memory.api import mem0_filters, pages
from memory.api.fields import Choice, Day, Flag, Many, Metadata, Number, Record, Text, Whole, Wrong, from_query
from memory.api.mem0_filters import APP, PINS, Branch
from memory.api.mem0_forms import (
    ID,
    IDS,
    READ_SECONDS,
    BadRequest,
    Conversation,
    Mem0Door,
    NotOffered,
    asked,
    body,
    checked,
    facts,
    filtered,
    ids_in,
    no_memory,
    refused,
    results,
    shown,
)
from memory.api.mem0_search import Searching, Wanted, queries
from memory.api.native import is_uuid
from memory.clock import Deadline
from memory.models import Feedback, Job
from memory.tenancy.auth import ANY_SCOPE
from memory.tenancy.keys import Caller
from memory.types import Answer, Memory

MAX_BATCH = 1000
EXPORT_SALT = "memsvc.mem0.export"
STATUSES = {"pending": "PENDING", "processing": "RUNNING", "stored": "RUNNING", "completed": "SUCCEEDED"}
EVENTS = {
    "add": "ADD",
    "extract": "ADD",
    "update": "UPDATE",
    "delete": "DELETE",
    "delete_all": "DELETE_ALL",
    "erase": "DELETE_ALL",
}
FEEDBACK = ("POSITIVE", "NEGATIVE", "VERY_NEGATIVE")

ADD = Record(
    {
        **IDS,
        APP: ID,
        "messages": Conversation(),
        "metadata": Metadata(),
        "infer": Flag(),
        "expiration_date": Day(),
        "async_mode": Flag(),
    },
    required=("messages",),
    defaults={"infer": True, "async_mode": True},
)
SEARCH = Record(
    {
        "query": Text(trim=True),
        "top_k": Whole(1, 1000),
        "limit": Whole(1, 1000),
        "threshold": Number(0, 1),
        "show_expired": Flag(),
        "fields": Many(Text(), 0, 50),
    },
    required=("query",),
)
LIST = Record({"show_expired": Flag(), "start_date": Day(), "end_date": Day(), "fields": Many(Text(), 0, 50)})
UPDATE = Record({"text": Text(), "metadata": Metadata(), "expiration_date": Day(clears=True)})
PAGE = Record(
    {"page": Whole(1, 1_000_000), "page_size": Whole(1, 1000)},
    defaults={"page": 1, "page_size": 100},
)
BATCH_UPDATE = Record(
    {"memories": Many(Record({"memory_id": ID, **UPDATE.fields}, required=("memory_id",)), 1, MAX_BATCH)},
    required=("memories",),
)
BATCH_DELETE = Record(
    {"memories": Many(Record({"memory_id": ID}, required=("memory_id",)), 1, MAX_BATCH)},
    required=("memories",),
)
RATE = Record(
    {"memory_id": ID, "feedback": Choice(FEEDBACK), "feedback_reason": Text(trim=True)},
    required=("memory_id",),
)
NOT_ADDED = (
    "timestamp",
    "custom_categories",
    "custom_instructions",
    "includes",
    "excludes",
    "immutable",
    "memory_type",
)
NOT_SEARCHED = ("categories", "reference_date", "start_date", "end_date")
CONTEXT = frozenset({"org_id", "project_id", "source"})
"""What clients tell of themselves beside what they ask for."""


class Ping(Mem0Door):
    """What a client asks before anything else, whatever its key may do."""

    scope = ANY_SCOPE

    def get(self, request: Request) -> Response:
        """The project. The address is none on purpose: clients send one with an @ to a third party."""
        named = {"org_id": "memsvc", "project_id": self.policy.slug or "default", "user_email": "memsvc"}
        return Response({"status": "ok", **named})


class Add(Mem0Door):
    """Conversations, and facts as they are (`infer` false)."""

    def post(self, request: Request) -> Response:
        """Accept them; wait where `async_mode` is false."""
        sent = checked(ADD, body(request))
        refused(body(request), NOT_ADDED)
        ids = {**_plain_ids(body(request).get("filters")), **ids_in(sent)}
        scope = self.scope_of({name: value for name, value in ids.items() if name != APP})
        metadata = sent.get("metadata", {}) | ({APP: ids[APP]} if APP in ids else {})
        if sent["infer"]:
            if "expiration_date" in sent:
                raise BadRequest("expiration_date goes with infer=false: what is extracted has none.")
            job = self.accept("extract", scope, {"messages": sent["messages"], "metadata": metadata})
        else:
            told = facts(sent["messages"], metadata, sent.get("expiration_date"))
            job = self.accept("add", scope, {"memories": told})
        if not sent["async_mode"]:
            (job,) = self.wait([job])
        return Response(_added(job))


class Memories(Add):
    """Adds at their old address, and deletes of everything under some ids."""

    def delete(self, request: Request) -> Response:
        """Delete all of it, and answer when it is done."""
        given = {name: request.query_params[name] for name in request.query_params}
        if odd := sorted(given.keys() - {*PINS, APP, "filters"} - CONTEXT):
            raise BadRequest(f"A delete takes ids and filters, not {', '.join(odd)}.")
        if given.get(APP):
            raise BadRequest("memsvc deletes by user_id, agent_id or run_id; an app_id is part of the metadata.")
        ids = checked(Record(IDS), {name: value for name, value in given.items() if name in PINS})
        alternatives: list[Mapping[str, str]] = [ids] if ids else []
        if "filters" in given:
            alternatives = [_merged(ids, branch) for branch in filtered(_read(given["filters"]))]
            if not all(alternatives):
                raise BadRequest("filters name other ids than the request.")
        if not alternatives:
            raise BadRequest("A delete needs a user_id, agent_id or run_id.")
        return _done(self.wait(self.delete_all(alternatives)), "Memories deleted.")


class Search(Searching):
    """The best memories for a query."""

    @staticmethod
    def wanted(sent: dict[str, Any], caller: Caller) -> Wanted:
        """See Searching."""
        good = checked(SEARCH, sent)
        refused(sent, NOT_SEARCHED)
        top_k = good.get("top_k", good.get("limit", 10))
        return Wanted(queries(sent, good, top_k, caller), top_k, tuple(good.get("fields", ())))

    @staticmethod
    def row(found: Mapping[str, Any]) -> dict[str, Any]:
        """See Searching."""
        return _memory(found) | {"score": found["score"]}

    @staticmethod
    def meta(answered: Sequence[Answer]) -> dict[str, Any]:
        """Where an answer is from and how good it is: of several, of the worst."""
        if not answered:
            return {}
        worst = max(answered, key=lambda answer: (answer.degraded, answer.stale, answer.age_ms))
        return {"meta": {name: getattr(worst, name) for name in ("layer", "stale", "degraded", "reason", "age_ms")}}


class Listing(Mem0Door):
    """All memories that a filter names."""

    scope = "read"

    def post(self, request: Request) -> Response:
        """A page of them, newest first."""
        sent = checked(LIST, body(request))
        refused(body(request), ("categories",))
        page = _page(request, body(request))
        found, complete = self.listed(asked(body(request)), expired=sent.get("show_expired", False))
        found = [memory for memory in found if _between(memory, sent.get("start_date"), sent.get("end_date"))]
        told = pages.page(request, page, len(found), pages.of(found), lambda one: _fields(_memory(shown(one)), sent))
        return Response(told | ({} if complete else {"complete": False}))


class OneMemory(Mem0Door):
    """A memory by its id."""

    def get(self, request: Request, memory_id: str) -> Response:
        """Read it."""
        return Response(_memory(shown(self.find(memory_id) or no_memory(memory_id))))

    def put(self, request: Request, memory_id: str) -> Response:
        """Change it, and show it as it is then."""
        sent = checked(UPDATE, body(request))
        refused(body(request), ("timestamp",))
        if not sent:
            raise BadRequest("An update changes text, metadata or expiration_date.")
        (job,) = self.wait([self.change("update", memory_id, sent)])
        if job.state != "completed":
            return _done([job], "")
        return Response(_memory(shown(self.find(memory_id) or no_memory(memory_id))))

    def delete(self, request: Request, memory_id: str) -> Response:
        """Delete it."""
        if request.query_params.get("delete_linked", "").lower() == "true":
            raise BadRequest("delete_linked: memsvc knows no links between memories.")
        return _done(self.wait([self.change("delete", memory_id, {})]), "Memory deleted.")


class History(Mem0Door):
    """What happened to a memory."""

    def get(self, request: Request, memory_id: str) -> Response:
        """Its changes, oldest first."""
        found = self.find(memory_id) or no_memory(memory_id)
        events = read.history(found.id, self.policy, Deadline.after(READ_SECONDS))
        return Response([{**event, "user_id": found.user_id, "input": [], "metadata": None} for event in events])


class Batch(Mem0Door):
    """Many memories by their ids: all are looked up before one is changed."""

    def put(self, request: Request) -> Response:
        """Change them."""
        sent = checked(BATCH_UPDATE, body(request))["memories"]
        if any(len(one) < 2 for one in sent):
            raise BadRequest("An update changes text, metadata or expiration_date.")
        return self._each("update", sent, f"Successfully updated {len(sent)} memories")

    def delete(self, request: Request) -> Response:
        """Delete them."""
        sent = checked(BATCH_DELETE, body(request))["memories"]
        return self._each("delete", sent, f"Successfully deleted {len(sent)} memories")

    def _each(self, kind: str, sent: Sequence[dict[str, Any]], said: str) -> Response:
        owned = [(self.owner(one["memory_id"]), one.pop("memory_id").lower(), one) for one in sent]
        jobs = [self.accept(kind, scope, changes, memory_id) for scope, memory_id, changes in owned]
        return _done(self.wait(jobs), said)


class Entities(Mem0Door):
    """The users, agents and runs that have memories."""

    def get(self, request: Request) -> Response:
        """All of them, or a page where one is asked for. `complete` is false at the limit of Mem0's own scan."""
        paged = request.query_params.keys() & PAGE.fields.keys()
        wanted = _page(request, {}) if paged else {"page": 1, "page_size": 10**9}
        rows, complete = self.entities()
        page = pages.page(request, wanted, len(rows), pages.of(rows), lambda row: {**row, "name": row["id"]})
        return Response(page | ({} if complete else {"complete": False}))


class Entity(Mem0Door):
    """A user, agent or run."""

    def delete(self, request: Request, kind: str, name: str) -> Response:
        """Delete all its memories."""
        if kind == "app":
            raise NotOffered("memsvc keeps an app_id in the metadata and cannot delete by it.")
        ids = checked(Record(IDS), {f"{kind}_id": name})
        return _done(self.wait(self.delete_all([ids])), "Entity deleted.")


class Profile(Mem0Door):
    """What is known of a user, from L3: topics instead of a schema of the caller's."""

    def get(self, request: Request, name: str) -> Response:
        """The topics and what was said lately."""
        scope = self.user(name)
        current = versions.current(scope.pin, self.policy.generation)
        held = stack.L3.snapshot(scope.project, scope.pin.id, current.floor)
        topics = {topic: [row["memory"] for row in rows] for topic, rows in held.topics.items() if rows} if held else {}
        behind = held is None or held.summary_version < current.number
        return Response(
            {
                "entity_type": "user",
                "entity_id": name,
                "status": "succeeded" if topics else "pending" if behind and current.number else "insufficient_data",
                "profile": topics,
                "updated_at": held.built_at if held else None,
                "generation_count": 1 if held else 0,
            },
        )


class Event(Mem0Door):
    """How far an accepted write is."""

    def get(self, request: Request, event_id: str) -> Response:
        """Its state."""
        job = self.jobs().filter(job_id=event_id).first() if is_uuid(event_id) else None
        if job is None:
            raise NotFound(f"Event with id {event_id} not found.")
        return Response(_event(job))

    def jobs(self) -> Any:
        """The jobs that the caller may see, newest first."""
        bound = {} if self.caller.user_id is None else {"user_id": self.caller.user_id}
        return Job.objects.filter(project_id=self.caller.project, **bound)


class Events(Event):
    """Accepted writes, newest first."""

    def get(self, request: Request) -> Response:  # type: ignore[override]  # no id in this path
        """A page of them."""
        jobs = self.jobs()
        page = pages.page(request, _page(request, {}), jobs.count(), lambda first, last: jobs[first:last], _event)
        return Response(page)


class Rate(Mem0Door):
    """What a person thinks of a memory; the last word counts, none takes it back."""

    def post(self, request: Request) -> Response:
        """Keep it."""
        sent = checked(RATE, body(request))
        owner = self.owner(sent["memory_id"])
        where = {"project_id": self.caller.project, "memory_id": sent["memory_id"].lower()}
        said, reason = sent.get("feedback"), sent.get("feedback_reason", "")
        if said is None:
            Feedback.objects.filter(**where).delete()
        else:
            kept = {"feedback": said, "reason": reason, "user_id": owner.user_id}
            Feedback.objects.update_or_create(**where, defaults=kept)
        told = {"memory_id": sent["memory_id"], "feedback": said, "feedback_reason": reason or None}
        return Response({"message": "Feedback kept.", **told})


class Export(Mem0Door):
    """An export: its id says what it holds, and who reads it gets the memories of that moment."""

    scope = "read"

    def post(self, request: Request) -> Response:
        """Give it an id."""
        if "schema" not in body(request):
            raise BadRequest("An export needs a schema; memsvc exports memories as they are, whatever it says.")
        branches = asked(body(request))
        for branch in branches:
            self.scope_of(branch.ids)
        packed = [[dict(branch.ids), sorted(branch.present), branch.conditions] for branch in branches]
        token = signing.dumps([self.caller.project, packed], salt=EXPORT_SALT, compress=True)
        return Response({"message": "The export is ready.", "id": token}, status=201)


class Exported(Mem0Door):
    """The memories of an export."""

    scope = "read"

    def post(self, request: Request) -> Response:
        """By the export's id, or by ids or filters."""
        token = body(request).get("memory_export_id")
        branches = self._unpacked(token) if token else asked(body(request))
        found, complete = self.listed(branches, expired=False)
        told = {"memories": [_memory(shown(memory)) for memory in found]}
        return Response(told | ({} if complete else {"complete": False}))

    def _unpacked(self, token: Any) -> list[Branch]:
        try:
            project, packed = signing.loads(str(token), salt=EXPORT_SALT)
        except signing.BadSignature:
            project, packed = None, []
        if project != self.caller.project:
            raise NotFound("There is no export with this id.")
        return [Branch(ids, frozenset(present), conditions) for ids, present, conditions in packed]


class NotHere(Mem0Door):
    """What belongs to the Platform as a company's service."""

    scope = "read"

    def handle(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """501."""
        raise NotOffered(
            "memsvc does not offer this. Projects and keys are kept in its admin; organisations, webhooks, "
            "summaries by schema and profile jobs belong to Mem0's Platform.",
        )

    get = post = put = patch = delete = handle


def _plain_ids(filters: Any) -> dict[str, str]:
    """The ids of an add that are given as filters, as options of the client are."""
    if not filters:
        return {}
    if not isinstance(filters, dict) or not filters.keys() <= {*PINS, APP}:
        raise BadRequest("filters of an add are ids and nothing else.")
    return checked(Record({**IDS, APP: ID}), filters)


def _read(text: str) -> Any:
    try:
        return mem0_filters.from_text(text)
    except Wrong as wrong:
        raise BadRequest(f"filters {wrong}") from None


def _merged(ids: Mapping[str, str], branch: Branch) -> dict[str, str]:
    """The ids of a delete; none where the two name different ones. BadRequest for conditions, which no delete takes."""
    if not branch.plain:
        raise BadRequest("A delete takes ids alone: memsvc deletes by no condition on metadata.")
    both = {**branch.ids, **ids}
    return both if both == {**ids, **branch.ids} else {}


def _page(request: Request, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Page and size from the query string, or from the body as some clients send them."""
    given = {name: sent[name] for name in PAGE.fields if name in sent}
    for name in PAGE.fields.keys() & request.query_params.keys():
        given[name] = from_query(PAGE.fields[name], request.query_params[name])
    return checked(PAGE, given)


def _between(memory: Memory, start: str | None, end: str | None) -> bool:
    day = (memory.created_at or "")[:10]
    return (start is None or day >= start) and (end is None or day <= end)


def _memory(row: Mapping[str, Any]) -> dict[str, Any]:
    """A memory in the Platform's words, out of what `public` shows."""
    metadata = dict(row["metadata"])
    return {
        "id": row["id"],
        "memory": row["memory"],
        "user_id": row["user_id"],
        "agent_id": row["agent_id"],
        "app_id": metadata.pop(APP, None),
        "run_id": row["run_id"],
        "metadata": metadata,
        "categories": [],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "expiration_date": row["expiration_date"],
    }


def _fields(row: dict[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row, the fields asked for, and always its id."""
    wanted = {"id", *sent["fields"]} if sent.get("fields") else row.keys()
    return {name: value for name, value in row.items() if name in wanted}


def _added(job: Job) -> dict[str, Any]:
    status = STATUSES.get(job.state, "FAILED") if job.state == "completed" else "PENDING"
    said = "Stored." if status == "SUCCEEDED" else "Accepted; ask for the event to see what becomes of it."
    return {"message": said, "status": status, "event_id": str(job.job_id), "results": results(job)}


def _done(jobs: Sequence[Job], said: str) -> Response:
    """What writes that were waited for came to: 200, or 202 with their events where time was up."""
    open_ = [str(job.job_id) for job in jobs if job.state != "completed"]
    if not open_:
        return Response({"message": said})
    body = {
        "message": "Accepted; still on its way to Mem0.",
        "status": "PENDING",
        "event_id": open_[0],
        "event_ids": open_,
    }
    return Response(body, status=202)


def _event(job: Job) -> dict[str, Any]:
    told = write.report(job)
    return {
        "id": told["job_id"],
        "event_type": EVENTS[job.kind],
        "status": STATUSES.get(job.state, "FAILED"),
        "payload": {name: told[name] for name in PINS if told[name] is not None},
        "metadata": {"error": told["error"], "reason": told["reason"]} if job.state == "failed" else None,
        "results": [{**one, "data": {"memory": one["memory"]}} for one in results(job)],
        "created_at": job.accepted_at,
        "updated_at": job.completed_at or job.stored_at or job.accepted_at,
        "started_at": job.accepted_at,
        "completed_at": job.completed_at,
    }


def route(pattern: str, view: type[APIView], name: str) -> URLPattern:
    """A path with or without a slash at its end, and with the second one in front that some clients send."""
    return _path(f"{pattern}/?", view, name)


def _path(pattern: str, view: type[APIView], name: str) -> URLPattern:
    return re_path(rf"^/?{pattern}\Z", view.as_view(), name=f"mem0-{name}")


MEMORY = r"(?P<memory_id>[^/]+)"
NAME = r"(?P<name>[\s\S]+)"

urlpatterns = [
    route("v1/ping", Ping, "ping"),
    route("v3/memories/add", Add, "add"),
    route("v1/memories", Memories, "memories"),
    route("v[123]/memories/search", Search, "search"),
    route("v[23]/memories", Listing, "list"),
    route(f"v1/memories/{MEMORY}", OneMemory, "memory"),
    route(f"v1/memories/{MEMORY}/history", History, "history"),
    route("v1/batch", Batch, "batch"),
    route("v1/entities", Entities, "entities"),
    route(f"v2/entities/user/{NAME}/profile", Profile, "profile"),
    # With the slash that clients send: were it optional, an id's own could be taken for it, and another entity deleted.
    _path(f"v[12]/entities/(?P<kind>user|agent|run|app)/{NAME}/", Entity, "entity"),
    route("v1/event/(?P<event_id>[^/]+)", Event, "event"),
    route("v1/events", Events, "events"),
    route("v1/feedback", Rate, "feedback"),
    route("v1/exports", Export, "export"),
    route("v1/exports/get", Exported, "exported"),
    route(r"(?:v1/summary|v[12]/profiles|api/v1/(?:orgs|webhooks))(?:/[\s\S]*)?", NotHere, "not-offered"),
]
