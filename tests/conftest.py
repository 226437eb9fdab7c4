"""What every test may use: emptied stores, the people, and nothing left over from the test before.

PostgreSQL and both Valkeys are real and private to the run (`make test`); without them the tests do not start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis as redis_client
from django.conf import settings as configured

import memsvc.celery  # noqa: F401 - tests send tasks
from memory.types import Scope
from memsvc.embedded.home import Home
from memsvc.embedded.process import Record, parent
from memsvc.embedded.services import Services
from tests.fake_mem0 import FakeMem0
from tests.live import Live, process_kill

PATIENT_SECONDS = 10.0
IMPATIENT_SECONDS = 0.25

# The same examples in every run; HYPOTHESIS_PROFILE=default looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config: pytest.Config) -> None:
    configured.REDIS_TIMEOUT_SECONDS = PATIENT_SECONDS
    if "memsvc-test-" not in os.environ.get("MEMSVC_HOME", ""):
        pytest.exit("run the tests with `make test` (or python -m memsvc.embedded test): they empty their stores", 2)


@pytest.fixture(scope="session")
def home() -> Path:
    """The folder of this run; what is made inside it is stopped and removed with it."""
    return Path(os.environ["MEMSVC_HOME"])


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """No test sees what another left in this process's memory. What was never imported remembers nothing.

    CACHE has time to answer however busy the machine is; a test that stops it waits less.
    """
    if client := sys.modules.get("memory.redis_client"):
        client._down_until = 0.0
        if client.cache().connection_pool.connection_kwargs["socket_timeout"] != PATIENT_SECONDS:
            client.cache.cache_clear()
    for name in ("memory.tenancy.projects", "memory.tenancy.keys", "memory.tenancy.limits", "cachewarm.learned"):
        if module := sys.modules.get(name):
            module.forget()
    if sessions := sys.modules.get("memory.stm.search"):
        sessions.forget()
    if stack := sys.modules.get("memory.stack"):
        stack.L0.held.clear()
    yield
    if refreshing := sys.modules.get("memory.refreshing"):
        refreshing.settle()


@pytest.fixture
def redis() -> Iterator[redis_client.Redis]:
    """CACHE, emptied, and BROKER emptied with it."""
    cache = redis_client.Redis.from_url(configured.REDIS_URL)
    broker = redis_client.Redis(unix_socket_path=configured.BROKER_URL.partition("://")[2].partition("?")[0])
    cache.flushall()
    broker.flushall()
    yield cache
    cache.close()
    broker.close()


@pytest.fixture(scope="session")
def mem0_server(home: Path) -> Iterator[FakeMem0]:
    """The stand-in for Mem0's server, started once; whoever uses it resets it first."""
    server = FakeMem0(os.environ["DATABASE_URL"], home / "fake_mem0")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def project(db: None) -> object:
    """The project that Ann, Ben and Cy belong to."""
    from memory.models import Project

    return Project.objects.create(name="Test", slug="test")


def _person(name: str) -> Callable[[object], Scope]:
    @pytest.fixture(name=name.lower())
    def person(project) -> Scope:
        return Scope(project.pk, user_id=name.lower())

    return person


ann = _person("Ann")  # writes
ben = _person("Ben")  # reads
cy = _person("Cy")  # must see nothing


@pytest.fixture
def dead_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CACHE as a process sees it while it is down: nothing listens at its address."""
    from memory import redis_client as client

    monkeypatch.setattr(configured, "REDIS_URL", "unix:///nonexistent/redis.sock")
    client.cache.cache_clear()
    monkeypatch.setattr(client, "_down_until", 0.0)
    yield
    client.cache.cache_clear()


class Stopped:
    """A server of this run whose clock is stopped: it accepts connections and says nothing."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._pids: list[int] = []

    def stop(self) -> None:
        """Stop it and every process of its own. The parent first: it starts none meanwhile."""
        self._signal(self._record.pid)
        for folder in Path("/proc").glob("[0-9]*"):
            if parent(int(folder.name)) == self._record.pid:
                self._signal(int(folder.name))

    def resume(self) -> None:
        """Let it go on."""
        while self._pids:
            process_kill(self._pids.pop(), signal.SIGCONT)

    def _signal(self, pid: int) -> None:
        self._pids.append(pid)
        process_kill(pid, signal.SIGSTOP)


def _stopped(name: str, home: Path) -> Iterator[Stopped]:
    record = Record.read(home / "run" / f"{name}.pid")
    assert record
    stopped = Stopped(record)
    yield stopped
    stopped.resume()


@pytest.fixture
def postgres_stopped(home: Path, transactional_db: None) -> Iterator[Stopped]:
    """PostgreSQL to stop and resume; it goes on before the test's rows are removed."""
    yield from _stopped("postgres", home)


@pytest.fixture
def cache_stopped(home: Path, redis: redis_client.Redis, settings: Any) -> Iterator[Stopped]:
    """CACHE, likewise."""
    from memory import redis_client as client

    settings.REDIS_TIMEOUT_SECONDS = IMPATIENT_SECONDS
    client.cache.cache_clear()
    yield from _stopped("cache", home)
    client.cache.cache_clear()


class Dead:
    """PostgreSQL as this process sees it while it is down: nothing listens at its address."""

    host = ""

    def stop(self) -> None:
        """From now on."""
        self._move("/nonexistent")

    def resume(self) -> None:
        """It is back."""
        if self.host:
            self._move(self.host)

    def _move(self, host: str) -> None:
        from django.db import connection

        connection.close()
        connection.close_pool()
        self.host, connection.settings_dict["HOST"] = connection.settings_dict["HOST"], host


@pytest.fixture
def postgres_dead(transactional_db: None) -> Iterator[Dead]:
    """PostgreSQL to take away from this process; it is back before the test's rows are removed."""
    dead = Dead()
    yield dead
    if dead.host != "/nonexistent":
        dead.resume()


@pytest.fixture
def mem0(monkeypatch: pytest.MonkeyPatch) -> object:
    """A Mem0 that fails on command, behind the real stack."""
    from memory import stack
    from tests.failing_mem0 import FailingMem0

    origin = FailingMem0()
    monkeypatch.setattr(stack, "_build", lambda: origin)
    return origin


# Short, so that what waits for them in a test is soon over.
SMALL = {
    "VERSION_LEASE_SECONDS": 2,
    "MEM0_ADD_SETTLE_SECONDS": 2,
    "SWEEP_SECONDS": 0.5,
    "RETRY_MAX_SECONDS": 1,
    "WARM_DEBOUNCE_SECONDS": 0.1,
}


@pytest.fixture(scope="session")
def _live(home: Path) -> Iterator[Live]:
    servers = Services(Home(home / "live" / "servers"), cache_mb=64, durable=False)
    live = Live(home / "live", servers=servers, **SMALL)
    yield live
    live.remove()
    for server in servers.every.values():
        server.stop()


@pytest.fixture
def live(_live: Live) -> Live:
    """The whole service, ready, with servers that the test may stop and start. Use ids of your own: data stay."""
    _live.mend()
    return _live
