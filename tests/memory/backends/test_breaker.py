"""The breaker: when it opens, that exactly one call probes, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_client
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from memory import keys
from memory.backends import breaker
from memory.backends.breaker import Guarded, Limits, ProcessStore, SharedStore, State, View
from memory.clock import Deadline
from memory.errors import (
    OriginError,
    OriginNotFound,
    OriginRateLimited,
    OriginRejected,
    OriginTimeout,
    OriginUnavailable,
)
from memory.types import Listing, Scope

SCOPE = Scope(1, "ann")
LIMITS = Limits(failures=3, window=60.0, pause=60.0, longest=600.0)
UNAVAILABLE = OriginUnavailable("away")


class Upstream:
    """Answers `list` as it is told to, and counts."""

    name = "upstream"
    in_process = False
    extracts = True

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls = 0
        self.checks = 0

    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        self.calls += 1
        if self.error:
            raise self.error
        return Listing([], complete=True)

    def extract(self, *args: Any) -> list[Any]:
        self.calls += 1
        return []

    def check(self, deadline: Deadline) -> dict[str, Any]:
        self.checks += 1
        if self.error:
            raise self.error
        return {}


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def guarded(upstream: Upstream, redis: redis_client.Redis) -> Guarded:
    return Guarded(upstream, LIMITS)  # type: ignore[arg-type]


def ask(guarded: Guarded, *, times: int = 1, error: type[BaseException] | None = None) -> None:
    for _ in range(times):
        if error is None:
            guarded.list(SCOPE, Deadline.after(10))
        else:
            with pytest.raises(error):
                guarded.list(SCOPE, Deadline.after(10))


def due(guarded: Guarded) -> None:
    """The pause of an open breaker ends now, for everybody."""
    guarded._shared.apply(lambda state, now: (State(open_until=now - 1), View("half_open")))
    guarded._believed = (0.0, View("closed"))


def test_it_opens_after_enough_failures_and_asks_no_more(guarded: Guarded, upstream: Upstream) -> None:
    upstream.error = UNAVAILABLE
    ask(guarded, times=3, error=OriginUnavailable)
    with pytest.raises(OriginUnavailable) as refused:
        guarded.list(SCOPE, Deadline.after(10))
    assert upstream.calls == 3
    assert not refused.value.sent
    assert 0 < (refused.value.retry_after or 0) <= LIMITS.pause
    assert guarded.state()["state"] == "open"


def test_another_process_finds_it_open(guarded: Guarded, upstream: Upstream) -> None:
    upstream.error = UNAVAILABLE
    ask(guarded, times=3, error=OriginUnavailable)
    other = Guarded(upstream, LIMITS)  # type: ignore[arg-type]
    ask(other, error=OriginUnavailable)
    assert upstream.calls == 3


@pytest.mark.parametrize("error", [OriginRejected("bad"), OriginNotFound("none"), OriginRateLimited("later")])
def test_an_answer_that_is_no_failure_never_opens_it(guarded: Guarded, upstream: Upstream, error: OriginError) -> None:
    upstream.error = error
    ask(guarded, times=50, error=type(error))
    assert upstream.calls == 50
    assert guarded.state()["state"] == "closed"


def test_a_call_without_time_to_answer_in_says_nothing_about_mem0(guarded: Guarded, upstream: Upstream) -> None:
    upstream.error = OriginTimeout("at once")
    ask(guarded, times=50, error=OriginTimeout)
    assert guarded.state()["state"] == "closed"


def test_few_failures_among_many_successes_do_not_open_it(guarded: Guarded, upstream: Upstream) -> None:
    for _ in range(10):
        upstream.error = None
        ask(guarded, times=9)
        upstream.error = UNAVAILABLE
        ask(guarded, error=OriginUnavailable)
    assert guarded.state()["state"] == "closed"


def test_a_probe_that_succeeds_closes_it(guarded: Guarded, upstream: Upstream) -> None:
    due(guarded)
    ask(guarded, times=2)
    assert upstream.calls == 2
    assert guarded.state()["state"] == "closed"


def test_a_probe_that_fails_opens_it_for_longer(guarded: Guarded, upstream: Upstream) -> None:
    upstream.error = UNAVAILABLE
    due(guarded)
    ask(guarded, times=3, error=OriginUnavailable)
    assert upstream.calls == 1
    assert guarded.state()["retry_after"] > LIMITS.pause


def test_a_probe_that_told_nothing_leaves_its_place_to_the_next(guarded: Guarded, upstream: Upstream) -> None:
    upstream.error = KeyboardInterrupt()
    due(guarded)
    ask(guarded, error=KeyboardInterrupt)
    upstream.error = None
    ask(guarded)
    assert guarded.state()["state"] == "closed"


def test_a_probe_whose_process_died_is_replaced_when_its_lease_has_run_out() -> None:
    now, dead = 1000.0, State(open_until=900.0, probe="dead", probe_until=1001.0)
    assert breaker.entering("next", 10.0)(dead, now) == (dead, View("half_open", 1.0))
    state, seen = breaker.entering("next", 10.0)(dead, now + 2)
    assert (state.probe, seen) == ("next", View("half_open"))
    late, _ = breaker.ending("dead", good=True)(state, now + 3)
    assert late == state


def test_failures_older_than_the_window_are_forgotten() -> None:
    state = State()
    for now in (0.0, 50.0, 100.0, 150.0):
        state, seen = breaker.failing("", LIMITS)(state, now)
        assert seen.closed


def test_an_extraction_is_never_the_probe(guarded: Guarded, upstream: Upstream) -> None:
    due(guarded)
    upstream.error = UNAVAILABLE
    with pytest.raises(OriginUnavailable):
        guarded.extract(SCOPE, [], {}, Deadline.after(100))
    assert (upstream.checks, upstream.calls) == (1, 0)
    upstream.error = None
    due(guarded)
    guarded.extract(SCOPE, [], {}, Deadline.after(100))
    assert (upstream.checks, upstream.calls) == (2, 1)


def test_without_redis_each_process_has_its_own(
    upstream: Upstream, redis: redis_client.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> redis_client.Redis:
        return redis_client.Redis(unix_socket_path="/nonexistent/redis.sock", retry=Retry(NoBackoff(), 0))

    monkeypatch.setattr(breaker, "cache", down)
    guarded, other = Guarded(upstream, LIMITS), Guarded(upstream, LIMITS)  # type: ignore[arg-type]
    upstream.error = UNAVAILABLE
    ask(guarded, times=4, error=OriginUnavailable)
    assert upstream.calls == 3
    assert guarded.state() == {"state": "open", "retry_after": pytest.approx(60, abs=5), "shared": False}
    upstream.error = None
    ask(other)


def test_a_state_that_cannot_be_read_counts_as_closed(guarded: Guarded, redis: redis_client.Redis) -> None:
    redis.set(keys.breaker("upstream"), b"\xff{")
    ask(guarded)
    assert guarded.state()["state"] == "closed"


def test_two_processes_of_ten_threads_send_exactly_one_probe(redis: redis_client.Redis) -> None:
    """All twenty meet at a barrier in Redis; the one that gets through holds the probe until all have asked."""
    SharedStore("upstream").apply(lambda state, now: (State(open_until=now - 1), View("half_open")))
    command = [sys.executable, "-c", "from tests.memory.backends.test_breaker import prober; prober()"]
    probers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(prober.communicate(timeout=60)[0]) for prober in probers]
    assert sum(one["called"] for one in told) == 1
    assert sum(one["refused"] for one in told) == 19
    assert SharedStore("upstream").apply(breaker.view).closed


def prober() -> None:
    """One process of the test above: ten threads ask at the same moment."""
    import django

    django.setup()
    redis = redis_client.Redis.from_url(settings.REDIS_URL)
    counts = {"called": 0, "refused": 0}

    def arrive(name: str, all_of_them: int) -> None:
        if redis.incr(name) == all_of_them:
            redis.rpush(f"{name}:go", *range(all_of_them))
        redis.blpop([f"{name}:go"], timeout=30)

    class Slow(Upstream):
        def list(self, scope: Scope, deadline: Deadline) -> Listing:
            counts["called"] += 1
            arrive("asked", 20)
            return Listing([], complete=True)

    guarded = Guarded(Slow(), LIMITS)  # type: ignore[arg-type]

    def ask_once() -> None:
        arrive("ready", 20)
        try:
            guarded.list(SCOPE, Deadline.after(30))
        except OriginUnavailable:
            counts["refused"] += 1
            arrive("asked", 20)

    threads = [threading.Thread(target=ask_once) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(counts))


@pytest.fixture(params=[ProcessStore, lambda: SharedStore("upstream")], ids=["process", "shared"])
def store(request: pytest.FixtureRequest, redis: redis_client.Redis) -> Iterator[Any]:
    return request.param()


def test_no_change_is_lost_when_many_threads_make_them(store: Any) -> None:
    limits = Limits(failures=1000, window=600.0)
    start = threading.Barrier(10)

    def fail() -> None:
        start.wait()
        for _ in range(5):
            store.apply(breaker.failing("", limits))

    threads = [threading.Thread(target=fail) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen: list[int] = []

    def count(state: State, now: float) -> tuple[State, View]:
        seen.append(len(state.failures))
        return state, View("closed")

    store.apply(count)
    assert seen == [50]
