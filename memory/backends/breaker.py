"""A circuit breaker in front of Mem0, one for all processes.

Closed: calls go through. When enough of them fail it opens, and calls fail at once. After a pause it is half open:
exactly one call may try, and its outcome closes the breaker, with the gate but a little open at first, or opens it for
longer. The state is in CACHE; each process believes for a moment what it last saw there. While Redis is down, each
process has a breaker of its own.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import orjson
import redis
from django.conf import settings

from memory import clock, keys
from memory.backends import gate
from memory.backends.base import Backend
from memory.clock import Deadline
from memory.errors import OriginBusy, OriginRateLimited, OriginRejected, OriginTimeout, OriginUnavailable
from memory.redis_client import cache
from memory.types import Listing, Memory, Query, Scope, Stored

T = TypeVar("T")
Phase = Literal["closed", "open", "half_open"]

BELIEVED_SECONDS = 0.5
"""How long a process goes by what it last saw, so that a call to a healthy Mem0 costs no round trip."""
SLOW_SECONDS = 1.0
"""A call that timed out sooner says more about its deadline than about Mem0."""
LEASE_MARGIN_SECONDS = 1.0
CHECK_SECONDS = 5.0
KEPT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Limits:
    """When the breaker opens, and for how long; each failed probe doubles the pause up to `longest`. Seconds."""

    failures: int = 5
    window: float = 10.0
    pause: float = 1.0
    longest: float = 10.0


@dataclass(frozen=True, slots=True)
class State:
    """The breaker at one moment of its store's clock, in seconds. `open_until` 0: closed."""

    failures: tuple[float, ...] = ()
    open_until: float = 0.0
    failed_probes: int = 0
    probe: str = ""
    probe_until: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """What a state means to a caller, who may try in `wait` seconds."""

    phase: Phase
    wait: float = 0.0

    @property
    def closed(self) -> bool:
        """Whether all calls go through."""
        return self.phase == "closed"


Change = Callable[[State, float], tuple[State, View]]


def view(state: State, now: float) -> tuple[State, View]:
    """The state as it is."""
    if not state.open_until:
        return state, View("closed")
    if now < state.open_until:
        return state, View("open", state.open_until - now)
    return state, View("half_open", max(0.0, state.probe_until - now) if state.probe else 0.0)


def entering(token: str, lease: float) -> Change:
    """Somebody wants to call: where that is not refused and the breaker is not closed, they are the probe."""

    def change(state: State, now: float) -> tuple[State, View]:
        _, seen = view(state, now)
        if seen.phase == "half_open" and not seen.wait:
            state = replace(state, probe=token, probe_until=now + lease)
        return state, seen

    return change


def failing(token: str, limits: Limits) -> Change:
    """A call failed; with a token, the probe."""

    def change(state: State, now: float) -> tuple[State, View]:
        if token and state.probe == token:
            pause = min(limits.longest, limits.pause * 2.0 ** min(state.failed_probes + 1, 30))
            state = State(open_until=now + pause, failed_probes=state.failed_probes + 1)
        elif not token and not state.open_until:
            recent = (*(at for at in state.failures if at > now - limits.window), now)
            state = State(open_until=now + limits.pause) if len(recent) >= limits.failures else State(recent)
        return view(state, now)

    return change


def ending(token: str, *, good: bool) -> Change:
    """The probe succeeded, which closes the breaker; or told nothing, and the next call may be the probe."""

    def change(state: State, now: float) -> tuple[State, View]:
        if state.probe == token:
            state = State() if good else replace(state, probe="", probe_until=0.0)
        return view(state, now)

    return change


class Store(Protocol):
    """Where the state is."""

    def apply(self, change: Change) -> View:
        """Change the state atomically, by the store's own clock."""
        ...


class ProcessStore:
    """The state in this process."""

    def __init__(self) -> None:
        self._state = State()
        self._lock = threading.Lock()

    def apply(self, change: Change) -> View:
        """See Store."""
        with self._lock:
            self._state, seen = change(self._state, clock.now())
            return seen


_READ = "local time = redis.call('TIME') return {time[1], time[2], redis.call('GET', KEYS[1]) or ''}"
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class SharedStore:
    """The state in CACHE, changed by compare-and-set. Raises redis.RedisError."""

    def __init__(self, name: str) -> None:
        self._key = keys.breaker(name)

    def apply(self, change: Change) -> View:
        """See Store. Redis's clock decides: those of two hosts are never compared."""
        while True:
            seconds, microseconds, held = cache().eval(_READ, 1, self._key)
            before = _decoded(held)
            after, seen = change(before, int(seconds) + int(microseconds) / 1e6)
            if after == before or cache().eval(_SWAP, 1, self._key, held, orjson.dumps(asdict(after)), KEPT_SECONDS):
                return seen


def _decoded(held: bytes) -> State:
    try:
        fields = orjson.loads(held) if held else {}
        return State(**{**fields, "failures": tuple(fields.get("failures", ()))})
    except (orjson.JSONDecodeError, TypeError):
        return State()


class Guarded:
    """A Backend behind the breaker. While it is open every call raises OriginUnavailable, with nothing sent."""

    def __init__(self, backend: Backend, limits: Limits | None = None) -> None:
        self.backend = backend
        self.name = backend.name
        self.in_process = backend.in_process
        self.extracts = backend.extracts
        self._limits = limits or Limits(
            failures=settings.BREAKER_FAILURES,
            window=settings.BREAKER_WINDOW_SECONDS,
            pause=settings.BREAKER_OPEN_SECONDS,
            longest=settings.BREAKER_OPEN_MAX_SECONDS,
        )
        self._shared, self._own = SharedStore(backend.name), ProcessStore()
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=100)
        self._believed = (0.0, View("closed"))

    def state(self) -> dict[str, Any]:
        """For people: `state` is closed, open or half_open, `retry_after` in seconds, `shared` False without Redis."""
        store, seen = self._apply(view)
        return {"state": seen.phase, "retry_after": round(seen.wait, 3), "shared": store is self._shared}

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        """See Backend."""
        return self._call(lambda: self.backend.search(query, deadline), deadline)

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """See Backend."""
        return self._call(lambda: self.backend.get(memory_id, deadline), deadline)

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend."""
        return self._call(lambda: self.backend.add(scope, texts, metadata, expiration_date, deadline), deadline)

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> list[Stored]:
        """See Backend. Too slow to be the probe: where one is due, `check` is it."""
        if not self._apply(view)[1].closed:
            soon = deadline.at_most(CHECK_SECONDS)
            self._call(lambda: self.backend.check(soon), soon)
        return self._call(lambda: self.backend.extract(scope, messages, metadata, deadline), deadline)

    def update(self, memory_id: str, deadline: Deadline, **changes: Any) -> None:
        """See Backend."""
        self._call(lambda: self.backend.update(memory_id, deadline, **changes), deadline)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """See Backend."""
        self._call(lambda: self.backend.delete(memory_id, deadline), deadline)

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """See Backend."""
        self._call(lambda: self.backend.delete_all(scope, deadline), deadline)

    def history(self, memory_id: str, deadline: Deadline) -> list[dict[str, Any]]:
        """See Backend."""
        return self._call(lambda: self.backend.history(memory_id, deadline), deadline)

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """See Backend."""
        return self.backend.forget(scope, deadline)

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """See Backend."""
        return self._call(lambda: self.backend.find_marked(scope, job, texts, deadline), deadline)

    def entities(self, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
        """See Backend."""
        return self._call(lambda: self.backend.entities(deadline), deadline)

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """See Backend. Always asks, whatever the breaker says, and tells it nothing."""
        return self.backend.check(deadline)

    def _call(self, work: Callable[[], T], deadline: Deadline) -> T:
        token = self._enter(deadline)
        started = clock.now()
        good: bool | None = None
        try:
            result = work()
            good = True
            return result
        except OriginBusy:
            raise  # nobody was asked
        except (OriginRejected, OriginRateLimited):
            good = True  # it answered
            raise
        except (OriginUnavailable, OriginTimeout) as error:
            if isinstance(error, OriginUnavailable) or clock.now() - started >= SLOW_SECONDS:
                good = False
            raise
        finally:
            self._leave(token, good)

    def _enter(self, deadline: Deadline) -> str:
        """The probe's token, or an empty one. OriginUnavailable where no call may be made."""
        until, seen = self._believed
        token = ""  # nosec B105
        if clock.now() >= until or not (seen.closed or seen.wait):
            token = uuid.uuid4().hex
            seen = self._see(entering(token, deadline.remaining() + LEASE_MARGIN_SECONDS))
        if seen.wait:
            raise OriginUnavailable("the circuit breaker is open", retry_after=seen.wait)
        return "" if seen.closed else token

    def _leave(self, token: str, good: bool | None) -> None:
        """`good` is None when the call says nothing about Mem0."""
        if good is not None:
            self._outcomes.append((clock.now(), good))
        if good is False and (token or self._mostly_failing()):
            self._see(failing(token, self._limits))
        elif token:
            if good:
                gate.of(self.name).ramp()
            self._see(ending(token, good=good is True))

    def _mostly_failing(self) -> bool:
        """Whether at least half of this process's calls within the window failed: one in a hundred opens nothing."""
        since = clock.now() - self._limits.window
        recent = [good for at, good in list(self._outcomes) if at > since]
        return recent.count(False) * 2 >= len(recent)

    def _see(self, change: Change) -> View:
        _, seen = self._apply(change)
        believed = BELIEVED_SECONDS if seen.closed else min(BELIEVED_SECONDS, seen.wait)
        self._believed = (clock.now() + believed, seen)
        return seen

    def _apply(self, change: Change) -> tuple[Store, View]:
        try:
            return self._shared, self._shared.apply(change)
        except redis.RedisError:
            return self._own, self._own.apply(change)

    # Last, as below it in this class `list` is this method.
    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend."""
        return self._call(lambda: self.backend.list(scope, deadline), deadline)
