"""The real Mem0 in this process, for whoever needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


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
