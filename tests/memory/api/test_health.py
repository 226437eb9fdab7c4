"""When a process says that it is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import OperationalError
from django.test import Client

from memory.api import health
from memory.api.health import EVERY_SECONDS, QUEUES, START_SECONDS, Readiness

pytestmark = pytest.mark.django_db(transaction=True)


class World:
    """What a process sees: the time and the workers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: set[str] = set()
        self.away = False
        self.ended = threading.Event()

    def workers(self) -> set[str]:
        if self.away:
            raise OperationalError("gone")
        return self.seen


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def ask(world: World, redis: object, mem0: object) -> Callable[[], tuple[int, dict]]:
    readiness = Readiness(world.workers, lambda: world.now)

    def later() -> tuple[int, dict]:
        world.now += EVERY_SECONDS
        return readiness.report()

    return later


def test_a_process_waits_for_a_worker_of_every_queue(world, ask):
    world.seen = {"deliver", "warm"}
    status, body = ask()
    assert (status, body["status"], body["waits_for"]) == (503, "starting", "workers")
    world.seen = set(QUEUES)
    status, body = ask()
    assert (status, body["status"]) == (200, "ready")
    assert set(body["dependencies"].values()) == {"up"}


def test_once_ready_a_missing_worker_is_only_told(world, ask):
    world.seen = set(QUEUES)
    ask()
    world.seen = {"warm", "rebuild"}
    status, body = ask()
    assert (status, body["status"], body["dependencies"]["worker:deliver"]) == (200, "degraded", "down")


def test_without_any_worker_a_process_serves_after_a_while(world, ask):
    world.now = START_SECONDS
    assert ask()[0] == 200


def test_unapplied_migrations_are_waited_for(world, ask, monkeypatch):
    world.seen = set(QUEUES)
    monkeypatch.setattr(health, "_migrated", lambda: False)
    status, body = ask()
    assert (status, body["waits_for"]) == (503, "migrations")


def test_ready_while_one_store_answers_and_not_when_none_does(world, ask, monkeypatch):
    world.seen = set(QUEUES)
    ask()
    world.away = True
    assert ask()[0] == 200
    monkeypatch.setattr(health, "_ask_cache", _refuse)
    status, body = ask()
    assert (status, body["status"]) == (503, "down")


def test_dependencies_are_asked_once_a_second(world, redis):
    world.now = START_SECONDS
    readiness = Readiness(world.workers, lambda: world.now)
    first = readiness.report()
    world.seen = set(QUEUES)
    assert readiness.report() == first


def test_a_broker_that_is_away_is_told(world, ask, monkeypatch):
    world.seen = set(QUEUES)
    monkeypatch.setattr(health, "_ask_broker", _refuse)
    status, body = ask()
    assert (status, body["dependencies"]["broker"]) == (200, "down")


def test_what_hangs_is_told_and_hangs_no_probe(world, ask, monkeypatch):
    world.seen = set(QUEUES)
    ask()
    for name in ("_ask_broker", "_ask_cache"):
        monkeypatch.setattr(health, name, world.ended.wait)
    status, body = ask()
    world.ended.set()
    assert (status, body["dependencies"]["broker"], body["dependencies"]["cache"]) == (200, "down", "down")


def test_mem0_is_asked_beside_the_request(world, ask, mem0):
    world.seen = set(QUEUES)
    mem0.check = lambda deadline: world.ended.set()
    assert ask()[0] == 200
    assert world.ended.wait(5)


def test_health_needs_no_key(redis):
    assert Client().get("/healthz").json() == {"status": "ok"}
    assert Client().get("/readyz").status_code in (200, 503)


def _refuse() -> None:
    raise OSError("refused")
