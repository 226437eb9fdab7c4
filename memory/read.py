"""The read path: version → L0 → L2 → L3 → L4, then fill what missed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from functools import partial
from typing import Any, TypeGuard, TypeVar

from django.conf import settings

from memory import bulkhead, clock, db, flights, metrics, pending, rank, refreshing, signals, stack, versions
from memory.clock import Deadline
from memory.embedders.base import patience
from memory.errors import DatabaseUnavailable, LayerError, MemsvcError, OriginError
from memory.layers.base import encode, expired
from memory.layers.l0_process import Held
from memory.layers.l2_results import Trip
from memory.pending import Pending
from memory.tenancy.projects import Policy
from memory.types import Answer, Consistency, Entry, Memory, Query, Ranking, Scope, Version

log = logging.getLogger(__name__)
T = TypeVar("T")


class VersionBehind(MemsvcError):
    """`min_version` is newer than anything PostgreSQL knows (PROTOCOL B11)."""

    code = "version_unknown"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of freshness: DESIGN 4's contract, one field each."""

    consistency: Consistency = "strict"
    max_age_ms: int = 0
    min_version: int = 0


STRICT = Wish()
REFRESH_SECONDS = 10.0
"""What a search in the background may take."""
SPARE_PART, SPARE_SECONDS = 0.1, 0.2
"""Of a deadline, what is kept from Mem0 to fall back on a copy in."""


_TRIP = Trip(None, None, None, 0, 0.0)


def trip(query: Query, policy: Policy, also: Sequence[str] = ()) -> Trip | None:
    """The one round trip of a search, with the keys `also` in it; None without Redis, or a generation to believe."""
    if not policy.believed:
        return None
    return _lookup("L2", policy, lambda: stack.L2.fetch(query, policy.generation, also))


def still_current(query: Query, policy: Policy, wish: Wish) -> Answer | None:
    """What L0 answers with nothing on its way to Mem0, its version read in a round trip that brings nothing else; None
    where it does not, and then nothing is counted."""
    kept = stack.L0.any(query, policy.generation) if policy.believed and wish.consistency != "fresh" else None
    if kept is None or not served(kept.entry, policy):
        return None
    try:
        unstored, version = stack.L2.state(query.slot[0], policy.generation)
    except LayerError:
        return None
    if unstored is None or unstored.of(query.scope) or not _new_enough(version, wish):
        return None
    if stack.L0.get(query, version, policy.generation) is not kept:
        return None
    metrics.add(_looked(policy.id, "L0 hit"))
    return _counted(Answer(kept.entry, version, "L0", age_ms=kept.age_ms, pending=unstored), policy)


def at_hand(query: Query, policy: Policy, trip: Trip, wish: Wish) -> Answer | None:
    """What L0 or L2 answer at the round trip's version, pending set and all, without waiting for anything; None where
    they do not, and then nothing is counted."""
    version = trip.version
    if wish.consistency == "fresh" or trip.pending is None or not _new_enough(version, wish):
        return None
    found = _held(query, policy, version, trip)
    return _counted(found, policy) if found else None


def search(
    query: Query,
    policy: Policy,
    deadline: Deadline,
    wish: Wish = STRICT,
    taken: Trip | None = _TRIP,
) -> Answer:
    """The best memories for a query, from the first layer that has them current; `taken` is the round trip where the
    caller has made it.

    OriginError when Mem0 had to be asked and no copy may stand in; Overloaded when too many calls wait already;
    VersionBehind; DatabaseUnavailable when neither version nor Mem0 can be had.
    """
    if (quick := bounded(query, policy, wish)) is not None:
        return quick
    with db.patience(until=deadline.at):
        made = trip(query, policy) if taken is _TRIP else taken
        unstored, version = _state(query, policy, made, wish)
        answer = _answer(query, policy, version, made, deadline, wish)
    return _counted(answer._replace(pending=unstored), policy)


def _answer(
    query: Query,
    policy: Policy,
    version: Version | None,
    trip: Trip | None,
    deadline: Deadline,
    wish: Wish,
) -> Answer:
    if version is None:
        return _uncached(query, policy, deadline, wish)
    if wish.consistency != "fresh" and (answer := _cached(query, policy, version, trip, wish, deadline)):
        return answer
    try:
        answer = _load(query, policy, version, trip, _spared(deadline), shared=wish.consistency != "fresh")
    except OriginError as error:
        return _degraded(query, policy, version, trip, deadline, error)
    signals.loaded.send(sender=None, query=query, count=answer.entry.count)
    return answer


def ask_mem0(query: Query, policy: Policy, deadline: Deadline) -> tuple[list[Memory], Ranking]:
    """What Mem0 finds, and who ranked it: under `hybrid` the candidates of one call are ranked again, by the scores
    Mem0 gave them and their words. OriginError."""
    if not policy.reranks:
        return stack.backend(policy).search(query, deadline), "upstream"
    wide = replace(query, top_k=max(query.top_k, rank.POOL_LEAST))
    found = stack.backend(policy).search(wide, deadline)
    ranked = rank.again(query.text, [(memory.text, memory.score or 0.0) for memory in found], query.top_k)
    return [replace(found[index], score=score) for index, score in ranked], "reranked"


def memories(scope: Scope, policy: Policy, deadline: Deadline) -> tuple[list[Memory], str, bool]:
    """Every memory of a scope, newest first, the layer that told, and whether they are all: L3 if complete at the
    current version, else Mem0. OriginError, Overloaded."""
    known = None
    if scope.user_id is not None:
        version = _quietly(lambda: versions.current(scope.pin, policy.generation))
        if version is not None:
            known = _lookup("L3", policy, lambda: stack.L3.listing(scope, version))
    if known is not None:
        return _newest_first(known), "L3", True
    db.release()
    with bulkhead.waiting():
        listing = stack.backend(policy).list(scope, deadline)
    return _newest_first(listing.memories), "L4", listing.complete


def get(memory_id: str, policy: Policy, deadline: Deadline) -> Memory | None:
    """One memory of the project, asked of Mem0. OriginError, Overloaded."""
    db.release()
    with bulkhead.waiting():
        return stack.backend(policy).get(memory_id, deadline)


def history(memory_id: str, policy: Policy, deadline: Deadline) -> list[dict[str, object]]:
    """What happened to one memory, oldest first; the caller has made sure that it is the project's."""
    db.release()
    with bulkhead.waiting():
        return stack.backend(policy).history(memory_id, deadline)


def entities(policy: Policy, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
    """The ids that have memories, as [{type, id, total_memories}], and whether they are all, asked of Mem0.

    OriginError, Overloaded."""
    db.release()
    with bulkhead.waiting():
        return stack.backend(policy).entities(deadline)


def bounded(query: Query, policy: Policy, wish: Wish) -> Answer | None:
    """For `bounded`: an L0 answer whose version was confirmed recently enough, with no round trip (PROTOCOL B12)."""
    if wish.consistency != "bounded":
        return None
    held = _confirmed(query, policy, wish.max_age_ms)
    if held is None or held.entry.version < wish.min_version:
        return None
    version = Version(query.scope.pin, held.entry.version, 0, held.confirmed_at)
    return _counted(Answer(held.entry, version, "L0", age_ms=held.age_ms), policy)


def _new_enough(version: Version | None, wish: Wish) -> TypeGuard[Version]:
    """Whether the caller knows of no later version than this (PROTOCOL B11)."""
    return version is not None and version.number >= wish.min_version


def _confirmed(query: Query, policy: Policy, milliseconds: int) -> Held | None:
    """What L0 holds at a version that was the current one so lately: nothing in it is below a later floor."""
    held = stack.L0.any(query, policy.generation) if policy.believed else None
    if held is None or (clock.now() - held.confirmed_at) * 1000 > milliseconds or not served(held.entry, policy):
        return None
    return held


def _state(query: Query, policy: Policy, trip: Trip | None, wish: Wish) -> tuple[Pending | None, Version | None]:
    """What is on its way, then the version to answer at: in this order (PROTOCOL C1), and both before any look-up (B8).
    None where neither store can tell."""
    pin = query.scope.pin
    unstored: Pending | None
    version: Version | None
    if not policy.believed:
        return None, None
    if trip is not None and trip.pending is not None and trip.version is not None:
        unstored, version = trip.pending, trip.version
    elif trip is not None and trip.pending is None and trip.version is None:
        unstored, version = _quietly(lambda: pending.with_version(pin, policy.generation)) or (None, None)
    else:
        unstored = _quietly(lambda: pending.current(pin, policy.generation))
        known = trip.version if trip and unstored is None else None  # nothing was read after it
        version = known or _quietly(lambda: versions.current(pin, policy.generation))
    if version is not None and version.number < wish.min_version:
        version = _quietly(lambda: versions.stored(pin))
        if version is not None and version.number < wish.min_version:
            raise VersionBehind(f"the latest version is {version}")
    return unstored, version


def _cached(
    query: Query, policy: Policy, version: Version, trip: Trip | None, wish: Wish, deadline: Deadline
) -> Answer | None:
    """The answer of the first layer that is current; for `eventual`, also a copy a little behind."""
    if (found := _held(query, policy, version, trip)) is not None:
        return found
    metrics.add(_looked(policy.id, "L0 miss", "L2 miss"))
    if wish.consistency == "eventual" and (old := _behind(query, policy, version, trip, wish)) is not None:
        refreshing.begin((query, policy.generation), lambda: _refresh(query, policy))
        return old
    with patience(until=_halfway(deadline)):
        local = _lookup("L3", policy, lambda: stack.L3.get(query, version, policy))
    metrics.count("lookups", project=policy.id, layer="L3", outcome="miss" if local is None else "hit")
    if local is None:
        return None
    entry = _dated(local, trip)
    _fill(query, entry, version, policy, trip)
    signals.loaded.send(sender=None, query=query, count=entry.count)
    return Answer(entry, version, "L3", age_ms=_age_ms(entry, trip))


def _held(query: Query, policy: Policy, version: Version, trip: Trip | None) -> Answer | None:
    """What L0, or else L2, holds at this very version; counted if one does."""
    unstored = trip.pending if trip else None
    held = stack.L0.get(query, version, policy.generation)
    if held is not None and served(held.entry, policy):
        metrics.add(_looked(policy.id, "L0 hit"))
        return Answer(held.entry, version, "L0", age_ms=held.age_ms, pending=unstored)
    copy = _copy(trip, policy)
    if copy is not None and copy.version == version.number:
        metrics.add(_looked(policy.id, "L0 miss", "L2 hit"))
        stack.L0.put(query, copy, version, policy.generation, _store_now(trip))
        return Answer(copy, version, "L2", age_ms=_age_ms(copy, trip), pending=unstored)
    return None


def _behind(query: Query, policy: Policy, version: Version, trip: Trip | None, wish: Wish) -> Answer | None:
    """For `eventual`: the newest copy that is not below the floor, nor older than EVENTUAL_MAX_STALE_SECONDS."""
    copy = _copy(trip, policy)
    found = [] if copy is None else [(copy, "L2", _age_ms(copy, trip))]
    held = stack.L0.any(query, policy.generation)
    if held is not None and served(held.entry, policy):
        found.append((held.entry, "L0", held.age_ms))
    oldest = settings.EVENTUAL_MAX_STALE_SECONDS * 1000
    least = max(version.floor, wish.min_version)
    allowed = [one for one in found if one[0].version >= least and one[2] <= oldest]
    if not allowed:
        return None
    entry, layer, age = max(allowed, key=lambda one: one[0].version)
    return Answer(entry, version, layer, stale=True, reason="eventual", age_ms=age)


def _refresh(query: Query, policy: Policy) -> None:
    """Fill the layers behind an answer that was a little old, as the next strict search would."""
    deadline = Deadline.after(REFRESH_SECONDS)
    with db.patience(until=deadline.at):
        made = trip(query, policy)
        _, version = _state(query, policy, made, STRICT)
        if version is not None:
            _answer(query, policy, version, made, deadline, STRICT)


def _load(
    query: Query, policy: Policy, version: Version, trip: Trip | None, deadline: Deadline, *, shared: bool
) -> Answer:
    """Ask Mem0, once for all who ask the same at the same version, and fill the layers that missed."""

    def ask() -> Entry:
        found, ranking = ask_mem0(query, policy, deadline)
        entry = encode(found, version=version.number, as_of=_began(trip), ranking=ranking)
        _fill(query, entry, version, policy, trip)
        return entry

    def ask_once() -> tuple[Entry, bool]:
        if trip is None:
            return ask(), True
        good = partial(_good, policy=policy, trip=trip)
        entry, here = stack.L2.load_once(query, version.number, policy.generation, ask, good, deadline)
        if not here:
            stack.L0.put(query, entry, version, policy.generation, _store_now(trip))
        return entry, here

    db.release()
    with bulkhead.waiting():
        if not shared:
            return Answer(ask(), version, "L4", upstream_calls=1)
        key = (query, version.number, policy.generation)
        (entry, here), led = flights.join(key, ask_once, deadline, policy.id)
    return Answer(entry, version, "L4", upstream_calls=int(led and here))


def _uncached(query: Query, policy: Policy, deadline: Deadline, wish: Wish) -> Answer:
    """The version is unknown, so no layer can be trusted and none is filled. `eventual`, or anybody while Mem0 is away
    too, gets what L0 holds at a version confirmed within BOUNDED_MAX_AGE_MS (PROTOCOL B9)."""
    held = _confirmed(query, policy, settings.BOUNDED_MAX_AGE_MS)
    if held is not None and held.entry.version < wish.min_version:
        held = None
    if held is not None and wish.consistency == "eventual":
        return _unconfirmed(held, policy, "version_unknown")
    asked = _store_now(None)
    db.release()
    try:
        with bulkhead.waiting():
            found, ranking = ask_mem0(query, policy, _spared(deadline))
    except OriginError as error:
        if held is None or not error.retryable:
            raise
        return _unconfirmed(held, policy, error.code)
    entry = encode(found, version=0, as_of=asked, ranking=ranking)
    return Answer(entry, None, "L4", reason="version_unknown", upstream_calls=1)


def _spared(deadline: Deadline) -> Deadline:
    return Deadline(deadline.at - min(SPARE_SECONDS, deadline.remaining() * SPARE_PART))


def _halfway(deadline: Deadline) -> float:
    """Until when a vector may be waited for: whoever gets none asks Mem0, or ranks by words, in the rest."""
    return deadline.at - deadline.remaining() / 2


def _unconfirmed(held: Held, policy: Policy, reason: str) -> Answer:
    metrics.count("degraded", project=policy.id, reason=reason)
    return Answer(held.entry, None, "L0", stale=True, degraded=True, reason=reason, age_ms=held.age_ms)


def _degraded(
    query: Query, policy: Policy, version: Version, trip: Trip | None, deadline: Deadline, error: OriginError
) -> Answer:
    """Mem0 is away: the newest copy above the floor, or L3's own ranking, labelled; else the error itself."""
    copies: list[Answer] = []
    with patience(until=_halfway(deadline)):
        local = _lookup("L3", policy, lambda: stack.L3.degraded(query, version, policy))
    if local is not None:
        entry, partial = local
        copies.append(Answer(entry, version, "L3", age_ms=_age_ms(entry, trip), partial=partial))
    copy = _copy(trip, policy)
    if copy is not None:
        copies.append(Answer(copy, version, "L2", age_ms=_age_ms(copy, trip)))
    held = stack.L0.any(query, policy.generation)
    if held is not None:
        copies.append(Answer(held.entry, version, "L0", age_ms=held.age_ms))
    allowed = [found for found in copies if found.entry.version >= version.floor]
    if not error.retryable or not allowed:
        raise error
    best = max(allowed, key=lambda found: found.entry.version)
    metrics.count("degraded", project=policy.id, reason=error.code)
    return best._replace(stale=best.entry.version < version.number, degraded=True, reason=error.code)


def served(entry: Entry, policy: Policy) -> bool:
    """Whether the project's policy lets an entry be served: one ranked here only where that is on, and as it says
    (PROTOCOL C3)."""
    return entry.ranking in policy.served


def _copy(trip: Trip | None, policy: Policy) -> Entry | None:
    entry = trip.entry if trip else None
    return entry if entry is not None and _good(entry, policy, trip) else None


def _good(entry: Entry, policy: Policy, trip: Trip | None) -> bool:
    """Whether what L2 holds may be served at all, whatever its version."""
    return not expired(entry, _store_now(trip)) and served(entry, policy)


def _fill(query: Query, entry: Entry, version: Version, policy: Policy, trip: Trip | None) -> None:
    now = _store_now(trip)
    stack.L0.put(query, entry, version, policy.generation, now)
    if trip is not None:
        kept = _lookup("L2", policy, lambda: stack.L2.put(query, entry, policy.generation, now))
        metrics.count("fills", project=policy.id, layer="L2", outcome="stored" if kept else "refused")


def _dated(entry: Entry, trip: Trip | None) -> Entry:
    """A local ranking at the current version is as fresh as the reading of that version: this request's start."""
    return replace(entry, as_of=_began(trip))


def _lookup(layer: str, policy: Policy, ask: Callable[[], T]) -> T | None:
    """What a layer answers; a broken layer is a miss, counted."""
    try:
        return ask()
    except LayerError as error:
        metrics.count("lookups", project=policy.id, layer=layer, outcome="error")
        log.warning("layer failed", extra={"layer": error.layer, "reason": error.code})
        return None


def _quietly(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except DatabaseUnavailable:
        return None


def _counted(answer: Answer, policy: Policy) -> Answer:
    metrics.add(_answered(policy.id, answer.layer))
    return answer


@once
def _looked(project: int, *looks: str) -> list[metrics.Key]:
    found = (look.split() for look in looks)
    return [metrics.series(project, "lookups", ("layer", layer), ("outcome", outcome)) for layer, outcome in found]


@once
def _answered(project: int, layer: str) -> list[metrics.Key]:
    return [metrics.series(project, "searches", ("layer", layer))]


def _age_ms(entry: Entry, trip: Trip | None) -> int:
    return max(0, (_store_now(trip) - entry.as_of) // 1000)


def _began(trip: Trip | None) -> int:
    """The store's time before anything was looked up; this host's while Redis is away, when no entry is compared."""
    return trip.store_now if trip else _store_now(None)


def _store_now(trip: Trip | None) -> int:
    return trip.now() if trip else int(clock.wall().timestamp() * 1_000_000)


def _newest_first(found: Iterable[Memory]) -> list[Memory]:
    return sorted(found, key=lambda memory: (memory.created_at or "", memory.id), reverse=True)
