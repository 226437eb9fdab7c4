"""What is down, and what is answered then: every row of the outage table, dead and stalled, for reads and writes.

A dead server refuses connections; a stalled one accepts them and says nothing. Either way a request is answered within
its deadline, and an answer that is not as it should be says so, why, and how old it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_client
from django.conf import settings as configured
from django.db import Error as DatabaseError
from django.db import connection

from memory import clock, keys, refreshing, stack, upkeep, versions
from memory import redis_client as client
from memory.models import Job
from memory.tenancy import keys as api_keys
from memory.tenancy import projects
from memory.types import Pin, Scope
from memsvc.embedded.process import Record
from tests.conftest import Stopped
from tests.live import eventually

pytestmark = pytest.mark.django_db(transaction=True)

TIMEOUT_MS = 2000
PATIENCE = 0.4


@pytest.fixture
def known(api, worker) -> None:
    """Ann drinks tea: stored, asked once, in every layer that a search fills."""
    assert api.add("tea").status_code == 200
    assert texts(search(api)) == ["tea"]


def search(api, **more: Any) -> Any:
    """A search's answer, which came within its deadline."""
    began = clock.now()
    response = api.search(timeout_ms=TIMEOUT_MS, **more)
    assert clock.now() - began < TIMEOUT_MS / 1000 + 0.5
    return response


def texts(response) -> list[str]:
    assert response.status_code == 200, response.content
    return [one["memory"] for one in response.json()["results"]]


def meta(response) -> dict[str, Any]:
    assert response.status_code == 200, response.content
    return response.json()["meta"]


def labels(response) -> tuple[str, bool, bool, str | None]:
    told = meta(response)
    return told["layer"], told["stale"], told["degraded"], told["reason"]


def later(seconds: float, monkeypatch) -> None:
    """So much time passes for this process; CACHE's leases end with it."""
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + seconds)
    cache = redis_client.Redis.from_url(configured.REDIS_URL)
    for name in cache.scan_iter("ms:*"):
        left = cache.pttl(name) - int(seconds * 1000)
        cache.pexpire(name, left) if left > 0 else cache.delete(name)
    cache.close()


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


class Postgres:
    """PostgreSQL, to be stopped when everything is in place. While it is, it is given up sooner than in production."""

    def __init__(self, server: Any, settings: Any) -> None:
        self._server, self._settings, self._before = server, settings, settings.DATABASE_TIMEOUT_SECONDS
        self.away = False

    def stop(self) -> None:
        self._wait_for(PATIENCE)
        self._server.stop()
        self.away = True

    def resume(self) -> None:
        self._server.resume()
        self.away = False
        self._wait_for(self._before)

    def _wait_for(self, seconds: float) -> None:
        self._settings.DATABASE_TIMEOUT_SECONDS = seconds
        connection.close()
        connection.close_pool()
        connection.settings_dict.update(POOL_TIMEOUT_SECONDS=seconds)


@pytest.fixture(params=["dead", "stalled"])
def postgres(request: pytest.FixtureRequest, worker: None, settings: Any) -> Iterator[Postgres]:
    """Dead or stalled, and back at the end."""
    server = request.getfixturevalue("postgres_dead" if request.param == "dead" else "postgres_stopped")
    postgres = Postgres(server, settings)
    yield postgres
    if postgres.away:
        postgres.resume()
    refreshing.settle()


def test_without_postgresql_l0_and_l2_answer_for_the_rest_of_a_lease(api, known, postgres, monkeypatch):
    postgres.stop()
    assert labels(search(api)) == ("L0", False, False, None)
    stack.L0.held.clear()
    assert labels(search(api)) == ("L2", False, False, None)
    assert labels(search(api, consistency="eventual"))[2:] == (False, None)
    later(5, monkeypatch)
    assert labels(search(api))[1:] == (False, False, None)


def test_without_postgresql_and_lease_strict_asks_mem0_and_fills_nothing(api, known, postgres, monkeypatch, mem0):
    postgres.stop()
    later(configured.VERSION_LEASE_SECONDS + 1, monkeypatch)
    asked = mem0.calls.count("search")
    for _ in range(2):
        assert labels(search(api)) == ("L4", False, False, "version_unknown")
    assert mem0.calls.count("search") == asked + 2
    assert labels(search(api, consistency="eventual"))[:3] == ("L4", False, False)


def test_b9_without_postgresql_others_get_the_copy_only_while_its_floor_is_known(api, known, postgres, monkeypatch):
    """The lease of the pin's version ends before the process has given up the project's generation."""
    search(api)
    postgres.stop()
    redis_client.Redis.from_url(configured.REDIS_URL).delete(keys.version(ann(), 1), keys.pending(ann(), 1))
    later(1.5, monkeypatch)
    answer = search(api, consistency="eventual")
    assert labels(answer) == ("L0", True, True, "version_unknown")
    assert meta(answer)["age_ms"] >= 1500
    assert labels(search(api))[0] == "L4"
    assert labels(search(api, consistency="bounded", max_age_ms=1000))[0] == "L4"
    later(configured.BOUNDED_MAX_AGE_MS / 1000, monkeypatch)
    assert labels(search(api, consistency="eventual")) == ("L4", False, False, "version_unknown")


def test_b9_without_postgresql_and_mem0_the_copy_is_served_as_long_and_then_503(
    api, known, postgres, monkeypatch, mem0
):
    search(api)
    postgres.stop()
    mem0.down = True
    redis_client.Redis.from_url(configured.REDIS_URL).delete(keys.version(ann(), 1), keys.pending(ann(), 1))
    assert labels(search(api)) == ("L0", True, True, "origin_unavailable")
    later(configured.BOUNDED_MAX_AGE_MS / 1000 + 1, monkeypatch)
    refused = search(api)
    assert (refused.status_code, refused.json()["code"]) == (503, "origin_unavailable")
    assert int(refused["Retry-After"]) >= 1


def test_b5_a_generation_is_not_believed_longer_than_a_lease(api, known, postgres, monkeypatch, redis):
    """Others may have moved it meanwhile: a copy of a version that stands under it proves nothing."""
    pin = ann()
    copy = redis.get(keys.version(pin, 1))
    postgres.stop()
    later(configured.VERSION_LEASE_SECONDS + 1, monkeypatch)
    redis.set(keys.version(pin, 1), copy)
    redis.set(keys.pending(pin, 1), b"[0,[]]")
    assert labels(search(api)) == ("L4", False, False, "version_unknown")


def test_without_postgresql_writes_are_503_and_nothing_is_half_written(api, known, postgres):
    jobs = Job.objects.count()
    postgres.stop()
    for _ in range(2):
        began = clock.now()
        response = api.add("coffee", wait="none")
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
        assert int(response["Retry-After"]) >= 1
        assert clock.now() - began < 2 * PATIENCE + 0.5
    back(postgres)
    assert Job.objects.count() == jobs
    assert api.add("coffee").status_code == 200
    assert sorted(texts(search(api))) == ["coffee", "tea"]


def test_an_outage_of_postgresql_costs_a_process_one_wait_and_not_one_a_request(api, known, postgres):
    postgres.stop()
    api_keys.forget()
    began = clock.now()
    refused = [api.get("/stats") for _ in range(20)]
    assert {one.status_code for one in refused} == {503}
    assert clock.now() - began < 2 * PATIENCE + 1


def back(postgres: Any) -> None:
    """PostgreSQL is there again."""
    postgres.resume()
    eventually(_answers)
    api_keys.forget()
    projects.forget()


def _answers() -> bool:
    try:
        connection.close()
        return Job.objects.count() >= 0
    except DatabaseError:
        return False


def ann() -> Pin:
    return Pin(projects.policy(next(iter(projects._known))).id, "user", "ann")


# -- CACHE ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["dead", "stalled"])
def redis_away(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Likewise for CACHE."""
    if request.param == "stalled":
        yield request.getfixturevalue("cache_stopped").stop
    else:
        with pytest.MonkeyPatch.context() as patched:

            def die() -> None:
                patched.setattr(configured, "REDIS_URL", "unix:///nonexistent/redis.sock")
                client.cache.cache_clear()

            yield die
    client.cache.cache_clear()
    client._down_until = 0.0


def test_without_redis_l0_answers_with_the_version_from_postgresql(api, known, redis_away, mem0):
    redis_away()
    assert labels(search(api)) == ("L0", False, False, None)
    versions.move([ann()])
    mem0.store(scope(), "coffee")
    answer = search(api)
    assert (meta(answer)["layer"], sorted(texts(answer))) == ("L4", ["coffee", "tea"])
    assert labels(search(api)) == ("L0", False, False, None)


def test_without_redis_writes_are_accepted_and_delivered(api, known, redis_away, mem0):
    redis_away()
    began = clock.now()
    response = api.add("coffee", wait="none")
    assert response.status_code == 202
    assert clock.now() - began < 2
    eventually(lambda: "coffee" in mem0.texts("ann"))
    assert sorted(texts(search(api))) == ["coffee", "tea"]


def scope():
    return Scope(ann().project, "ann")


def test_a_connection_to_redis_whose_call_was_abandoned_is_never_used_again(redis, cache_stopped):
    """The answer to the call that was given up must not be taken for the answer to the next one."""
    redis.mset({"first": "one", "second": "two"})
    cache = client.cache()
    assert cache.get("second") == b"two"
    cache_stopped.stop()
    with pytest.raises(redis_client.TimeoutError):
        cache.get("first")
    cache_stopped.resume()
    client._down_until = 0.0
    assert [cache.get("second") for _ in range(3)] == [b"two"] * 3


# -- BROKER -----------------------------------------------------------------------------------------------------------


def test_without_broker_writes_are_accepted_at_once_and_the_sweeper_hands_them_over(api, mem0, home):
    broker = Stopped(Record.read(home / "run" / "broker.pid"))
    broker.stop()
    try:
        began = clock.now()
        assert api.add("tea", wait="none").status_code == 202
        assert clock.now() - began < 1.5
        assert texts(search(api)) == ["tea"]
    finally:
        broker.resume()
    assert Job.objects.get().state == "pending"
    assert upkeep._wake_due_lanes() == 1


# -- Mem0 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["dead", "stalled"])
def mem0_away(request: pytest.FixtureRequest, mem0) -> Iterator[Callable[[], None]]:
    """Likewise for Mem0; a stalled one is slow and black-holed alike: nothing comes before the deadline."""
    released = threading.Event()

    def away() -> None:
        if request.param == "dead":
            mem0.down = True
        else:
            mem0.stall = released

    yield away
    released.set()


REASONS = {"origin_unavailable", "origin_timeout"}


def test_without_mem0_what_is_current_is_answered_as_ever(api, known, mem0_away):
    mem0_away()
    assert labels(search(api)) == ("L0", False, False, None)
    stack.L0.held.clear()
    assert labels(search(api)) == ("L2", False, False, None)


def test_without_mem0_the_copy_before_a_write_is_served_labelled(api, known, mem0_away):
    assert api.add("coffee").status_code == 200
    mem0_away()
    layer, stale, degraded, reason = labels(answer := search(api))
    assert (layer, stale, degraded) == ("L2", True, True)
    assert reason in REASONS
    assert meta(answer)["age_ms"] > 0
    assert texts(answer) == ["tea"]


def test_without_mem0_l3_ranks_by_itself_where_the_project_lets_it(api, known, mem0_away, settings, mem0):
    from cachewarm import summarise

    summarise.summarise([Scope(ann().project, "ann")])
    settings.LOCAL_SEARCH = "degraded"
    projects.forget()
    assert meta(search(api, query="never asked before"))["layer"] == "L4"
    mem0_away()
    answer = search(api, query="tea, and never asked before either")
    assert labels(answer)[:3] == ("L3", False, True)
    assert labels(answer)[3] in REASONS
    assert texts(answer) == ["tea"]


def test_without_mem0_and_any_copy_the_caller_is_told_and_nothing_is_kept(api, worker, mem0, mem0_away):
    api.add("tea")
    mem0_away()
    refused = search(api)
    assert refused.status_code in (503, 504)
    assert refused.json()["code"] in REASONS
    mem0.down, mem0.stall = False, None
    assert texts(search(api)) == ["tea"]


def test_without_mem0_writes_are_accepted_and_delivered_in_order_when_it_is_back(api, worker, mem0, settings):
    settings.RETRY_SECONDS = settings.RETRY_MAX_SECONDS = 0.05
    mem0.down = True
    for n in range(3):
        assert api.add(f"fact {n}", wait="none").status_code == 202
    assert [one["memory"] for one in search(api).json().get("results", [])] == []
    mem0.down = False
    eventually(lambda: mem0.texts("ann") == ["fact 0", "fact 1", "fact 2"])
