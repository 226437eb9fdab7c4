"""The native search: what Mem0 holds, what it does not hold yet (PROTOCOL C1), and what was said in a session.

With nothing nearer than Mem0 the answer is the entry's stored bytes, untouched. With a session both memories are asked
at once: whatever is at hand answers here, what has to wait does so on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache as once
from functools import partial
from math import inf
from threading import BoundedSemaphore
from typing import Any, NamedTuple, TypeVar

import orjson
from django.conf import settings

from memory import clock, db, merge, metrics, nearness, rank, read, stack
from memory.clock import Deadline
from memory.embedders.base import patience
from memory.errors import DatabaseUnavailable, LayerError, MemsvcError, OriginTimeout
from memory.layers.l0_process import OVERHEAD_BYTES, ByteLRU
from memory.layers.l2_results import Trip
from memory.merge import Near, Weights
from memory.pending import Item
from memory.rank import Rows
from memory.read import STRICT, Wish
from memory.stm import search as session
from memory.stm.search import Found
from memory.tenancy.projects import Policy
from memory.types import Answer, Entry, Memory, Pin, Query

T = TypeVar("T")
Said = tuple[Sequence[Near], str]
"""What a session has to say, and which layer told."""

LEAST_LOOKING = 4
TOGETHER_BYTES = 4 << 20
UNKNOWN_SCORE = 0.5
"""Of a pending fact that shares no word with the question, where no vector can tell how near it is."""


_together: ByteLRU[tuple[tuple[Pin, str], bool], tuple[Entry, Sequence[Near], bytes]] = ByteLRU(TOGETHER_BYTES)
"""The last merger of a question's answer with what a session said: of the very same two it is the same."""


class Recalled(NamedTuple):
    """A search's answer, and the JSON array of what to show of it. With a session, `stm` is the layer that told of it;
    `late` if only its words were looked at, `unavailable` if it could not be read."""

    answer: Answer
    results: bytes
    stm: str | None = None


def search(
    query: Query,
    policy: Policy,
    deadline: Deadline,
    wish: Wish = STRICT,
    *,
    session_id: str | None = None,
    explain: bool = False,
) -> Recalled:
    """The best of what Mem0 has, of what is on its way to it, and of what was said in the session.

    Errors as `read.search`; with a session that has something to say, Mem0's silence is only said in the answer.
    """
    if session_id is None:
        alone = read.search(query, policy, deadline, wish)
        return _merged(query, alone, (), None, explain=explain, until=deadline.at)
    trip = read.trip(query, policy, session.names(session_id, query, policy.generation))
    told = session.cached(session_id, query, policy, trip.also) if trip else None
    by_words = partial(session.look, session_id, query, policy, by_words=True)

    def look() -> Found:
        with patience(deadline.at):
            return session.look(session_id, query, policy)

    if trip is not None and (answer := read.at_hand(query, policy, trip, wish)) is not None:
        return _merged(query, answer, *_told(told, look, by_words), explain=explain, until=deadline.at)
    ltm = _start(lambda: read.search(query, policy, deadline, wish, trip))
    near = _done(told) if told else _begin(look)
    return _first(query, policy, trip, ltm, near, by_words, deadline, explain=explain)


def at_hand(
    query: Query, policy: Policy, wish: Wish, *, session_id: str | None = None, explain: bool = False
) -> Recalled | None:
    """What `search` answers from what is stored, with nothing on its way to Mem0, waiting for nothing but CACHE; None
    where it would do more, and then nothing is counted."""
    if session_id is None:
        quick = read.bounded(query, policy, wish) or read.still_current(query, policy, wish)
        if quick is not None:
            return Recalled(quick, quick.entry.results)
    if not policy.believed:
        return None
    also = session.names(session_id, query, policy.generation) if session_id is not None else ()
    try:
        trip = stack.L2.fetch(query, policy.generation, also)
    except LayerError:
        return None
    if trip.pending is None or trip.pending.of(query.scope):
        return None
    if session_id is None:
        answer = read.at_hand(query, policy, trip, wish)
        return Recalled(answer, answer.entry.results) if answer else None
    told = session.held(session_id, query, policy, trip.also)
    answer = read.at_hand(query, policy, trip, wish) if told is not None else None
    if told is None or answer is None:
        return None
    session.used(told, session_id, query, policy)
    return _merged(query, answer, told.near, told.layer, explain=explain)


def _told(told: Found | None, look: Callable[[], Found], by_words: Callable[[], Found]) -> Said:
    """The session's arm while the other has answered: at most the budget."""
    if told is not None:
        return told.near, told.layer
    arm = _begin(look)
    if arm is not None:
        db.release()
        wait([arm], timeout=_budget())
    return _outcome(arm, by_words)


def _first(
    query: Query,
    policy: Policy,
    trip: Trip | None,
    ltm: Future[Answer],
    near: Future[Found] | None,
    by_words: Callable[[], Found],
    deadline: Deadline,
    *,
    explain: bool,
) -> Recalled:
    """Both arms if they end within the budget; after it the session's, and that Mem0's is late. A session with nothing
    to say is no answer: Mem0 is waited for."""
    db.release()
    arms: list[Future[Any]] = [ltm, near] if near else [ltm]
    wait(arms, timeout=min(_budget(), deadline.remaining()))
    found, stm = _outcome(near, by_words)
    if not found:
        db.release()
        wait([ltm], timeout=deadline.remaining())
    error = ltm.exception() if ltm.done() else OriginTimeout("Mem0 did not answer in time")
    if error is None:
        return _merged(query, ltm.result(), found, stm, explain=explain, until=deadline.at)
    if not found or not (isinstance(error, MemsvcError) and error.retryable):
        raise error
    reason = error.code if ltm.done() else "ltm_late"
    metrics.count("degraded", project=policy.id, reason=reason)
    return _merged(query, _alone(reason, trip), found, stm, explain=explain, until=deadline.at)


def _alone(reason: str, trip: Trip | None) -> Answer:
    """An answer to which Mem0 has said nothing: the session's, labelled."""
    now = trip.now() if trip else int(clock.wall().timestamp() * 1_000_000)
    entry = Entry(b"[]", 0, now, 0, "local", 0)
    return Answer(entry, None, "stm", degraded=True, reason=reason, pending=trip.pending if trip else None)


def _outcome(arm: Future[Found] | None, by_words: Callable[[], Found]) -> Said:
    """What the session's arm found; one that is late goes on for the next search, and words tell in its place."""
    done = arm is not None and arm.done()
    try:
        found = arm.result() if arm is not None and done else by_words()
    except DatabaseUnavailable:
        return (), "unavailable"
    return found.near, found.layer if done else "late"


def _budget() -> float:
    return settings.STM_BUDGET_MS / 1000


def _merged(
    query: Query, answer: Answer, said: Sequence[Near], stm: str | None, *, explain: bool, until: float = inf
) -> Recalled:
    items = answer.pending.of(query.scope) if answer.pending else ()
    if not items and not said:
        return Recalled(answer, answer.entry.results, stm)
    parts, key = (answer.entry, said), (query.slot, explain)
    if not items:
        before = _together.get(key)
        if before is not None and before[0] is parts[0] and before[1] is parts[1]:
            return Recalled(answer, before[2], stm)
    results = orjson.loads(answer.entry.results)
    with patience(until):
        waiting = on_their_way(query, items)
    near = merge.needed([*waiting, *said], results, answer.entry.stored_by())
    if not near:
        return Recalled(answer, answer.entry.results, stm)
    weights = Weights(settings.MERGE_BOTH_PERCENT / 100, settings.MERGE_STM_PERCENT / 100)
    merged = orjson.dumps(merge.together(results, near, query.top_k, weights, explain=explain))
    if not items:
        _together.put(key, (*parts, merged), len(merged) + OVERHEAD_BYTES)
    return Recalled(answer, merged, stm)


def _done(found: Found) -> Future[Found]:
    done: Future[Found] = Future()
    done.set_result(found)
    return done


def _start(work: Callable[[], T]) -> Future[T]:
    """Mem0's arm: the bulkhead says how many of them wait, and the deadline how long."""
    return _arms().submit(_apart(work))


def _begin(look: Callable[[], Found]) -> Future[Found] | None:
    """The session's arm; None where too many still wait for the embedder, for searches that were answered long ago."""
    places = _places()
    if not places.acquire(blocking=False):
        return None
    arm = _session_arms().submit(_apart(look))
    arm.add_done_callback(lambda _: places.release())
    return arm


def _apart(work: Callable[[], T]) -> Callable[[], T]:
    """The work for another thread, with what this request allows PostgreSQL."""

    def run() -> T:
        try:
            return work()
        finally:
            db.release()

    return partial(copy_context().run, run)


@once
def _arms() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * settings.WEB_THREADS, thread_name_prefix="recall")


@once
def _session_arms() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_most_looking(), thread_name_prefix="recall-session")


@once
def _places() -> BoundedSemaphore:
    return BoundedSemaphore(_most_looking())


def _most_looking() -> int:
    return max(LEAST_LOOKING, settings.WEB_THREADS // 4)


def on_their_way(query: Query, items: Sequence[Item]) -> list[Near]:
    """The pending items that the question may be about, scored. Filters that only Mem0 can evaluate leave all out."""
    conditions = query.conditions()
    if not items or not rank.understands(conditions):
        return []
    today = clock.wall().date().isoformat()
    about = [
        item
        for item in items
        if (query.show_expired or item.expiration_date is None or item.expiration_date >= today)
        and rank.matches(conditions, Memory("", item.text, metadata=item.metadata))
    ]
    if not about:
        return []
    told = nearness.scores(query.text, Rows([item.text for item in about]), query.scope.project)
    scored = told.values
    if told.cosines is None:
        scored = [UNKNOWN_SCORE + (1 - UNKNOWN_SCORE) * score for score in scored]
    return [
        Near(_shown(item), score, (item.job or None) if item.kind == "extract" else None, fleeting=True)
        for item, score, reaches in zip(about, scored, told.reach(query.threshold), strict=True)
        if reaches
    ]


def _shown(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "memory": item.text,
        "score": None,
        "source": "stm",
        "pending": True,
        "job_id": item.job or None,
        "failed": item.failed,
        "metadata": item.metadata,
        "user_id": item.user_id,
        "agent_id": item.agent_id,
        "run_id": item.run_id,
        "created_at": item.accepted_at,
        "updated_at": None,
        "expiration_date": item.expiration_date,
    }
