"""A project's policies as each process knows them: never older than a second while PostgreSQL answers (PROTOCOL B5)."""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass, field, replace
from functools import cached_property

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.db.models import F

from memory import clock, versions
from memory.errors import DatabaseUnavailable
from memory.models import Project
from memory.tenancy import upstreams
from memory.types import Ranking

FRESH_SECONDS = 1.0
AWAY_SECONDS = 300.0
"""How long a process works with what it knew of a project when PostgreSQL went away."""
SHAPES_ANSWERS = ("local_search", "local_ranking")
MOVES_HOUSE = ("upstream_url", "upstream_key")


@dataclass(frozen=True)
class Policy:
    """What the read and write paths need to know of a project."""

    id: int
    slug: str
    namespace: str
    generation: int
    local_search: str
    local_ranking: str
    on_unknown: str
    extract_on: str
    extract_every_turns: int
    backlog_max_jobs: int
    backlog_max_bytes: int
    upstream_url: str = ""
    upstream_key: str = field(default="", repr=False)
    believed: bool = True
    """False where it is so old that the generation may have moved: then no version is known (PROTOCOL B5)."""

    @property
    def ranking(self) -> Ranking:
        """What an answer ranked here says of its ranking."""
        return "hybrid" if self.local_ranking == "hybrid" else "local"

    @property
    def reranks(self) -> bool:
        """Whether what Mem0 finds is ranked again: only where all of a project's answers may be ranked here."""
        return self.local_search == "on" and self.local_ranking == "hybrid"

    @cached_property
    def served(self) -> tuple[Ranking, ...]:
        """The rankings whose answers may be served from a cache (PROTOCOL C3)."""
        if self.local_search != "on":
            return ("upstream",)
        return ("upstream", self.ranking, "reranked") if self.reranks else ("upstream", self.ranking)


_known: dict[int, tuple[Policy, float]] = {}
_lock = threading.Lock()


def policy(project_id: int) -> Policy:
    """The project's policy. While PostgreSQL is away the last one serves, its generation believed for as long as a
    version's lease would be.

    Project.DoesNotExist for an unknown id; DatabaseUnavailable when there is none to serve.
    """
    if (fresh := known(project_id)) is not None:
        return fresh
    last = _known.get(project_id)
    asked = clock.now()
    try:
        found = _read(Project.objects.get(pk=project_id))
    except DatabaseError as error:
        if last is not None and asked - last[1] < max(AWAY_SECONDS, settings.VERSION_LEASE_SECONDS):
            return replace(last[0], believed=asked - last[1] < settings.VERSION_LEASE_SECONDS)
        raise DatabaseUnavailable("the project's policies cannot be read") from error
    with _lock:
        _known[project_id] = (found, asked)
    return found


def known(project_id: int) -> Policy | None:
    """The project's policy, where `policy` would not have to ask; None otherwise."""
    kept = _known.get(project_id)
    return kept[0] if kept is not None and clock.now() - kept[1] < FRESH_SECONDS else None


def save(project: Project) -> None:
    """Keep a project as a person made or changed it. A change that shapes answers moves its generation (PROTOCOL B5),
    within FRESH_SECONDS in every process; another Mem0 its versions too, so that nothing of the former is served. A new
    project, unless it is the first, gets ids of its own in Mem0. ValueError for an upstream it may not have."""
    if project.upstream_url:
        upstreams.check(project.upstream_url)
    with transaction.atomic():
        if project.pk is None:
            project.namespace = _free_namespace(project.slug)
        else:
            stands = Project.objects.select_for_update().get(pk=project.pk)
            changed = any(getattr(stands, name) != getattr(project, name) for name in SHAPES_ANSWERS)
            moved = any(getattr(stands, name) != getattr(project, name) for name in MOVES_HOUSE)
            if moved:
                versions.move_all(project.pk)
            project.generation = stands.generation + (changed or moved)
        project.save()


def move_generation(project_id: int) -> None:
    """Make every key of the project unreachable, within FRESH_SECONDS in every process (PROTOCOL B5)."""
    Project.objects.filter(pk=project_id).update(generation=F("generation") + 1)


def follow_settings() -> int:
    """Make unreachable what was cached from another Mem0, or with another embedder, than the settings name now:
    generation and versions move (PROTOCOL B5). How many projects that concerned. Called before the processes start."""
    origin = hashlib.sha256("\n".join(map(str, _origin_settings())).encode()).hexdigest()
    moved = 0
    for project in Project.objects.exclude(origin=origin):
        with transaction.atomic():
            if project.origin:
                versions.move_all(project.pk)
                move_generation(project.pk)
                moved += 1
            Project.objects.filter(pk=project.pk).update(origin=origin)
    forget()
    return moved


def _origin_settings() -> tuple[object, ...]:
    rest = settings.MEM0_USE_REST_API
    upstream = settings.MEM0_REST_API_URL if rest else settings.MEM0_COLLECTION
    remote = settings.EMBEDDER == "openai"
    model = (settings.EMBEDDER_URL, settings.EMBEDDER_MODEL, settings.EMBEDDER_DIMENSIONS) if remote else ()
    return (rest, upstream, settings.EMBEDDER, *model)


def forget() -> None:
    """Read every policy again at its next use."""
    with _lock:
        _known.clear()


def _free_namespace(slug: str) -> str:
    """Never one of before: whoever had it may have left memories in Mem0. Two at a time can't both be the first."""
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE memory_project IN SHARE ROW EXCLUSIVE MODE")
    return f"{slug[:20]}-{secrets.token_hex(4)}" if Project.objects.exists() else ""


def _read(project: Project) -> Policy:
    return Policy(
        id=project.pk,
        slug=project.slug,
        namespace=project.namespace,
        generation=project.generation,
        # What ranks like the service's own Mem0 need not rank like another.
        local_search=project.local_search or ("degraded" if project.upstream_url else settings.LOCAL_SEARCH),
        local_ranking=project.local_ranking or settings.LOCAL_RANKING,
        on_unknown=project.on_unknown,
        extract_on=project.extract_on,
        extract_every_turns=project.extract_every_turns,
        backlog_max_jobs=project.backlog_max_jobs or settings.BACKLOG_MAX_JOBS,
        backlog_max_bytes=project.backlog_max_bytes or settings.BACKLOG_MAX_BYTES,
        upstream_url=project.upstream_url,
        upstream_key=project.upstream_key,
    )
