"""Twenty runs of chaos, always the same ones; `make chaos` makes others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.world import World

SEED, RUNS = 2026, 20


@pytest.fixture(scope="module")
def world(home: Path) -> Iterator[World]:
    """One for all runs."""
    with World(home / "chaos") as started:
        yield started


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(RUNS))
def test_no_guarantee_is_broken_whatever_fails(world: World, number: int) -> None:
    outcome = run(world, SEED, number)
    assert outcome.wrong == [], f"seed {SEED}, run {number}: {outcome.faults}"
    assert outcome.writes > 0
    assert outcome.reads > 0
