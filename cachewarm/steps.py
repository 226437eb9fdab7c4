"""What each step of a warm does. All are idempotent; each after L3 begins by looking whether the version is current."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from django.conf import settings

from cachewarm import runs, summarise, warmset
from cachewarm.models import WarmRun
from memory import db, embedders, metrics, stack, versions
from memory.backends import gate
from memory.clock import Deadline
from memory.embedders.base import Vectors
from memory.layers.base import encode
from memory.layers.l1_vectors import CachedEmbedder
from memory.read import ask_mem0, served
from memory.tenancy.projects import Policy
from memory.tenancy.projects import policy as policy_of
from memory.types import Entry, Query, Scope, Version

log = logging.getLogger(__name__)

CHUNK = 64
"""Entries of one round trip to L2: about 0.3 MB, well within Redis's time-out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a warm may ask of Mem0: so many searches, each call after `pace()` has let it."""

    searches: int
    pace: Callable[[], None] = lambda: None


def limits() -> Limits:
    """Those of a warm after a write or by hand."""
    return Limits(settings.WARM_UPSTREAM_BUDGET)


def summaries(run: WarmRun, allowed: Limits) -> str:
    """L4 → L3. An overtaken reading is saved all the same, then the run says so (PROTOCOL C4)."""
    log.info(
        "Updating favorite cache for user_id=%s", run.user_id, extra={"user_id": run.user_id, "reason": run.reason}
    )
    allowed.pace()
    outcome = summarise.summarise(run.project_id, run.user_id)
    run.version = outcome.version
    if outcome.saved:
        runs.step_ended(run, "L3")
    return "L3" if outcome.saved and _current(run) is not None else "superseded"


def results(run: WarmRun, allowed: Limits) -> str:
    """L3 → L2: the warm set's answers, ranked here where the policy lets them be, else searched within the budget."""
    version = _current(run)
    if version is None:
        return "superseded"
    rules = policy_of(run.project_id)
    queries = warmset.of(_scope(run))
    asked = _embed(run.project_id, queries)
    missing = [query for query, warm in zip(queries, warm_now(queries, version, rules), strict=True) if not warm]
    store_now = stack.L2.fetch(queries[0], rules.generation).store_now if missing else 0
    filled = []
    searches = 0
    for query in missing:
        entry = stack.L3.get(query, version, rules, vector=asked.get(query.text))
        if entry is None and searches < allowed.searches:
            searches += 1
            allowed.pace()
            entry = _search(query, version, rules)
        if entry is not None:
            filled.append((query, replace(entry, as_of=store_now)))
    for start in range(0, len(filled), CHUNK):
        kept = stack.L2.put_many(filled[start : start + CHUNK], rules.generation, store_now)
        metrics.count("fills", sum(kept), project=rules.id, layer="L2", outcome="stored")
    runs.step_ended(run, "L2")
    return "L2"


def vectors(run: WarmRun) -> str:
    """L2 → L1: renew the warm set's query vectors, make those that are missing."""
    if _current(run) is None:
        return "superseded"
    _embed(run.project_id, warmset.of(_scope(run)))
    runs.step_ended(run, "L1")
    return "L1"


def record(run: WarmRun) -> str:
    """Every step has ended: the user is warm, and so are the jobs up to this version."""
    if _current(run) is None:
        return "superseded"
    run.step = "record"
    return "completed"


def warm_now(queries: Sequence[Query], version: Version, rules: Policy) -> list[bool]:
    """Whether each question's answer is in L2 at this version, for longer than until the next rebuild."""
    if not queries:
        return []
    least = settings.REBUILD_PERIOD_SECONDS * 1000
    store_now = stack.L2.fetch(queries[0], rules.generation).store_now
    held = stack.L2.peek(queries, rules.generation)
    return [entry is not None and left > least and _lasts(entry, version, rules, store_now) for entry, left in held]


def _lasts(entry: Entry, version: Version, rules: Policy, store_now: int) -> bool:
    until = store_now + settings.REBUILD_PERIOD_SECONDS * 1_000_000
    return served(entry, rules) and entry.version == version.number and not 0 < entry.valid_until < until


def _search(query: Query, version: Version, rules: Policy) -> Entry:
    db.release()
    with gate.warming():
        found, ranking = ask_mem0(query, rules, Deadline.after(settings.MEM0_REST_API_TIMEOUT))
    return encode(found, version=version.number, as_of=0, ranking=ranking)


def _embed(project_id: int, queries: Sequence[Query]) -> dict[str, Vectors]:
    """The vectors of the questions by text, in L1 from now on; none where ranking goes by words."""
    embedder = embedders.get()
    if embedder is None:
        return {}
    db.release()
    texts = [query.text for query in queries]
    return dict(zip(texts, CachedEmbedder(embedder, project_id).embed(texts, "search"), strict=True))


def _current(run: WarmRun) -> Version | None:
    """The run's version if PostgreSQL has none newer."""
    version = versions.stored(_scope(run).pin)
    return version if version.number == run.version else None


def _scope(run: WarmRun) -> Scope:
    return Scope(run.project_id, run.user_id)
