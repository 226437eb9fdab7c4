"""Mem0 over REST, as the tests of the backends have it."""

from __future__ import annotations

import pytest

from memory.backends.mem0_rest import Mem0REST
from tests import real_mem0
from tests.fake_mem0 import FakeMem0


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
