"""Every user's caches, again: in batches, active users first, one rebuild at a time, resumable and stoppable.

It exists to repair (PROTOCOL C5). Where a rebuild stands is in PostgreSQL; whoever holds its lease goes on with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from cachewarm import chains, runs, steps, unchanged
from cachewarm.models import RebuildRun, WarmRun
from cachewarm.steps import Limits
from memory import clock, db, identity, outbox, stack
from memory.clock import Deadline
from memory.errors import LayerUnavailable, OriginError
from memory.layers.l3_summaries import model
from memory.models import MemoryUser, Project
from memory.tenancy.projects import policy as policy_of

log = logging.getLogger(__name__)

ENTITIES_TIMEOUT_SECONDS = 60.0
PAGE_USERS = 500
"""Users looked at together: most need nothing, and are passed over at once."""

_CLAIM = """
UPDATE cachewarm_rebuildrun SET fence = fence + 1, holder = %(holder)s,
    lease_until = clock_timestamp() + %(lease)s * interval '1 second'
WHERE id = %(id)s AND state = 'running' AND (holder = '' OR lease_until < clock_timestamp())
RETURNING fence
"""
_RENEW = """
UPDATE cachewarm_rebuildrun SET lease_until = clock_timestamp() + %(lease)s * interval '1 second'
WHERE id = %(id)s AND fence = %(fence)s AND state = 'running' RETURNING stop_requested
"""


class LeaseLost(Exception):
    """Another process has taken the rebuild over, or it has ended."""


class Pace:
    """Lets calls pass at a set rate. One rebuild runs at a time, in one process: the rate is the service's."""

    def __init__(self, per_second: float, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._every = 1.0 / per_second
        self._wait = wait
        self._next = clock.now()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Wait for the next free moment."""
        now = clock.now()
        with self._lock:
            mine = max(self._next, now)
            self._next = mine + self._every
        if mine > now:
            self._wait(mine - now)


class Known(NamedTuple):
    """A user on a rebuild's page."""

    pk: int
    project_id: int
    user_id: str
    active_at: datetime


@dataclass
class Work:
    """One process's hold on a rebuild, and what it needs to know for every user of it."""

    run: RebuildRun
    fence: int
    pace: Pace = field(default_factory=lambda: Pace(settings.REBUILD_CALLS_PER_SECOND))
    warmed: int = 0
    """Users that it did something for."""
    renewed_at: float = field(default_factory=clock.now)

    @property
    def limits(self) -> Limits:
        """What it may ask of Mem0."""
        return Limits(settings.WARM_UPSTREAM_BUDGET, self.call)

    def call(self) -> None:
        """Before a call to Mem0, of which a batch may make thousands: hold on to the rebuild. Whether that was in time
        is found out after the batch."""
        self.pace()
        if clock.now() > self.renewed_at + settings.WARM_LEASE_SECONDS / 4:
            self.renew()

    def renew(self) -> bool | None:
        """Whether the rebuild was asked to stop; None when another process has it, or it has ended."""
        values = {"id": self.run.pk, "fence": self.fence, "lease": settings.WARM_LEASE_SECONDS}
        with connection.cursor() as cursor:
            cursor.execute(_RENEW, values)
            row = cursor.fetchone()
        self.renewed_at = clock.now()
        return row[0] if row else None

    @cached_property
    def made_by(self) -> str:
        """What makes the vectors now."""
        return model()


def by_beat() -> str:
    """Begin a rebuild, or go on with the one that stands; nothing without PROACTIVE_CACHE_ENABLED."""
    if not settings.PROACTIVE_CACHE_ENABLED:
        return "off"
    run, made = begin("beat")
    _send(run.pk)
    return "begun" if made else "running"


def start(reason: str) -> tuple[RebuildRun, bool]:
    """Begin a rebuild, or find the one that has not ended, and hand it to the workers."""
    run, made = begin(reason)
    _send(run.pk)
    return run, made


def resume(rebuild_id: int) -> bool:
    """Go on with a stopped rebuild; False while one runs, or when there is nothing to go on with. What Mem0 counted
    when it began is not known any more: the users left are all listed."""
    stopped = RebuildRun.objects.filter(pk=rebuild_id, state="stopped")
    try:
        with transaction.atomic():
            again = stopped.update(state="running", stop_requested=False, full=True, ended_at=None)
    except IntegrityError:  # one_rebuild_at_a_time
        return False
    if again:
        _send(rebuild_id)
    return bool(again)


def begin(reason: str, *, full: bool = False) -> tuple[RebuildRun, bool]:
    """A new rebuild, or the one that has not ended."""
    standing = RebuildRun.objects.filter(state="running")
    if (run := standing.first()) is not None:
        return run, False
    full = full or _full_is_due()
    totals = None if full else _totals()
    try:
        with transaction.atomic():
            run = RebuildRun.objects.create(reason=reason, full=full, totals=totals, total=_awake().count())
            return RebuildRun.objects.get(pk=run.pk), True
    except IntegrityError:  # one_rebuild_at_a_time: another process was first
        return standing.get(), False


def batch(rebuild_id: int) -> str:
    """Warm one batch of users, and pass over those who need nothing; then hand the rebuild on."""
    work = claim(rebuild_id)
    if work is None:
        return "busy"
    try:
        for _ in _pages(work):
            if work.warmed >= settings.REBUILD_BATCH_USERS:
                break
    except LeaseLost:
        return "lost"
    if work.run.state != "running":
        return work.run.state
    _hand_on(work)
    _send(rebuild_id)
    return f"done {work.run.done}"


def run_here(work: Work) -> Iterator[RebuildRun]:
    """Work on all that is left in this process; yields the progress after each step. LeaseLost."""
    try:
        yield from _pages(work)
    finally:
        _hand_on(work)
    yield work.run


def claim(rebuild_id: int) -> Work | None:
    """The hold on a rebuild, None while another process has it."""
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"id": rebuild_id, "holder": identity.process(), "lease": settings.WARM_LEASE_SECONDS})
        row = cursor.fetchone()
    return Work(RebuildRun.objects.get(pk=rebuild_id), row[0]) if row else None


def request_stop(rebuild_id: int) -> bool:
    """Ask a rebuild to stop after the batch it is at; False when it has ended."""
    return bool(RebuildRun.objects.filter(pk=rebuild_id, state="running").update(stop_requested=True))


def free_the_dead() -> list[int]:
    """Rebuilds that nobody works on: their process is gone, or a message got lost."""
    held = RebuildRun.objects.filter(state="running")
    for run in held.exclude(holder=""):
        if identity.gone(run.holder):
            held.filter(pk=run.pk, fence=run.fence).update(holder="", lease_until=Now())
    return list(held.filter(Q(lease_until=None) | Q(lease_until__lte=Now())).values_list("pk", flat=True))


def resume_abandoned() -> None:
    """The sweeper's: go on with what a killed worker left."""
    if settings.PROACTIVE_CACHE_ENABLED:
        for rebuild_id in free_the_dead():
            RebuildRun.objects.filter(pk=rebuild_id).update(lease_until=Now() + _handed())
            _send(rebuild_id)


# -- one batch --------------------------------------------------------------------------------------------------------


def _pages(work: Work) -> Iterator[RebuildRun]:
    """Work until the rebuild has ended, or was asked to; the progress after each step."""
    while not _renew(work) and (users := _page(work.run)):
        yield from _users(users, work)
        if work.run.stop_requested:
            break
    _finish(work)


def _users(users: Sequence[Known], work: Work) -> Iterator[RebuildRun]:
    warm = _warm(users, work)
    left = [user for user in users if work.run.full or user.pk not in warm]
    size = settings.REBUILD_BATCH_USERS
    for outcomes in _side_by_side([left[start : start + size] for start in range(0, len(left), size)], warm, work):
        _count(work.run, outcomes)
        work.warmed += outcomes.total()
        yield work.run
    if _renew(work):
        return
    _pass(users, len(users) - len(left), work)
    yield work.run


def _side_by_side(
    batches: Iterable[Sequence[Known]], warm: Mapping[int, int], work: Work
) -> Generator[Counter[str], None, None]:
    """The outcomes of each batch: while one waits for Mem0 and the stores, another is ranked. Whoever asks for no more,
    or for a stop, gets those that were begun."""
    working: deque[Future[Counter[str]]] = deque()
    with ThreadPoolExecutor(settings.REBUILD_THREADS, "rebuild") as pool:
        try:
            for batch in batches:
                if _renew(work):
                    break
                working.append(pool.submit(_rebuild, batch, warm, work))
                if len(working) >= settings.REBUILD_THREADS:
                    yield working.popleft().result()
            while working:
                yield working.popleft().result()
        finally:
            for begun in working:
                _count(work.run, begun.result())


def _pass(users: Sequence[Known], spared: int, work: Work) -> None:
    """A page is done: count those who were left alone, and go on behind it. They need no mark of their own, but for
    those whom the cursor does not tell of."""
    run = work.run
    late = [user.pk for user in users if user.active_at > run.started_at]
    if late:
        MemoryUser.objects.filter(pk__in=late).update(rebuilt=run.pk)
    else:
        run.cursor = [users[-1].active_at.isoformat(), users[-1].pk]
        RebuildRun.objects.filter(pk=run.pk, fence=work.fence).update(cursor=run.cursor)
    _count(run, Counter(unchanged=spared))


def _warm(users: Sequence[Known], work: Work) -> Mapping[int, int]:
    """Those who are warm as far as can be told without a listing, with their versions; nobody while CACHE is away."""
    warm: dict[int, int] = {}
    try:
        for project in {user.project_id for user in users}:
            mine = [user.pk for user in users if user.project_id == project]
            warm |= unchanged.among(project, mine, work.made_by, None if work.run.full else work.run.totals)
    except LayerUnavailable:
        return {}
    return warm


def _page(run: RebuildRun) -> list[Known]:
    """The next users it has not reached. First those by their last activity before it began, but whom nobody has asked
    about for so long that L3 keeps no vectors of theirs; then those whose activity moved them meanwhile; whoever is new
    since is being warmed anyway."""
    known = _awake().filter(first_seen_at__lte=run.started_at).exclude(rebuilt=run.pk)
    before = known.filter(active_at__lte=run.started_at)
    if run.cursor is not None:
        active_at, pk = datetime.fromisoformat(run.cursor[0]), run.cursor[1]
        before = before.filter(Q(active_at__lt=active_at) | Q(active_at=active_at, pk__lt=pk))
    for left in (before, known.filter(active_at__gt=run.started_at)):
        rows = left.order_by("-active_at", "-pk").values_list("pk", "project_id", "user_id", "active_at")
        if users := [Known(*row) for row in rows[:PAGE_USERS]]:
            return users
    return []


def _awake() -> QuerySet[MemoryUser]:
    return MemoryUser.objects.filter(active_at__gte=Now() - timedelta(days=settings.L3_ACTIVE_DAYS))


def _rebuild(users: Sequence[Known], warm: Mapping[int, int], work: Work) -> Counter[str]:
    """Warm a batch: how many ended how. Of those who are warm already only Mem0 is asked, and they are unchanged if it
    has nothing new."""
    claimed = runs.claim_each(work.run.pk, [user.pk for user in users])
    mine = {(run.project_id, run.user_id) for run in claimed}
    # Ended by the process before, which was killed before it counted.
    ended = [user.pk for user in users if (user.project_id, user.user_id) not in mine]
    MemoryUser.objects.filter(pk__in=ended).update(rebuilt=work.run.pk)
    stands = {(user.project_id, user.user_id): warm[user.pk] for user in users if user.pk in warm}

    def first(batch: Sequence[WarmRun]) -> steps.Outcomes:
        outcomes = steps.summaries(batch, work.limits)
        same = [stands.get((run.project_id, run.user_id)) == run.version for run in batch]
        return [
            "unchanged" if outcome == "L3" and alike else outcome for outcome, alike in zip(outcomes, same, strict=True)
        ]

    try:
        return Counter([*chains.run_here(claimed, work.limits, first), *("completed" for _ in ended)])
    finally:
        db.release()


def _count(run: RebuildRun, outcomes: Counter[str]) -> None:
    users = min(outcomes.total(), run.total - run.done)  # who became active meanwhile may have been passed before
    run.done += users
    run.unchanged += outcomes["unchanged"]
    run.failed += outcomes["failed"]
    RebuildRun.objects.filter(pk=run.pk).update(
        done=F("done") + users,
        unchanged=F("unchanged") + outcomes["unchanged"],
        failed=F("failed") + outcomes["failed"],
    )


# -- its lease and its end --------------------------------------------------------------------------------------------


def _renew(work: Work) -> bool:
    """Hold on to the rebuild; True when it was asked to stop. LeaseLost."""
    asked = work.renew()
    if asked is None:
        raise LeaseLost
    work.run.stop_requested = asked
    return asked


def _hand_on(work: Work) -> None:
    RebuildRun.objects.filter(pk=work.run.pk, fence=work.fence, state="running").update(
        holder="",
        lease_until=Now() + _handed(),
    )


def _handed() -> timedelta:
    """How long the message for the next batch may take before it counts as lost: it waits behind a batch of another."""
    return timedelta(seconds=3 * settings.RESEND_SECONDS)


def _finish(work: Work) -> None:
    work.run.state = "stopped" if work.run.stop_requested else "completed"
    stack.L3.forget_inactive()
    runs.purge()
    work.run.warms.filter(state="running").update(state="failed", error="rebuild_stopped", ended_at=Now())
    RebuildRun.objects.filter(pk=work.run.pk, fence=work.fence).update(
        state=work.run.state,
        ended_at=Now(),
        holder="",
        lease_until=None,
        totals=None,
    )
    fields = {"outcome": work.run.state, "done": work.run.done, "failed": work.run.failed}
    log.info("rebuild ended", extra={**fields, "unchanged": work.run.unchanged})


def _send(rebuild_id: int) -> None:
    from cachewarm import tasks  # tasks stand above this module

    outbox.send(tasks.rebuild_batch.si(rebuild_id))


def _full_is_due() -> bool:
    """Listing costs little in process; over REST every user is listed at least every REBUILD_FULL_EVERY runs."""
    if stack.origin().in_process:
        return True
    lately = RebuildRun.objects.values_list("full", flat=True)[: settings.REBUILD_FULL_EVERY - 1]
    return not any(lately)


def _totals() -> Mapping[str, Mapping[str, Any]] | None:
    """How many memories Mem0 counts for each user; None where its scan was cut or failed (PROTOCOL C5)."""
    found: dict[str, dict[str, int]] = {}
    for project in Project.objects.values_list("pk", flat=True):
        try:
            counted: Any = stack.backend(policy_of(project)).entities(Deadline.after(ENTITIES_TIMEOUT_SECONDS))
        except OriginError:
            return None
        rows, complete = counted
        if not complete:
            return None
        found[str(project)] = {row["id"]: row["total_memories"] for row in rows if row["type"] == "user"}
    return found
