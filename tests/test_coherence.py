"""No answer is older than its consistency allows, whatever happens in between: the real read path, versions and layers
of two processes, driven by Hypothesis through slow reads, writes, lost publications, evictions and lost stores.

The model keeps every state that Mem0 was ever in and when each write was complete. An answer must show one of the
states that its reader may still see, and nothing of anybody else.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import redis as redis_client
from django.conf import settings as django_settings
from django.db import transaction
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from memory import clock, db, flights, keys, metrics, read, refreshing, stack, versions
from memory.clock import Deadline
from memory.layers.l0_process import ProcessLayer
from memory.models import Project
from memory.read import Wish
from memory.tenancy import projects
from memory.types import Answer, Memory, Pin, Query, Scope
from tests.failing_mem0 import FailingMem0

pytestmark = pytest.mark.django_db(transaction=True)

EXAMPLES = 400
STEPS = 20
LEAST_OVERLAPPED = 0.2
PATIENCE_SECONDS = 20.0

here = threading.local()
"""The process that this thread belongs to, and the slow read it makes."""


class OfProcess:
    """Stands for something that each process has one of."""

    def __init__(self, each: list[Any]) -> None:
        self._each = each

    def __getattr__(self, name: str) -> Any:
        return getattr(self._each[here.process], name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._each[here.process][key] = value


class SlowMem0(FailingMem0):
    """Has seen its memories when a slow read stops, and answers with them when it goes on."""

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        found = super().search(query, deadline)
        if (slow := getattr(here, "slow", None)) is not None:
            slow.reached.set()
            assert slow.go.wait(PATIENCE_SECONDS)
            slow.reached.clear()
        return found


@dataclass(eq=False)
class Reading:
    """One search, begun; `since` is when, on the model's clock."""

    process: int
    query: Query
    wish: Wish
    project: int
    since: float = 0.0
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def start(self, *, slow: bool) -> None:
        """Make it on a thread of its process."""
        self.since = clock.now()
        self.thread = threading.Thread(target=self._run, args=(slow,), daemon=True)
        self.thread.start()

    def settled(self) -> bool:
        """Wait until it has ended (True), has stopped inside Mem0, or has joined somebody else's load."""
        assert self.thread
        end = time.monotonic() + PATIENCE_SECONDS
        while self.thread.is_alive() and not self.reached.is_set() and not self.joined():
            assert time.monotonic() < end, "a read hangs"
            self.thread.join(0.0005)
        return not self.thread.is_alive()

    def joined(self) -> bool:
        """Whether it waits for another's load."""
        return getattr(self, "_joined", False)

    def finish(self) -> None:
        """Let it go on, wherever it stops, until it has ended."""
        assert self.thread
        self.go.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive(), "a read hangs"

    def _run(self, slow: bool) -> None:
        here.process, here.slow, here.reading = self.process, self if slow else None, self
        try:
            self.answer = read.search(
                self.query, projects.policy(self.project), Deadline.after(PATIENCE_SECONDS), self.wish
            )
        except BaseException as error:  # noqa: BLE001  (told to the test's own thread)
            self.error = error
        finally:
            db.release()


@dataclass
class World:
    """What the fixtures of one run give to each of its machines."""

    mem0: SlowMem0
    redis: redis_client.Redis
    projects: tuple[int, int]
    layers: list[ProcessLayer]
    flying: list[dict[Any, Any]]
    seen: Counter[str] = field(default_factory=Counter)
    names: Iterator[int] = field(default_factory=itertools.count)


world: World

PROCESSES = st.sampled_from([0, 1])
# Who may be asked about, as (project, user, agent, run), and whom a write may name.
ASKED = st.sampled_from(
    [
        (0, "a", None, None),
        (0, "a", None, None),
        (0, "a", "x", None),
        (0, None, "x", None),
        (0, None, None, "r"),
        (0, "b", None, None),
        (1, "a", None, None),
        (1, None, "x", None),
    ]
)
NAMED = st.sampled_from(
    [
        (0, "a", None, None),
        (0, "a", None, None),
        (0, "a", "x", None),
        (0, "a", None, "r"),
        (0, "b", "x", None),
        (0, None, "x", "r"),
        (1, "a", "x", None),
    ]
)


# `eventual` is as patient as its `max_age_ms` says here: the setting is the service's.
WISHES = st.one_of(
    st.sampled_from([Wish(), Wish("fresh")]),
    st.builds(Wish, st.sampled_from(["bounded", "eventual"]), st.sampled_from([0, 1, 10, 10_000])),
)


WHICH = st.integers(0, 5)
Named = tuple[int, str | None, str | None, str | None]
Write = tuple[Scope, int, bool]


class Coherence(RuleBasedStateMachine):
    """Two processes, two projects, and a model of what each answer may say.

    Which read is still open hangs on the clock, and what Hypothesis draws must not: so rules choose among what there is
    by a number, and do nothing where there is nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        here.process = 0
        here.slow = None
        self.example = next(world.names)
        self.overlapped = False
        self.open: list[Reading] = []
        self.readings: list[Reading] = []
        self.takers: list[Any] = []
        self.writes: list[Write] = []
        self.unconfirmed: list[tuple[tuple[Pin, ...], int, bool]] = []
        self.completed: list[tuple[float, Pin, int, bool]] = []
        self.numbers = itertools.count()
        for layer in world.layers:
            layer.held.clear()
        for flying in world.flying:
            flying.clear()
        world.mem0.rows = []
        self.states: list[tuple[Memory, ...]] = [()]

    # -- writes: Mem0 first, then the version, then its publication ---------------------------------------------------

    @rule(who=NAMED)
    def write_begins(self, who):
        """Mem0 has it; the version has not moved."""
        self.writes.append(self.stored(who))

    @rule(who=NAMED, which=WHICH)
    def delete_begins(self, who, which):
        """Mem0 has it no more."""
        if write := self.removed(who, which):
            self.writes.append(write)

    @rule(which=WHICH, published=st.sampled_from([True, True, False]), asks=st.booleans())
    def write_ends(self, which, published, asks):
        """The version moves; where its publication is lost, the write is complete when a lease has passed."""
        if self.writes:
            self.ended(self.writes.pop(which % len(self.writes)), published, asks)

    def stored(self, who: Named) -> Write:
        scope = self.scope(who)
        world.mem0.store(self.upstream(scope), self.label(scope))
        return self.changed(scope, floor=False)

    def removed(self, who: Named, which: int) -> Write | None:
        rows = world.mem0._of(self.upstream(self.scope(who)))
        if not rows:
            return None
        gone = rows[which % len(rows)]
        world.mem0.rows = [row for row in world.mem0.rows if row.id != gone.id]
        return self.changed(self.owner(gone), floor=True)

    def ended(self, write: Write, published: bool, asks: bool) -> None:
        scope, state, floor = write
        with transaction.atomic():
            moved = versions.move(scope.pins(), floor=floor)
        if published:
            assert versions.publish(moved)
            self.complete(scope.pins(), state, floor)
        else:
            self.unconfirmed.append((scope.pins(), state, floor))
        if any(one.reached.is_set() and one.query.scope.pin in scope.pins() for one in self.open):
            self.overlapped = True
        if not asks:
            return
        pin = moved[0].pin
        mine = self.question(Scope(scope.project, **{f"{pin.kind}_id": pin.id}))
        self.look(Wish(min_version=moved[0].number), mine, at_least=state)  # the writer's own next question

    @rule(who=NAMED)
    def add(self, who):
        """A whole write at once."""
        self.ended(self.stored(who), True, True)

    @rule(who=NAMED, which=WHICH)
    def delete(self, who, which):
        """A whole delete at once."""
        if write := self.removed(who, which):
            self.ended(write, True, True)

    # -- reads --------------------------------------------------------------------------------------------------------

    @rule(process=PROCESSES, who=ASKED)
    def read_begins(self, process, who):
        """A strict read; where no layer has it current it stops inside Mem0."""
        reading = Reading(process, self.question(self.scope(who)), Wish(), self.scope(who).project)
        reading.start(slow=True)
        if reading.settled():
            self.check(reading)
        else:
            self.open.append(reading)
            self.readings.append(reading)

    @rule(process=PROCESSES, who=NAMED)
    def read_meets_a_write(self, process, who):
        """A read stops inside Mem0, and what it asks about is written meanwhile."""
        self.read_begins(process, who)
        self.add(who)

    @rule(which=WHICH)
    def read_fills(self, which):
        """Mem0's answer arrives, is filled and answered."""
        self.readings = [one for one in self.readings if one in self.open]
        if not self.readings:
            return
        reading = self.readings.pop(which % len(self.readings))
        if reading.joined() and not reading.reached.is_set():
            return  # it ends with the one it joined
        self.end(reading)

    @rule(process=PROCESSES, who=ASKED, wish=WISHES)
    def ask(self, process, who, wish):
        """A read from beginning to end."""
        self.look(wish, self.question(self.scope(who)), process)

    @rule(process=PROCESSES, who=NAMED, gone=st.booleans(), wish=WISHES)
    def write_meets_an_old_answer(self, process, who, gone, wish):
        """A process has an answer, something is written or deleted, and the process is asked again."""
        self.add(who)
        self.ask(process, who, Wish())
        self.ended((gone and self.removed(who, 0)) or self.stored(who), True, False)
        self.ask(process, who, wish)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    @rule(who=ASKED)
    def taker_pauses(self, who):
        """Somebody takes a version's token, reads PostgreSQL, and stands still."""
        if taker := self.taken(who):
            self.takers.append(taker)

    def taken(self, who: Named) -> Any:
        pin = self.scope(who).pin
        generation = projects.policy(pin.project).generation
        (taken,) = versions.take(versions.copied(pin, generation))
        return None if taken.copy is not None else (versions.stored(pin), generation, taken)

    @rule(which=WHICH)
    def taker_stores(self, which):
        """It goes on, and would store what it read."""
        if self.takers:
            versions.keep(*self.takers.pop(which % len(self.takers)))

    @rule(process=PROCESSES, who=NAMED)
    def taker_meets_a_write(self, process, who):
        """It stands still while what it read is written and CACHE drops the newer copy; a process still has the older
        answer."""
        self.ask(process, who, Wish())
        self.evicted(who, "version")
        taker = self.taken(who)
        self.add(who)
        self.evicted(who, "version")
        if taker:
            versions.keep(*taker)
        self.ask(process, who, Wish())

    @rule(who=ASKED, what=st.sampled_from(["version", "token", "result", "pending", "flight"]))
    def evicted(self, who, what):
        """CACHE drops a key."""
        scope = self.scope(who)
        generation = projects.policy(scope.project).generation
        query = self.question(scope)
        if what == "result":
            names = [keys.result(scope.pin, generation, query.fingerprint)]
        elif what == "flight":
            number = versions.stored(scope.pin).number
            names = [keys.flight(scope.pin, generation, query.fingerprint, number)]
        else:
            names = [getattr(keys, what)(scope.pin, generation)]
        world.redis.delete(*names)

    @rule()
    def flushed(self):
        """CACHE loses everything."""
        world.redis.flushall()

    @rule(process=PROCESSES)
    def forgotten(self, process):
        """A process starts again: its memory is empty."""
        world.layers[process].held.clear()

    @rule(project=st.sampled_from([0, 1]))
    def generation_moves(self, project):
        """The project's policy changes."""
        projects.move_generation(world.projects[project])
        projects.forget()

    @rule()
    def lease_ends(self):
        """A whole lease passes: no copy and no token of before stands, and stored writes are complete."""
        for pattern in ("ms:*}:v", "ms:*}:t", "ms:*}:p", "ms:*}:pt"):
            if names := list(world.redis.scan_iter(pattern, count=1000)):
                world.redis.delete(*names)
        for pins, state, floor in self.unconfirmed:
            self.complete(pins, state, floor)
        self.unconfirmed.clear()

    def teardown(self):
        while self.open:
            self.end(next((one for one in self.open if one.reached.is_set()), self.open[0]))
        refreshing.settle()
        event("a write between begin and fill" if self.overlapped else "no write between begin and fill")
        world.seen["runs"] += 1
        world.seen["overlapped"] += self.overlapped

    # -- the model ----------------------------------------------------------------------------------------------------

    def look(self, wish: Wish, query: Query, process: int = 0, at_least: int = 0) -> None:
        """Ask and check. A load that another read is stopped in is left to that one."""
        django_settings.EVENTUAL_MAX_STALE_SECONDS = wish.max_age_ms / 1000
        reading = Reading(process, query, wish, query.scope.project)
        reading.start(slow=False)
        if reading.settled():
            self.check(reading, at_least)
        else:
            reading.at_least = at_least  # type: ignore[attr-defined]
            self.open.append(reading)

    def end(self, reading: Reading) -> None:
        """Let a read end, and with it those that joined it."""
        reading.finish()
        for one in [one for one in self.open if one.thread and one.settled()]:
            self.open.remove(one)
            self.check(one, getattr(one, "at_least", 0))

    def check(self, reading: Reading, at_least: int = 0) -> None:
        """Whether an answer is one that its reader may get."""
        if reading.error is not None:
            raise reading.error
        assert reading.answer
        scope, wish = reading.query.scope, reading.wish
        told = orjson.loads(reading.answer.entry.results)
        texts = sorted(one["memory"] for one in told)
        for one in told:  # G1
            mine = [one[name] == value for name, value in scope.ids().items()]
            assert all(mine), (scope, one)
            assert one["memory"].startswith(f"{scope.project}|"), (scope, one)
        oldest = max(at_least, self.oldest(scope.pin, reading.since, wish))
        views = [self.view(scope, state) for state in self.states[oldest:]]
        assert texts in views, (wish, reading.answer.layer, texts, views, oldest)

    def oldest(self, pin: Pin, since: float, wish: Wish) -> int:
        """The oldest state of Mem0 that a read begun at `since` may show."""
        slack = wish.max_age_ms / 1000
        found = [state for at, named, state, _ in self.completed if named == pin and at <= since - slack]
        # `eventual` shows nothing below the floor, however little time has passed (B9).
        if wish.consistency == "eventual":
            found += [state for at, named, state, floor in self.completed if floor and named == pin and at <= since]
        return max(found, default=0)

    def view(self, scope: Scope, state: tuple[Memory, ...]) -> list[str]:
        wanted = self.upstream(scope).ids().items()
        return sorted(row.text for row in state if all(getattr(row, name) == value for name, value in wanted))

    def changed(self, scope: Scope, *, floor: bool) -> tuple[Scope, int, bool]:
        self.states.append(tuple(world.mem0.rows))
        return scope, len(self.states) - 1, floor

    def complete(self, pins: tuple[Pin, ...], state: int, floor: bool) -> None:
        now = clock.now()
        self.completed += [(now, pin, state, floor) for pin in pins]

    def scope(self, who: tuple[int, str | None, str | None, str | None]) -> Scope:
        project, *ids = who
        return Scope(world.projects[project], *(f"{name}{self.example}" if name else None for name in ids))

    def question(self, scope: Scope) -> Query:
        return Query(scope, "?", top_k=1000)

    def upstream(self, scope: Scope) -> Scope:
        """The scope by the ids under which Mem0 has it."""
        return stack.backend(projects.policy(scope.project))._out(scope)

    def owner(self, row: Memory) -> Scope:
        """The scope under which a row of Mem0's was written."""
        return Scope(int(row.text.split("|")[0]), *(part or None for part in row.text.split("|")[1:4]))

    def label(self, scope: Scope) -> str:
        ids = [scope.user_id, scope.agent_id, scope.run_id]
        return "|".join([str(scope.project), *(name or "" for name in ids), str(next(self.numbers))])


@pytest.fixture
def two_processes(project, redis, settings, monkeypatch) -> World:
    global world
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    settings.UPSTREAM_CALLS_PER_SECOND = 0
    settings.EVENTUAL_MAX_STALE_SECONDS = 0  # from here on it is set in place: the fixture would nest
    other = Project.objects.create(name="Other", slug="other", namespace="other")
    layers = [ProcessLayer(), ProcessLayer()]
    flying: list[dict[Any, Any]] = [{}, {}]
    mem0 = SlowMem0()
    world = World(mem0, redis, (project.pk, other.pk), layers, flying)
    monkeypatch.setattr(stack, "L0", OfProcess(layers))
    monkeypatch.setattr(stack, "_build", lambda: mem0)
    monkeypatch.setattr(flights, "_flying", OfProcess(flying))
    count = metrics.count

    def noticed(name: str, *args: Any, **labels: Any) -> None:
        if name == "loads_joined" and (reading := getattr(here, "reading", None)) is not None:
            reading._joined = True
        count(name, *args, **labels)

    monkeypatch.setattr(metrics, "count", noticed)
    monkeypatch.setattr(refreshing, "begin", in_the_same_process(refreshing.begin))
    return world


def in_the_same_process(begin: Any) -> Any:
    """Refreshes run on threads of their own, which belong to the process that began them."""

    def begun(key: Any, refresh: Any) -> bool:
        process = here.process

        def run() -> None:
            here.process, here.slow, here.reading = process, None, None
            refresh()

        return bool(begin((process, key), run))

    return begun


@pytest.mark.timeout(280)
def test_no_answer_is_older_than_its_consistency_allows(two_processes, capsys):
    run_state_machine_as_test(
        Coherence,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
    share = two_processes.seen["overlapped"] / two_processes.seen["runs"]
    with capsys.disabled():
        print(f"\ncoherence: {two_processes.seen['runs']} runs, a write between begin and fill in {share:.0%} of them")
    assert share >= LEAST_OVERLAPPED
