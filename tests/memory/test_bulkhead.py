"""PROTOCOL E: calls that wait leave threads for those that do not."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from memory import bulkhead
from memory.errors import Overloaded


@pytest.fixture(autouse=True)
def rebuilt(settings):
    settings.WEB_THREADS = 40
    for places in (bulkhead._places, bulkhead._embedding_places):
        places.cache_clear()
    yield
    for places in (bulkhead._places, bulkhead._embedding_places):
        places.cache_clear()


def test_half_of_the_threads_may_wait_and_no_more():
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(bulkhead.waiting())
        with pytest.raises(Overloaded), bulkhead.waiting():
            pass
    with bulkhead.waiting():
        pass


def test_a_place_is_given_back_after_an_error():
    for _ in range(50):
        with pytest.raises(RuntimeError), bulkhead.waiting():
            raise RuntimeError


def test_vectors_have_places_of_their_own_that_leave_a_quarter_of_the_threads():
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(bulkhead.waiting())
        for _ in range(10):
            held.enter_context(bulkhead.embedding())
        with pytest.raises(Overloaded), bulkhead.embedding():
            pass
    with bulkhead.embedding():
        pass
