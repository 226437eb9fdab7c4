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


@pytest.fixture(scope="session")
def _mem0_in_process(django_db_setup: None) -> Iterator[None]:
    """Its connections are closed before the test database is dropped."""
    from memory.backends import mem0_sdk

    yield
    mem0_sdk.close()


@pytest.fixture
def sdk(_mem0_in_process: None) -> object:
    """The real Mem0 in this process, on the test database; what one test stores, others see under its own ids only."""
    from memory.backends.mem0_sdk import Mem0SDK

    return Mem0SDK()
