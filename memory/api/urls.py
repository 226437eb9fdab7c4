"""The native routes of memories, users and jobs. An id in a path is any text: it may hold slashes, and nothing is
normalised. A slash at the end is the same route, but where the path ends in such an id: there it is the id's."""

from __future__ import annotations

from django.urls import URLPattern, re_path
from rest_framework.views import APIView

from memory.api import native, sessions, stats, users

MEMORY = r"(?P<memory_id>[^/]+)"
SESSION = r"(?P<session_id>[\s\S]+)"
ERASURE = r"(?P<erasure_id>[^/]+)"
JOB = r"(?P<job_id>[^/]+)"
USER = r"(?P<user_id>[\s\S]*)"


def route(pattern: str, view: type[APIView], name: str) -> URLPattern:
    """A path with or without a slash at its end."""
    return re_path(rf"^{pattern}/?\Z", view.as_view(), name=name)


urlpatterns = [
    route("memory/add", native.Add, "memory-add"),
    route("memory/extract", native.Extract, "memory-extract"),
    route("memory/import", native.Import, "memory-import"),
    route("memory/search", native.Search, "memory-search"),
    route(f"memory/{MEMORY}/history", native.History, "memory-history"),
    route(f"memory/{MEMORY}", native.OneMemory, "memory"),
    route(f"users/{USER}/summary", users.Summary, "user-summary"),
    route(f"users/{USER}/memories", users.Memories, "user-memories"),
    route(f"users/{USER}/invalidate", users.Invalidate, "user-invalidate"),
    route(f"erasures/{ERASURE}", users.OneErasure, "erasure"),
    route("stm/add_message", sessions.AddMessage, "stm-add-message"),
    route(f"stm/{SESSION}/context", sessions.Context, "stm-context"),
    route(f"stm/{SESSION}", sessions.OneSession, "stm-session"),
    route("jobs", users.Jobs, "jobs"),
    route(f"jobs/{JOB}/status", users.JobStatus, "job-status"),
    route("stats", stats.Stats, "stats"),
]
WHOLE_USER = [route(f"users/{USER}", users.OneUser, "user")]
"""Last of all routes: an id may be any text, also what follows one elsewhere. Not with a slash at its end, though."""


def tidy(endpoints: list[tuple[str, str, str, object]]) -> list[tuple[str, str, str, object]]:
    """For the schema: each path once, without the slash at its end that a route also takes."""
    return [(path.rstrip("/"), regex, method, view) for path, regex, method, view in endpoints]
