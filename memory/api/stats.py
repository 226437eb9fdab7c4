"""A project's counters over HTTP."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db.models import Count
from rest_framework.request import Request
from rest_framework.response import Response

from memory import stack, upkeep, watchdog
from memory.api import bodies
from memory.api import serializers as shown
from memory.api.documented import operation
from memory.api.native import Door
from memory.models import Job, Project
from memory.tenancy.auth import admit

Totals = dict[str, dict[str, int]]


class Stats(Door):
    """What the project's caches have done."""

    @operation("stats", "Counters of the project over all processes", {200: shown.Stats})
    def get(self, request: Request) -> Response:
        """The totals; other processes' counts arrive within a second."""
        bodies.query(request, bodies.NOTHING)
        admit(self.caller, None)
        upkeep.flush_counts()
        return Response(report(self.caller.project) | {"watchdog": watchdog.read(self.caller.project).shown()})


def report(project_id: int) -> dict[str, Any]:
    """A project's counters since it was made, with a zero for what has not happened yet."""
    totals = upkeep.totals(project_id)
    states = Job.objects.filter(project_id=project_id).order_by().values_list("state").annotate(n=Count("number"))
    return {
        "since": Project.objects.values_list("created_at", flat=True).get(pk=project_id),
        "searches": dict.fromkeys(shown.LAYERS, 0) | _by(totals, "searches", "layer"),
        "upstream_calls": _by(totals, "upstream_calls", "kind"),
        "upstream_errors": _by(totals, "upstream_errors", "code"),
        "embeddings": dict.fromkeys(("hit", "computed", "error"), 0) | _by(totals, "embeddings", "outcome"),
        "warms": _by(totals, "warms", "outcome"),
        "jobs": dict.fromkeys(shown.STATES, 0) | dict(states),
        "lookups": _lookups(totals),
        "upstream": stack.upstream(),
        "degraded": _by(totals, "degraded", "reason"),
        "attempts": _by(totals, "attempts", "outcome"),
        **{name: sum(totals.get(name, {}).values()) for name in _PLAIN},
    }


_PLAIN = ("loads_joined", "surplus_removed", "rebuild_differences")


def _by(totals: Totals, metric: str, label: str) -> dict[str, int]:
    """A metric's totals by one of its labels."""
    found: Counter[str] = Counter()
    for labels, total in totals.get(metric, {}).items():
        found[_label(labels, label)] += total
    return dict(found)


def _lookups(totals: Totals) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for labels, total in totals.get("lookups", {}).items():
        found.setdefault(_label(labels, "layer"), {})[_label(labels, "outcome")] = total
    return found


def _label(labels: str, name: str) -> str:
    return dict(pair.split("=", 1) for pair in labels.split(","))[name]
