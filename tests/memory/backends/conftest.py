"""Mem0 over REST, as the tests of the backends have it."""

from __future__ import annotations

import os

import pytest

from memory.backends.mem0_rest import Mem0REST
from tests.fake_mem0 import FakeMem0


@pytest.fixture
def rest(mem0_server: FakeMem0) -> Mem0REST:
    """Mem0 over REST: the stand-in, working and without counts."""
    mem0_server.control(faults=[], version="current", forget_counts=True)
    return Mem0REST(mem0_server.url, key=mem0_server.key, pause=lambda seconds: None)


@pytest.fixture
def real_rest() -> Mem0REST:
    """Mem0's real server, where MEM0_REAL_URL and MEM0_REAL_KEY name one that tests may fill."""
    if "MEM0_REAL_URL" not in os.environ:
        pytest.skip("MEM0_REAL_URL names no real Mem0 server")
    return Mem0REST(os.environ["MEM0_REAL_URL"], key=os.environ.get("MEM0_REAL_KEY", ""))
