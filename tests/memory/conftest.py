"""The real Mem0 in this process, for whoever needs it, and time enough for everyone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def patient(settings: Any) -> None:
    """A search waits for both memories however busy the machine is; who tests lateness sets a budget."""
    settings.STM_BUDGET_MS = 60_000


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
