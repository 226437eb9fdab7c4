"""G7: Mem0 is asked no oftener, and by no more at a time, than is set, by all processes together."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis as redis_client
from django.conf import settings as configured

from memory import clock, keys
from memory.backends import breaker, gate
from memory.backends.breaker import Guarded, State, View
from memory.backends.gate import Gate, Limits
from memory.clock import Deadline
from memory.errors import OriginBusy
from memory.types import Scope
from tests.memory.backends.test_breaker import LIMITS, Upstream


def gate_of(rate: float = 0, places: int = 0, ramp: float = 0) -> Gate:
    return Gate("upstream", lambda: Limits(rate, places, ramp))


def passes(one: Gate, seconds: float = 0.0) -> bool:
    try:
        with one.passing(Deadline.after(seconds)):
            return True
    except OriginBusy:
        return False


@pytest.fixture(params=["shared", "alone"])
def cache_state(request: pytest.FixtureRequest, settings) -> str:
    """With CACHE, and as the only process without it."""
    request.getfixturevalue("redis" if request.param == "shared" else "dead_redis")
    settings.UPSTREAM_PROCESSES = 1
    return str(request.param)


@pytest.fixture
def slow(monkeypatch) -> Gate:
    """Four calls at once and then one in two seconds: slower than any machine makes them."""
    monkeypatch.setattr(gate, "BURST_PART", 8)
    return gate_of(rate=0.5)


def test_no_more_calls_are_made_at_once_than_the_burst(cache_state, slow):
    assert [passes(slow) for _ in range(6)] == [True] * 4 + [False] * 2


def test_no_more_are_under_way_than_there_are_places_and_an_ended_one_gives_its_place_back(cache_state):
    one = gate_of(places=3)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(one.passing(Deadline.after(10)))
        assert one.state()["in_flight"] == 3
        assert not passes(one)
    assert passes(one)
    assert one.state()["in_flight"] == 0


def test_who_finds_no_place_waits_for_one_until_the_deadline(cache_state):
    one = gate_of(places=1)
    with ThreadPoolExecutor(1) as executor:
        with one.passing(Deadline.after(10)):
            waiting = executor.submit(passes, one, 10)
            assert not passes(one, 0.1)
        assert waiting.result() is True


def test_the_refusal_says_when_to_come_again_and_that_nothing_was_sent(redis):
    one = gate_of(rate=0.1)
    assert passes(one)
    with pytest.raises(OriginBusy) as refused, one.passing(Deadline.after(0.01)):
        pass
    assert not refused.value.sent
    assert 9 < (refused.value.retry_after or 0) <= 10


def test_warming_leaves_half_to_live_calls(cache_state, slow):
    with gate.warming():
        assert [passes(slow) for _ in range(3)] == [True, True, False]
    assert [passes(slow) for _ in range(3)] == [True, True, False]


def test_warming_leaves_half_of_the_places_to_live_calls(cache_state):
    one = gate_of(places=4)
    with ExitStack() as held:
        with gate.warming():
            for _ in range(2):
                held.enter_context(one.passing(Deadline.after(10)))
            assert not passes(one)
        held.enter_context(one.passing(Deadline.after(10)))
        assert passes(one)


def test_after_an_outage_both_limits_begin_at_a_tenth_and_rise(cache_state):
    one = gate_of(rate=1000, places=50, ramp=60)
    one.ramp()
    with ExitStack() as held:
        begun = 0
        for _ in range(50):
            try:
                held.enter_context(one.passing(Deadline.after(0.02)))
                begun += 1
            except OriginBusy:
                break
    assert begun == 5
    assert one.state()["open_percent"] == 10
    assert gate_of(rate=1000, places=50, ramp=0).state()["open_percent"] == 100


def test_a_breaker_that_closes_opens_the_gate_a_little_at_first(redis, settings):
    settings.UPSTREAM_RAMP_SECONDS = 60
    upstream = Upstream()
    guarded = Guarded(upstream, LIMITS)  # type: ignore[arg-type]
    guarded.list(Scope(1, "ann"), Deadline.after(10))
    assert gate.of("upstream").state()["open_percent"] == 100
    guarded._shared.apply(lambda state, now: (State(open_until=now - 1), View("half_open")))
    guarded._believed = (0.0, View("closed"))
    guarded.list(Scope(1, "ann"), Deadline.after(10))
    assert guarded.state()["state"] == "closed"
    assert gate.of("upstream").state()["open_percent"] == 10


def test_a_refusal_of_ours_tells_the_breaker_nothing_of_mem0(redis):
    upstream = Upstream()
    upstream.error = OriginBusy("busy")
    guarded = Guarded(upstream, LIMITS)  # type: ignore[arg-type]
    guarded._shared.apply(lambda state, now: (State(open_until=now - 1), View("half_open")))
    guarded._believed = (0.0, View("closed"))
    with pytest.raises(OriginBusy):
        guarded.list(Scope(1, "ann"), Deadline.after(10))
    assert guarded._shared.apply(breaker.view).phase == "half_open"


def test_a_killed_process_gives_its_places_back_when_its_calls_would_have_ended(redis):
    one = gate_of(places=1)
    assert one._try(Limits(0, 1, 0), Deadline.after(0))[0]
    places = keys.upstream_places("upstream")
    redis.zadd(places, dict.fromkeys(redis.zrange(places, 0, -1), 1))
    assert passes(one)


def test_without_cache_each_process_has_an_even_share(dead_redis, settings):
    settings.UPSTREAM_PROCESSES = 5
    one = gate_of(places=20)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(one.passing(Deadline.after(10)))
        assert not passes(one)


def test_g7_two_processes_together_stay_within_the_rate(redis):
    """Each tries as hard as it can for a second; what got through is counted where Mem0 would be."""
    command = [sys.executable, "-c", "from tests.memory.backends.test_gate import caller; caller()"]
    callers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = sorted(at for one in callers for at in json.loads(one.communicate(timeout=60)[0]))
    rate, burst = 100, 10
    assert len(made) > 20
    for first, start in enumerate(made):
        for last in range(first, len(made)):
            assert last - first + 1 <= (made[last] - start) * rate + burst + 1 + SLACK


SLACK = 3
"""Calls that a loaded machine lets pass the gate and makes a moment later."""


def caller() -> None:
    """One process of the test above."""
    import django

    django.setup()
    redis = redis_client.Redis.from_url(configured.REDIS_URL)
    one = gate_of(rate=100)
    made: list[float] = []
    if redis.incr("ready") == 2:
        redis.rpush("go", 1, 1)
    redis.blpop(["go"], timeout=30)
    end = Deadline.after(0.6)

    def call() -> None:
        while not end.passed:
            try:
                with one.passing(end):
                    made.append(clock.now())
            except OriginBusy:
                return

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(made))
