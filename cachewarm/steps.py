"""What each step of a warm does, for one user or many. All are idempotent; each after L3 begins by looking whether the
version is current. A step says of each run how it went, or with what error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from django.conf import settings

from cachewarm import runs, summarise, unchanged, warmset
from cachewarm.models import WarmRun
from memory import clock, db, embedders, metrics, stack, versions
from memory.backends import gate
from memory.clock import Deadline
from memory.embedders.base import Vectors
from memory.layers.base import encode
from memory.layers.l1_vectors import CachedEmbedder
from memory.read import ask_mem0
from memory.tenancy.projects import Policy
from memory.tenancy.projects import policy as policy_of
from memory.types import Entry, Query, Scope, Version

log = logging.getLogger(__name__)

CHUNK = 16
"""Users whose entries are one round trip to L2: about 0.8 MB, well within Redis's time-out."""

Outcomes = list[str | Exception]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a warm may ask of Mem0: so many searches, each call after `pace()` has let it."""

    searches: int
    pace: Callable[[], None] = lambda: None


def limits() -> Limits:
    """Those of a warm after a write or by hand."""
    return Limits(settings.WARM_UPSTREAM_BUDGET)


def summaries(batch: Sequence[WarmRun], allowed: Limits) -> Outcomes:
    """L4 → L3. An overtaken reading is saved all the same, then the run says so (PROTOCOL C4)."""
    for run in batch:
        log.info(
            "Updating favorite cache for user_id=%s", run.user_id, extra={"user_id": run.user_id, "reason": run.reason}
        )
    found = summarise.summarise([run.scope for run in batch], allowed.pace)
    saved = []
    for run in batch:
        outcome = found[run.scope]
        if isinstance(outcome, summarise.Outcome):
            run.version = outcome.version
            saved += [run] if outcome.saved else []
    runs.step_ended(saved, "L3")
    current = _current(saved)
    return [
        one if isinstance(one := found[run.scope], Exception) else "L3" if run in current else "superseded"
        for run in batch
    ]


def results(batch: Sequence[WarmRun], allowed: Limits) -> Outcomes:
    """L3 → L2: the warm set's answers, ranked here where the policy lets them be, else searched within the budget."""
    current = _current(batch)
    for project, mine in _by_project(current):
        rules = policy_of(project)
        asked = warmset.of_each(project, [run.scope for run in mine])
        vectors = _embed(project, [query for queries in asked.values() for query in queries])
        kept: dict[Scope, tuple[int, list[str], int]] = {}
        for start in range(0, len(mine), CHUNK):
            chunk = {run.scope: current[run] for run in mine[start : start + CHUNK]}
            wanted = {scope: (version, asked[scope]) for scope, version in chunk.items()}
            kept |= _fill(wanted, vectors, rules, allowed)
        unchanged.note(rules, kept)
    runs.step_ended(list(current), "L2")
    return ["L2" if run in current else "superseded" for run in batch]


def vectors(batch: Sequence[WarmRun]) -> Outcomes:
    """L2 → L1: renew the warm set's query vectors, make those that are missing."""
    current = _current(batch)
    for project, mine in _by_project(current):
        asked = warmset.of_each(project, [run.scope for run in mine])
        _embed(project, [query for queries in asked.values() for query in queries])
    runs.step_ended(list(current), "L1")
    return ["L1" if run in current else "superseded" for run in batch]


def record(batch: Sequence[WarmRun]) -> Outcomes:
    """Every step has ended: the users are warm, and so are the jobs up to these versions."""
    current = _current(batch)
    for run in current:
        run.step = "record"
    return ["completed" if run in current else "superseded" for run in batch]


def _fill(
    wanted: Mapping[Scope, tuple[Version, Sequence[Query]]],
    vectors: Mapping[str, Vectors],
    rules: Policy,
    allowed: Limits,
) -> dict[Scope, tuple[int, list[str], int]]:
    """Put some users' answers into L2; of those who have them all the version, which they are, and the milliseconds
    that all will be there."""
    stack.L3.hold(rules.id, {scope.user_id or "": version.number for scope, (version, _) in wanted.items()})
    began, store_now = clock.now(), stack.L2.now()
    filled: dict[Scope, list[tuple[str, Entry]]] = {}
    held: dict[Scope, list[int]] = {}
    for scope, (version, queries) in wanted.items():
        ranked = list(zip(queries, stack.L3.get_each(scope, queries, version, rules, vectors, store_now), strict=True))
        filled[scope] = [(query.fingerprint, entry) for query, entry in ranked if entry is not None]
        if left := _searchable(scope, [query for query, entry in ranked if entry is None], rules):
            held[scope], searched = _search_each(scope, left, version, rules, allowed)
            filled[scope] += [(name, replace(entry, as_of=store_now)) for name, entry in searched]
    at_last = stack.L2.now() if held else store_now  # searches take their time
    kept = stack.L2.fill({scope.pin: entries for scope, entries in filled.items()}, rules.generation, at_last)
    lives = {scope: [*held.get(scope, []), *kept[scope.pin]] for scope in wanted}
    stored = sum(life > 0 for each in kept.values() for life in each)
    metrics.count("fills", stored, project=rules.id, layer="L2", outcome="stored")
    spent = int((clock.now() - began) * 1000)
    return {
        scope: (version.number, [query.fingerprint for query in queries], min(lives[scope]) - spent)
        for scope, (version, queries) in wanted.items()
        if queries and len(lives[scope]) == len(queries) and min(lives[scope])
    }


def _searchable(scope: Scope, queries: Sequence[Query], rules: Policy) -> Sequence[Query]:
    """Of what L3 did not answer, what the user comes back to (see 0020)."""
    return warmset.again(scope, queries) if queries and rules.local_search == "on" else queries


def _search_each(
    scope: Scope, queries: Sequence[Query], version: Version, rules: Policy, allowed: Limits
) -> tuple[list[int], list[tuple[str, Entry]]]:
    """What L3 could not answer: how long what is in L2 already will be there, and what was searched for the rest."""
    lives = unchanged.lives(rules, [(scope, version.number, [query.fingerprint for query in queries])])[0]
    missing = [query for query, life in zip(queries, lives, strict=True) if not unchanged.lasts(life)]
    found = []
    for query in missing[: allowed.searches]:
        allowed.pace()
        asked = replace(query, scope=replace(query.scope, user_id=scope.user_id))
        found.append((query.fingerprint, _search(asked, version, rules)))
    return [life for life in lives if unchanged.lasts(life)], found


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
    texts = list({query.text: None for query in queries})
    return dict(zip(texts, CachedEmbedder(embedder, project_id).embed(texts, "search"), strict=True))


def _current(batch: Sequence[WarmRun]) -> dict[WarmRun, Version]:
    """The runs at whose version PostgreSQL has none newer."""
    stored = versions.stored_each([run.scope.pin for run in batch]) if batch else {}
    found = {run: stored[run.scope.pin] for run in batch}
    return {run: version for run, version in found.items() if version.number == run.version}


def _by_project(batch: Mapping[WarmRun, Version]) -> Iterator[tuple[int, list[WarmRun]]]:
    for project in dict.fromkeys(run.project_id for run in batch):
        yield project, [run for run in batch if run.project_id == project]
