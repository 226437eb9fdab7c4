"""When to try again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from memory.retry import MOST_SECONDS, Budget, backoff, retry_after

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("99999999999999999999", MOST_SECONDS),
        ("Tue, 01 Jan 2030 12:00:30 GMT", 30.0),
        ("Tue, 01 Jan 2030 12:00:30", 30.0),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0.0),
        ("Wed, 02 Jan 2030 12:00:00 GMT", MOST_SECONDS),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_backoff_draws_from_a_range_that_doubles_up_to_its_limit() -> None:
    widest = [backoff(attempt, base=0.1, most=1.0, draw=lambda: 1.0) for attempt in range(6)]
    assert widest == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff(3, base=0.1, most=1.0, draw=lambda: 0.0) == 0.0


def test_the_budget_allows_a_burst_and_then_a_share_of_the_calls() -> None:
    budget = Budget(share=0.1, burst=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    allowed = 0
    for _ in range(100):
        budget.earn()
        allowed += budget.spend()
    assert 9 <= allowed <= 10
