"""Warming over HTTP: ask for one, see how it went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.http import StreamingHttpResponse
from rest_framework import serializers as s
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from cachewarm import chains
from cachewarm.models import RUN_STATES, LearnedQuery, WarmRun
from memory import exports, write
from memory.api import bodies, pages
from memory.api.documented import LINES, operation, paged
from memory.api.fields import Choice, Record
from memory.api.native import READ_TIMEOUT_SECONDS, Door, is_uuid
from memory.api.urls import USER, route
from memory.clock import Deadline
from memory.tenancy.auth import admit
from memory.types import Scope

WARMS = Record(
    {"user_id": bodies.ID, "status": Choice(RUN_STATES), **bodies.PAGE.fields},
    defaults=bodies.PAGE.defaults,
)


class WarmDue(s.Serializer[object]):
    """A warm that will start as soon as a worker is free."""

    run_id = s.UUIDField()
    status_url = s.URLField()


class WarmShown(s.Serializer[object]):
    """How far a warm is."""

    run_id = s.UUIDField()
    user_id = s.CharField()
    reason = s.CharField()
    status = s.ChoiceField(RUN_STATES)
    step = s.CharField(allow_null=True)
    attempts = s.IntegerField()
    error = s.CharField(allow_null=True)
    version = s.CharField(allow_null=True)
    due_at = s.DateTimeField()
    created_at = s.DateTimeField()
    started_at = s.DateTimeField(allow_null=True)
    ended_at = s.DateTimeField(allow_null=True)
    milliseconds = s.IntegerField(allow_null=True)


class Warm(Door):
    """Fill a user's layers now."""

    @operation("user_warm", "Warm a user now", {202: WarmDue}, path=("user_id",))
    def post(self, request: Request, user_id: str) -> Response:
        """Make a warm due, also where warming by itself is switched off."""
        bodies.body(request, bodies.NOTHING)
        scope = self.user(user_id)
        write.touch_user(scope.project, scope.pin.id)
        run_id = chains.warm(scope.project, scope.pin.id, "api")
        url = reverse("warm", args=[run_id], request=request)
        return Response({"run_id": str(run_id), "status_url": url}, status=202, headers={"Location": url})


class Export(Door):
    """Everything kept of a user."""

    @operation(
        "user_export",
        "Everything kept of a user, as JSON Lines",
        {200: LINES},
        path=("user_id",),
        problems=(502, 504),
    )
    def get(self, request: Request, user_id: str) -> StreamingHttpResponse:
        """Memories, summary, sessions, open writes, learned questions; the last line says whether that is all."""
        bodies.query(request, bodies.NOTHING)
        scope = self.user(user_id)
        lines = exports.user(scope, self.policy, Deadline.after(READ_TIMEOUT_SECONDS), _learned(scope))
        told = exports.chunks(lines, project=scope.project, user_id=scope.user_id, key=self.caller.key)
        return StreamingHttpResponse(told, content_type=exports.MEDIA_TYPE)


class Warms(Door):
    """Warms of the project."""

    @operation("warms", "Warms, newest first", {200: paged(WarmShown)}, query=WARMS)
    def get(self, request: Request) -> Response:
        """A page of them, of one user or in one state where asked."""
        asked = bodies.query(request, WARMS)
        user_id = asked.get("user_id", self.caller.user_id)
        admit(self.caller, user_id)
        where: dict[str, Any] = {"project_id": self.caller.project}
        if user_id is not None:
            where["user_id"] = user_id
        if "status" in asked:
            where["state"] = asked["status"]
        found = WarmRun.objects.filter(**where)
        return Response(pages.page(request, asked, found.count(), lambda first, last: found[first:last], shown))


class OneWarm(Door):
    """One warm."""

    @operation("warm_status", "How far a warm is", {200: WarmShown}, path=("run_id",))
    def get(self, request: Request, run_id: str) -> Response:
        """Its state."""
        bodies.query(request, bodies.NOTHING)
        where: dict[str, Any] = {"project_id": self.caller.project}
        if self.caller.user_id is not None:
            where["user_id"] = self.caller.user_id
        run = WarmRun.objects.filter(run_id=run_id, **where).first() if is_uuid(run_id) else None
        if run is None:
            raise NotFound("There is no warm with this id.")
        return Response(shown(run))


def _learned(scope: Scope) -> Iterator[exports.Line]:
    """The questions that a user asks often."""
    for row in LearnedQuery.objects.filter(project_id=scope.project, user_id=scope.user_id).order_by("-weight"):
        yield {"type": "question", "query": row.query}


def shown(run: WarmRun) -> dict[str, Any]:
    """A warm as the API shows it."""
    return {
        "run_id": str(run.run_id),
        "user_id": run.user_id,
        "reason": run.reason,
        "status": run.state,
        "step": run.step or None,
        "attempts": run.attempts,
        "error": run.error or None,
        "version": f"user:{run.version}" if run.version is not None else None,
        "due_at": run.due_at,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "milliseconds": run.milliseconds,
    }


urlpatterns = [
    route(f"users/{USER}/warm", Warm, "user-warm"),
    route(f"users/{USER}/export", Export, "user-export"),
    route("warms", Warms, "warms"),
    route(r"warms/(?P<run_id>[^/]+)", OneWarm, "warm"),
]
