"""The native API over users and jobs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import Error as DatabaseError
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from memory import erase, read, stack, versions, waits, write
from memory.api import answers, bodies, pages
from memory.api import serializers as shown
from memory.api.documented import operation, paged
from memory.api.native import READ_TIMEOUT_SECONDS, Door, idempotency, is_uuid
from memory.clock import Deadline
from memory.errors import Overloaded
from memory.invalidate import invalidate
from memory.models import Erasure, Job
from memory.tenancy.auth import admit, may_see

SLASH = (
    "ends in a slash: a path does not tell whether that is the id's own or one too many, and nobody is erased "
    "by mistake. The admin erases such a user."
)


class Summary(Door):
    """What L3 holds for a user."""

    @operation("user_summary", "A user's memories by topic", {200: shown.Summary}, path=("user_id",))
    def get(self, request: Request, user_id: str) -> Response:
        """Topics, favourites and recent activity; Mem0 is not asked."""
        bodies.query(request, bodies.NOTHING)
        scope = self.user(user_id)
        current = versions.current(scope.pin, self.policy.generation)
        held = stack.L3.snapshot(scope.project, scope.pin.id, current.floor)
        return Response(answers.summary(scope.pin.id, held, current))


class Memories(Door):
    """All memories of a user."""

    @operation(
        "user_memories",
        "All memories of a user, newest first",
        {200: paged(shown.MemoryShown)},
        query=bodies.PAGE,
        path=("user_id",),
        problems=(502, 504),
    )
    def get(self, request: Request, user_id: str) -> Response:
        """A page of them; `complete` is false where Mem0 lists only some."""
        asked = bodies.query(request, bodies.PAGE)
        scope = self.user(user_id)
        found, layer, complete = read.memories(scope, self.policy, Deadline.after(READ_TIMEOUT_SECONDS))
        page = pages.page(request, asked, len(found), pages.of(found), answers.memory)
        return Response(page | {"layer": layer, "complete": complete})


class Invalidate(Door):
    """Forget what is cached of a user."""

    @operation(
        "user_invalidate",
        "Serve nothing cached of a user before now",
        {200: shown.Invalidated},
        path=("user_id",),
    )
    def post(self, request: Request, user_id: str) -> Response:
        """Move the user's version and floor."""
        bodies.body(request, bodies.NOTHING)
        scope = self.user(user_id)
        version = invalidate(scope, self.policy)
        return Response({"user_id": scope.user_id, "version": str(version)})


class OneUser(Door):
    """A user as a whole."""

    @operation(
        "user_erase",
        "Erase a user: memories, sessions, pending writes and everything cached",
        {200: shown.Erasure, 202: shown.Erasing},
        query=bodies.ERASE,
        path=("user_id",),
        problems=(422,),
        idempotent=True,
    )
    def delete(self, request: Request, user_id: str) -> Response:
        """Begin a new life of this id; the receipt, or where to ask for it."""
        if user_id.endswith("/"):
            raise ValidationError({"user_id": [SLASH]})
        key = idempotency(request)
        sent = bodies.either(request, bodies.ERASE)
        deadline = Deadline.after(sent["timeout_ms"] / 1000)
        erasure = erase.accept(self.user(user_id).pin, self.policy, *key)
        if sent["wait"] != "none" and erasure.job is not None:
            with suppress(Overloaded):  # too many wait already, and the erase goes on without this one
                waits.until_stored(erasure.job, deadline)
            with suppress(DatabaseError):  # PostgreSQL is away: as it was accepted
                erasure = Erasure.objects.select_related("job").get(pk=erasure.pk)
        return answers.erased(request, erasure)


class OneErasure(Door):
    """The receipt of an erase."""

    @operation("erasure", "How far an erase is, and its receipt", {200: shown.Erasure}, path=("erasure_id",))
    def get(self, request: Request, erasure_id: str) -> Response:
        """It, while it goes on and ever after."""
        bodies.query(request, bodies.NOTHING)
        found = None
        if is_uuid(erasure_id):
            rows = Erasure.objects.select_related("job").filter(project_id=self.caller.project)
            found = rows.filter(erasure_id=erasure_id).first()
        if found is None or not may_see(self.caller, found.user_id):
            raise NotFound("There is no erase with this id.")
        return Response(erase.receipt(found))


class Jobs(Door):
    """Accepted writes."""

    @operation("jobs", "Accepted writes, newest first", {200: paged(shown.JobStatus)}, query=bodies.JOBS)
    def get(self, request: Request) -> Response:
        """A page of them, of one user or in one state where asked."""
        asked = bodies.query(request, bodies.JOBS)
        user_id = asked.get("user_id", self.caller.user_id)
        admit(self.caller, user_id)
        where: dict[str, Any] = {"project_id": self.caller.project}
        if user_id is not None:
            where["user_id"] = user_id
        if "status" in asked:
            where["state"] = asked["status"]
        jobs = Job.objects.filter(**where)
        return Response(pages.page(request, asked, jobs.count(), lambda first, last: jobs[first:last], write.report))


class JobStatus(Door):
    """One accepted write."""

    @operation("job_status", "How far a write is", {200: shown.JobStatus}, path=("job_id",))
    def get(self, request: Request, job_id: str) -> Response:
        """Its state."""
        bodies.query(request, bodies.NOTHING)
        where: dict[str, Any] = {"project_id": self.caller.project}
        if self.caller.user_id is not None:
            where["user_id"] = self.caller.user_id
        job = Job.objects.filter(job_id=job_id, **where).first() if is_uuid(job_id) else None
        if job is None:
            raise NotFound("There is no job with this id.")
        return Response(write.report(job))
