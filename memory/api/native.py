"""The native API over memories: what comes in is checked and handed on, what comes back is shown. No decisions."""

from __future__ import annotations

import hashlib
import re
from typing import IO, Any, NamedTuple, NoReturn, cast

from django.http import HttpResponse
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from memory import clock, pending, read, recall, waits, write
from memory.api import answers, bodies, imports, pages
from memory.api import serializers as shown
from memory.api.documented import operation, paged
from memory.api.encoding import LinesParser
from memory.clock import Deadline
from memory.errors import Overloaded
from memory.models import Job
from memory.tenancy import projects
from memory.tenancy.auth import admit, may_see
from memory.tenancy.keys import Caller
from memory.tenancy.projects import Policy
from memory.types import Memory, Query, Scope
from memory.write import Write

READ_TIMEOUT_SECONDS = 10.0

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Door(APIView):
    """What the native routes share: who calls, and under which policies."""

    scope: str | None = None
    """The scope a key needs here; without one `read` for safe methods, `write` for the others."""

    @property
    def caller(self) -> Caller:
        """Who calls."""
        return cast(Caller, self.request.auth)  # HasScope lets nobody else in

    @property
    def policy(self) -> Policy:
        """The caller's project as this process knows it."""
        return projects.policy(self.caller.project)

    def ids(self, sent: dict[str, Any]) -> Scope:
        """The ids a request names, if the caller may."""
        return ids(sent, self.caller)

    def user(self, value: str) -> Scope:
        """The user in the path, if the caller may."""
        return self.ids({"user_id": bodies.ident("user_id", value)})


def ids(sent: dict[str, Any], caller: Caller) -> Scope:
    """The ids a request names, if the caller may. KeyBound."""
    admit(caller, sent.get("user_id"))
    return Scope(caller.project, sent.get("user_id"), sent.get("agent_id"), sent.get("run_id"))


class Asked(NamedTuple):
    """A search as its body says it."""

    query: Query
    wish: read.Wish
    session_id: str | None
    explain: bool
    timeout_ms: int


def asked(sent: dict[str, Any], caller: Caller) -> Asked:
    """What a search asks, if the caller may. KeyBound."""
    scope = ids(sent, caller)
    query = Query(scope, sent["query"], sent["top_k"], sent.get("threshold"), sent.get("filters", ""))
    wish = read.Wish(sent["consistency"], sent.get("max_age_ms", 0), sent.get("min_version", 0))
    return Asked(query, wish, sent.get("session_id"), sent.get("explain", False), sent["timeout_ms"])


class Writing(Door):
    """Routes that make a job."""

    def accept(self, request: Request, made: Write, sent: dict[str, Any]) -> Response:
        """Accept the write, wait if asked to, and answer with what came of it."""
        deadline = Deadline.after(sent["timeout_ms"] / 1000)
        done = write.accept(made, self.policy)
        response = self._answer(request, done.job, sent["wait"], deadline)
        if done.replayed:
            response["Idempotent-Replayed"] = "true"
        return response

    def _answer(self, request: Request, job: Job, wait: str, deadline: Deadline) -> Response:
        if wait == "none":
            return answers.accepted(request, job, "pending")
        until = waits.until_warm if wait == "warm" else waits.until_stored
        try:
            return answers.waited(request, until(job, deadline))
        except Overloaded:  # too many wait already, and the write is safe
            return answers.accepted(request, job, job.state)


class Add(Writing):
    """Facts as they are."""

    @operation(
        "memory_add",
        "Store facts as they are",
        {202: shown.Accepted, 200: shown.Done, 502: shown.JobFailed},
        body=bodies.ADD,
        problems=(413, 415, 422, 429),
        idempotent=True,
    )
    def post(self, request: Request) -> Response:
        """Accept facts."""
        key = idempotency(request)
        sent = bodies.body(request, bodies.ADD)
        return self.accept(request, Write("add", self.ids(sent), {"memories": bodies.memories(sent)}, None, *key), sent)


class Import(Door):
    """Many facts at once, as JSON Lines."""

    parser_classes = [LinesParser]

    @operation(
        "memory_import",
        "Store many facts, one a line",
        {202: shown.Imported},
        lines=True,
        problems=(415, 422),
        idempotent=True,
    )
    def post(self, request: Request) -> Response:
        """Accept them as they come."""
        bodies.query(request, bodies.NOTHING)
        lines = imports.lines_of(cast(IO[bytes], request.data)) if request.data else iter(())
        accept = imports.accepting(self.policy)
        told = imports.bring_in(lines, self.caller.project, accept, idempotency_key(request), self.caller.user_id)
        shown = [{"line": line, "error": reason} for line, reason in told.first_refused]
        return Response({**vars(told), "first_refused": shown}, status=202)


class Extract(Writing):
    """A conversation, out of which Mem0 finds facts."""

    @operation(
        "memory_extract",
        "Extract facts from a conversation",
        {202: shown.Accepted, 200: shown.Done, 502: shown.JobFailed},
        body=bodies.EXTRACT,
        problems=(413, 415, 422, 429),
        idempotent=True,
    )
    def post(self, request: Request) -> Response:
        """Accept a conversation."""
        key = idempotency(request)
        sent = bodies.body(request, bodies.EXTRACT)
        payload: dict[str, Any] = {name: sent[name] for name in ("messages", "metadata", "session_id") if name in sent}
        return self.accept(request, Write("extract", self.ids(sent), payload, None, *key), sent)


class Search(Door):
    """The best memories for a query."""

    scope = "read"

    @operation(
        "memory_search",
        "Search a user's memories",
        {200: shown.SearchAnswer},
        body=bodies.SEARCH,
        problems=(409, 413, 415, 502, 504),
    )
    def post(self, request: Request) -> HttpResponse:
        """Search."""
        began = clock.now()
        query, wish, session_id, explain, timeout_ms = asked(bodies.search(request), self.caller)
        deadline = Deadline(began + timeout_ms / 1000)
        found = recall.search(query, self.policy, deadline, wish, session_id=session_id, explain=explain)
        body, headers = answers.search(found, began)
        return HttpResponse(body, headers=headers)


class Pending(APIException):
    """The id is of a fact that Mem0 does not have yet (PROTOCOL C1)."""

    status_code = 409
    default_code = "pending"

    def __init__(self, job: Job) -> None:
        super().__init__("Mem0 has not stored this yet; its job tells how far it is.")
        self.extra = {"job_id": str(job.job_id), "job_status": job.state}


class OneMemory(Writing):
    """A memory by its id."""

    @operation(
        "memory_get",
        "Read one memory",
        {200: shown.MemoryShown, 409: shown.IsPending},
        path=("memory_id",),
        problems=(502, 504),
    )
    def get(self, request: Request, memory_id: str) -> Response:
        """Read it."""
        bodies.query(request, bodies.NOTHING)
        return Response(answers.memory(self.find(memory_id)))

    @operation(
        "memory_update",
        "Change one memory",
        {202: shown.Accepted, 200: shown.Done, 409: shown.IsPending, 502: shown.JobFailed},
        body=bodies.UPDATE,
        path=("memory_id",),
        problems=(413, 415, 422, 429),
        idempotent=True,
    )
    def put(self, request: Request, memory_id: str) -> Response:
        """Change it."""
        key = idempotency(request)
        sent = bodies.update(request)
        changes: dict[str, Any] = {name: sent[name] for name in ("text", "metadata", "expiration_date") if name in sent}
        return self.change(request, "update", memory_id, changes, key, sent)

    @operation(
        "memory_delete",
        "Delete one memory",
        {202: shown.Accepted, 200: shown.Done, 409: shown.IsPending, 502: shown.JobFailed},
        query=bodies.DELETE,
        path=("memory_id",),
        problems=(422, 429),
        idempotent=True,
    )
    def delete(self, request: Request, memory_id: str) -> Response:
        """Delete it."""
        key = idempotency(request)
        sent = bodies.either(request, bodies.DELETE)
        return self.change(request, "delete", memory_id, {}, key, sent)

    def change(
        self,
        request: Request,
        kind: str,
        memory_id: str,
        changes: dict[str, Any],
        key: tuple[str | None, str],
        sent: dict[str, Any],
    ) -> Response:
        """Accept a write by id, filed under the ids of its memory; a replay needs no memory any more."""
        self.refuse_pending(memory_id)
        if not is_uuid(memory_id):
            _no_memory()
        earlier = write.replay(*key, self.policy)
        owner = write.scope(earlier.job) if earlier else write.owner(memory_id.lower(), self.policy)
        if owner is None or not may_see(self.caller, owner.user_id):
            _no_memory()
        return self.accept(request, Write(kind, owner, changes, memory_id.lower(), *key), sent)

    def find(self, memory_id: str) -> Memory:
        """The memory, if there is one and the caller may know."""
        self.refuse_pending(memory_id)
        deadline = Deadline.after(READ_TIMEOUT_SECONDS)
        found = read.get(memory_id.lower(), self.policy, deadline) if is_uuid(memory_id) else None
        if found is None or not may_see(self.caller, found.user_id):
            _no_memory()
        return found

    def refuse_pending(self, memory_id: str) -> None:
        """409 for the id of a pending item, with its job; one that the caller may not see is no such memory."""
        job_id = pending.job_of(memory_id)
        if job_id is None:
            return
        job = Job.objects.filter(project_id=self.caller.project, job_id=job_id).first()
        if job is None or not may_see(self.caller, job.user_id):
            _no_memory()
        raise Pending(job)


class History(OneMemory):
    """What happened to a memory."""

    http_method_names = ["get", "head", "options"]

    @operation(
        "memory_history",
        "What happened to one memory",
        {200: paged(shown.HistoryEvent), 409: shown.IsPending},
        query=bodies.PAGE,
        path=("memory_id",),
        problems=(502, 504),
    )
    def get(self, request: Request, memory_id: str) -> Response:
        """Its changes, oldest first."""
        asked = bodies.query(request, bodies.PAGE)
        found = self.find(memory_id)
        events = read.history(found.id, self.policy, Deadline.after(READ_TIMEOUT_SECONDS))
        return Response(pages.page(request, asked, len(events), pages.of(events), dict))


def is_uuid(value: str) -> bool:
    """Whether an id in a path can be one at all: Mem0's and ours are UUIDs."""
    return _UUID.fullmatch(value) is not None


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key; ValidationError for one that is none."""
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not _KEY.fullmatch(key):
        raise ValidationError({"Idempotency-Key": ["must be 1 to 255 visible ASCII characters"]})
    return key


def idempotency(request: Request) -> tuple[str | None, str]:
    """The Idempotency-Key and a digest of what it came with; ValidationError for a key that is none."""
    if (key := idempotency_key(request)) is None:
        return None, ""
    whole = f"{request.method} {request.get_full_path()}\n".encode() + request.body
    return key, hashlib.sha256(whole).hexdigest()


def _no_memory() -> NoReturn:
    raise NotFound("There is no memory with this id.")
