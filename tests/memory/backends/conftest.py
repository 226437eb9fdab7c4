"""Mem0 over REST and its Platform, as the tests of the backends have it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from memory.backends.mem0_platform import Mem0Platform
from memory.backends.mem0_rest import Mem0REST
from tests import real_mem0
from tests.fake_mem0 import FakeMem0
from tests.fake_platform import KEY, Server


@pytest.fixture
def rest(mem0_server: FakeMem0) -> Mem0REST:
    """Mem0 over REST: the stand-in, working and without counts."""
    mem0_server.control(faults=[], version="current", forget_counts=True)
    return Mem0REST(mem0_server.url, key=mem0_server.key, pause=lambda seconds: None)


@pytest.fixture
def real_rest() -> Mem0REST:
    """Mem0's real server, where one is named."""
    server = real_mem0.named()
    return Mem0REST(server.url, key=server.key)


@pytest.fixture(scope="module")
def platform_server(mem0_server: FakeMem0) -> Iterator[Server]:
    """The Platform's stand-in, in front of that of Mem0's server."""
    server = Server(mem0_server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def platform(mem0_server: FakeMem0, platform_server: Server) -> Mem0Platform:
    """Mem0's Platform: the stand-in, working and without counts."""
    mem0_server.control(faults=[], version="current", forget_counts=True)
    platform_server.reset()
    return Mem0Platform(platform_server.url, key=KEY, pause=lambda seconds: None)
