"""A key's limit holds over processes, costs few round trips, and does not depend on CACHE."""

from __future__ import annotations

import pytest
import redis as redis_client
from django.test import Client

from memory import clock
from memory.tenancy import keys, limits


@pytest.fixture
def time(monkeypatch):
    """This process's clock, going on when told; the store's own goes on by itself."""

    class Time:
        now = 1000.0

    monkeypatch.setattr(clock, "now", lambda: Time.now)
    return Time


def passed(key: int, limit: int, tries: int) -> int:
    return sum(not limits.take(key, limit).wait for _ in range(tries))


def test_what_is_beyond_the_limit_is_refused_and_told_how_long_to_wait(redis):
    assert passed(1, 60, 60) == 60
    late = limits.take(1, 60)
    assert 0 < late.wait <= 1
    assert late.remaining == 0
    assert limits.take(2, 60).wait == 0


def test_two_processes_share_one_limit(redis):
    first = passed(1, 100, 50)
    limits.forget()
    second = passed(1, 100, 100)
    assert 95 <= first + second <= 100  # what a process held when it ended is lost: a block at most


def test_most_requests_cost_no_round_trip(redis, monkeypatch):
    asked = []
    real = limits.cache
    monkeypatch.setattr(limits, "cache", lambda: asked.append(1) or real())
    assert passed(1, 1000, 500) == 500
    assert len(asked) == 10


def test_a_slow_caller_loses_nothing_by_blocks_that_run_out(redis, time):
    for _ in range(40):
        assert limits.take(1, 100).wait == 0
        time.now += 2 * limits.BLOCK_SECONDS


def test_a_changed_limit_holds_at_once(redis):
    assert passed(1, 10, 20) == 10
    assert passed(1, 20, 30) == 20


def test_without_the_store_each_process_keeps_to_its_share(dead_redis, settings, time):
    settings.WEB_PROCESSES = 2
    assert 1 <= passed(1, 120, 200) <= 60
    time.now += 60
    assert passed(1, 120, 200) == 60


def test_without_the_store_a_share_holds_for_requests_that_cross(dead_redis, settings, time, monkeypatch):
    """While one finds the store away, another begins and ends."""
    settings.WEB_PROCESSES = 1
    share = passed(1, 120, 200)
    others = []

    def crossed():
        if not others:
            others.append(limits.Standing(120, 0))
            others[0] = limits.take(1, 120)
        raise redis_client.RedisError("away")

    monkeypatch.setattr(limits, "cache", crossed)
    assert limits.take(1, 120).wait > 0
    assert others[0].wait > 0
    time.now += 60
    assert share < passed(1, 120, 200) == 120


def test_without_the_store_a_changed_limit_holds_at_once(dead_redis, settings, time):
    settings.WEB_PROCESSES = 1
    assert passed(1, 1200, 200) == 60
    assert passed(1, 20, 20) == 1


@pytest.mark.django_db
def test_a_caller_is_told_how_it_stands_and_429_beyond(project, redis):
    secret = keys.create(project, name="slow", scopes=["read"], requests_per_minute=2)[1]
    told = [Client().get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"}) for _ in range(3)]
    assert [one.status_code for one in told] == [200, 200, 429]
    assert told[0]["RateLimit-Policy"] == '"key";q=2;w=60'
    assert told[0]["X-RateLimit-Remaining"] == "1"
    assert told[2].json()["code"] == "throttled"
    assert 1 <= int(told[2]["Retry-After"]) <= 30
    mem0 = Client().get("/v1/ping/", headers={"Authorization": f"Token {secret}"})
    assert (mem0.status_code, mem0["X-RateLimit-Limit"]) == (429, "2")
    assert mem0.json()["detail"]


@pytest.mark.django_db
def test_without_a_limit_nothing_is_counted(project, redis):
    secret = keys.create(project, name="free", scopes=["read"])[1]
    told = Client().get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert "RateLimit" not in told
    assert not redis.keys("ms:{rate*")
