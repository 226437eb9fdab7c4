"""G7: identical loads in flight are one, in a process and across processes (PROTOCOL E)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis as redis_client
from django.conf import settings as configured

from memory import flights
from memory.clock import Deadline
from memory.errors import OriginBusy, OriginError, OriginTimeout, OriginUnavailable
from tests.live import eventually

LEASE, RESULT = "ms:{t}:f", "ms:{t}:q"
WANTED = b"computed"


def across(redis, load, seconds: float = 5) -> tuple[bytes, bool]:
    def wanted(left: bytes) -> bytes | None:
        return left if left == WANTED else None

    return flights.across(LEASE, RESULT, wanted, load, Deadline.after(seconds))


def forbidden() -> bytes:
    raise AssertionError("this was to be loaded elsewhere")


def test_two_processes_of_a_hundred_threads_load_once(redis):
    """All two hundred meet at a barrier in Redis before they ask; the load holds until each has asked."""
    command = [sys.executable, "-c", "from tests.memory.test_flights import asker; asker()"]
    askers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(asker.communicate(timeout=60)[0]) for asker in askers]
    assert sum(one["answered"] for one in told) == 200
    assert sum(one["loads"] for one in told) == 1
    assert redis.get(LEASE) is None


def asker() -> None:
    """One process of the test above."""
    import django

    django.setup()
    redis = redis_client.Redis.from_url(configured.REDIS_URL)
    counts = {"answered": 0, "loads": 0}
    lock = threading.Lock()

    def load() -> bytes:
        counts["loads"] += 1
        eventually(lambda: int(redis.get("asked") or 0) >= 200)
        redis.set(RESULT, WANTED)
        return WANTED

    def ask() -> None:
        if redis.incr("ready") == 200:
            redis.rpush("go", *range(200))
        redis.blpop(["go"], timeout=30)
        redis.incr("asked")
        found, _ = flights.join("same", lambda: across(redis, load, 30), Deadline.after(30))
        with lock:
            counts["answered"] += found[0] == WANTED

    with ThreadPoolExecutor(100) as executor:
        for _ in range(100):
            executor.submit(ask)
    print(json.dumps(counts))


def test_whoever_finds_it_computed_meanwhile_does_not_load(redis):
    """The holder landed between this one's look at the layers and its taking of the lease."""
    redis.set(RESULT, WANTED)
    assert across(redis, forbidden) == (WANTED, False)
    assert redis.get(LEASE) is None


def test_another_version_under_the_result_is_no_outcome(redis):
    redis.set(RESULT, b"computed before")
    assert across(redis, lambda: WANTED) == (WANTED, True)


def test_while_the_lease_stands_others_wait_and_end_at_their_deadlines(redis):
    redis.set(LEASE, "somebody", px=60_000)
    with pytest.raises(OriginTimeout):
        across(redis, forbidden, 0.1)
    assert redis.get(LEASE) == b"somebody"


def test_e_after_a_killed_holders_lease_one_new_load_starts(redis):
    redis.set(LEASE, "killed", px=100)
    loads: list[int] = []

    def load() -> bytes:
        loads.append(1)
        redis.set(RESULT, WANTED)
        return WANTED

    with ThreadPoolExecutor(4) as executor:
        found = list(executor.map(lambda _: across(redis, load), range(4)))
    assert [answer for answer, _ in found] == [WANTED] * 4
    assert len(loads) == 1


def test_the_lease_outlasts_the_load_it_is_held_for(redis):
    held: list[int] = []
    across(redis, lambda: held.append(redis.pttl(LEASE)) or WANTED, 5)  # type: ignore[func-returns-value]
    assert 5_000 < held[0] <= 6_000


def test_a_load_that_failed_leaves_its_place_to_the_next(redis):
    def fail() -> bytes:
        raise OriginUnavailable("away")

    with pytest.raises(OriginUnavailable):
        across(redis, fail)
    assert across(redis, lambda: WANTED) == (WANTED, True)


def test_a_holder_whose_lease_ran_out_does_not_end_the_next_ones(redis):
    def late() -> bytes:
        redis.set(LEASE, "the next one")
        return WANTED

    across(redis, late)
    assert redis.get(LEASE) == b"the next one"


def test_without_redis_each_process_loads_for_itself(dead_redis):
    assert across(None, lambda: WANTED) == (WANTED, True)


@pytest.mark.parametrize(("error", "leaders"), [(OriginTimeout("late"), 0), (OriginBusy("no room before that"), 30)])
def test_a_follower_shares_the_leaders_error_but_not_its_lack_of_time(error, leaders):
    """The leader had a moment only; who has more asks again."""
    assert led_and_followed(error, leaders, 60) == ("mine", True)


def test_a_follower_without_more_time_shares_that_there_is_no_room():
    busy = OriginBusy("no room before that")
    assert led_and_followed(busy, 30, 20) is busy


def led_and_followed(error: OriginError, leaders: float, followers: float) -> object:
    """What a follower gets of a load that raises the error; deadlines in seconds from now."""
    joined = threading.Event()
    outcomes: list[object] = []

    def fail() -> str:
        joined.wait(5)
        raise error

    def lead() -> None:
        with pytest.raises(type(error)):
            flights.join("k", fail, Deadline.after(leaders))

    def follow() -> None:
        try:
            outcomes.append(flights.join("k", lambda: "mine", Deadline.after(followers)))
        except OriginError as told:
            outcomes.append(told)

    leader = threading.Thread(target=lead)
    leader.start()
    eventually(lambda: "k" in flights._flying)
    flight, _ = flights._flying["k"]
    follower = threading.Thread(target=follow)
    follower.start()
    eventually(lambda: flight._condition._waiters)  # type: ignore[attr-defined]
    joined.set()
    leader.join()
    follower.join()
    (outcome,) = outcomes
    return outcome


def test_a_follower_shares_what_mem0_said_to_the_leader():
    """Mem0 itself gave up: if each follower asked again it would be asked by all of them, one after the other."""
    go = threading.Event()
    asked: list[int] = []

    def refused() -> str:
        asked.append(1)
        go.wait(5)
        raise OriginTimeout("504")

    def ask() -> None:
        with pytest.raises(OriginTimeout):
            flights.join("k", refused, Deadline.after(30))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    eventually(lambda: "k" in flights._flying and len(flights._flying["k"][0]._condition._waiters) == 4)  # type: ignore[attr-defined]
    go.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
