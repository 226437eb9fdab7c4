"""Mem0's server as the tests of the backends have it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_mem0 import FakeMem0


@pytest.fixture(scope="session")
def mem0_server(home: Path) -> Iterator[FakeMem0]:
    """The stand-in, started once; whoever uses it resets it first."""
    server = FakeMem0(os.environ["DATABASE_URL"], home / "fake_mem0")
    server.start()
    yield server
    server.stop()
