"""The wire to CACHE: fast, and never an answer to another's question."""

from __future__ import annotations

import threading

import pytest
import redis as redis_client

from memory import redis_client as client
from memory import redis_wire
from memory.redis_wire import ask


@pytest.fixture(autouse=True)
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed in one test is asked again in the next."""
    monkeypatch.setattr(client, "_down_until", 0.0)
    monkeypatch.setattr(client, "REST_SECONDS", 0.0)


def wire() -> redis_wire.Wire:
    return redis_wire._wire(client.cache().connection_pool)


def test_each_command_is_answered_in_its_place(redis):
    redis.set("a", "1")
    assert ask(("GET", "a"), ("MGET", "a", "b"), ("INCRBY", "c", 5)) == [b"1", [b"1", None], 5]


def test_an_answer_larger_than_one_packet_is_whole(redis):
    redis.set("a", b"x" * 1_000_000)
    assert ask(("GET", "a"), ("GET", "a")) == [b"x" * 1_000_000] * 2


def test_a_script_that_cache_has_forgotten_is_told_it_again(redis):
    for _ in range(2):
        assert redis_wire.run("return ARGV[1] .. KEYS[1]", [(["a"], [b"1"]), (["b"], [b"2"])]) == [b"1a", b"2b"]
        redis.script_flush()


def test_a_refused_command_is_an_error(redis):
    redis.set("a", "text")
    with pytest.raises(redis_client.ResponseError):
        ask(("INCR", "a"), ("GET", "a"))
    assert ask(("GET", "a")) == [b"text"]


def test_g1_what_came_too_late_answers_nobody(redis, cache_stopped):
    """The reply to the first question arrives after its caller has gone."""
    redis.mset({"ann": "tea", "ben": "mate"})
    ask(("GET", "ann"))
    cache_stopped.stop()
    with pytest.raises(redis_client.TimeoutError):
        ask(("GET", "ann"))
    assert wire()._idle == []
    cache_stopped.resume()
    assert ask(("GET", "ben")) == [b"mate"]


def test_a_cache_started_anew_costs_no_answer(redis):
    """Every line that waits for work has been closed at the other end."""
    together = threading.Barrier(3)

    def work() -> None:
        together.wait()
        ask(("GET", "a"))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    redis.client_kill_filter(_type="normal", skipme=True)
    assert ask(("GET", "a")) == [None]


def test_nobody_asks_a_cache_that_rests(redis, cache_stopped, monkeypatch):
    """After one time-out the next callers are told at once."""
    monkeypatch.setattr(client, "REST_SECONDS", 60.0)
    wire()._idle += [wire()._taken()[0] for _ in range(2)]
    cache_stopped.stop()
    with pytest.raises(redis_client.TimeoutError):
        ask(("GET", "a"))
    with pytest.raises(redis_client.ConnectionError, match="a moment ago"):
        ask(("GET", "a"))
