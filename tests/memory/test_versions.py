"""PROTOCOL B: versions, their leased copies, floors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import transaction

from memory import db, keys, versions
from memory.models import Project
from memory.types import Pin
from tests.live import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pin(project: Project) -> Pin:
    return Pin(project.pk, "user", "ann")


def move(*pins: Pin, floor: bool = False) -> list:
    with transaction.atomic():
        return versions.move(pins, floor=floor)


def test_a_version_only_rises_and_is_a_time_in_microseconds(redis, pin):
    first = move(pin)[0].number
    second = move(pin)[0].number
    assert 1_700_000_000_000_000 < first < second < 2**53


def test_a_clock_set_back_cannot_repeat_a_version(redis, pin):
    from memory.models import PinVersion

    far = 2**52
    PinVersion.objects.create(project_id=pin.project, kind=pin.kind, pin_id=pin.id, version=far)
    assert move(pin)[0].number == far + 1


def test_a_version_is_never_one_that_was_before_a_restore(redis, pin):
    """A backup brings back the row of before: what was computed since must not come to life again."""
    from memory.models import PinVersion

    first, lost = move(pin)[0].number, move(pin)[0].number
    PinVersion.objects.update(version=first)
    assert move(pin)[0].number not in (first, lost)


def test_a_floor_that_comes_with_the_first_version_is_not_above_it(redis, pin):
    version = move(pin, floor=True)[0]
    assert version.floor == version.number


def test_a_pin_never_written_has_version_zero(redis, pin):
    assert versions.current(pin, 1).number == 0


def test_the_copy_spares_the_next_reader_a_query(redis, pin, django_assert_num_queries):
    number = move(pin)[0].number
    versions.current(pin, 1)
    with django_assert_num_queries(0):
        assert versions.current(pin, 1).number == number


def test_b6_a_copy_is_stored_only_while_its_token_stands(redis, pin):
    """Reader takes a token and reads PostgreSQL; a write commits and publishes; only then does the reader store."""
    project = Project.objects.get()
    old = versions.stored(pin)
    (taken,) = versions.take(versions.copied(pin, project.generation))
    assert taken.copy is None
    moved = move(pin)
    assert versions.publish(moved)
    redis.delete(keys.version(pin, project.generation))  # evicted: nothing newer guards any more
    versions.keep(old, project.generation, taken)
    assert versions.current(pin, project.generation).number == moved[0].number


def test_b6_a_late_reader_cannot_store_under_anothers_token(redis, pin):
    """It read PostgreSQL before a write; the write was published, its copy evicted, and a new reader has its token."""
    old = versions.stored(pin)
    (taken,) = versions.take(versions.copied(pin, 1))
    moved = move(pin)
    versions.publish(moved)
    redis.delete(keys.version(pin, 1))
    versions.take(versions.copied(pin, 1))
    versions.keep(old, 1, taken)
    assert versions.current(pin, 1).number == moved[0].number


def test_b6_flushall_takes_the_token_with_it(redis, pin):
    old = versions.stored(pin)
    (taken,) = versions.take(versions.copied(pin, 1))
    redis.flushall()
    versions.keep(old, 1, taken)
    assert redis.get(keys.version(pin, 1)) is None


def test_b6_the_copy_lives_no_longer_than_its_token_had_left(redis, pin):
    (taken,) = versions.take(versions.copied(pin, 1))
    redis.pexpire(keys.token(pin, 1), 5000)
    versions.keep(versions.stored(pin), 1, taken)
    assert 0 < redis.pttl(keys.version(pin, 1)) <= 5000


def test_a_publication_counts_its_lease_from_before_the_rows_were_locked(redis, pin, settings):
    moved = move(pin)
    spent = moved[0]._replace(confirmed_at=moved[0].confirmed_at - settings.VERSION_LEASE_SECONDS + 2)
    versions.publish([spent])
    assert 0 < redis.pttl(keys.version(pin, 1)) <= 2000


def test_an_older_publication_never_replaces_a_newer_copy(redis, pin):
    older = move(pin)
    newer = move(pin)
    versions.publish(newer)
    versions.publish(older)
    assert versions.current(pin, 1).number == newer[0].number


def test_publication_says_when_redis_did_not_confirm(pin, settings, dead_redis):
    assert versions.publish(move(pin)) is False


def test_b6_without_redis_one_reading_serves_all_who_came_before_it_began(pin, dead_redis, monkeypatch):
    """The first reading is under way when a write commits; five more readers come and must see the write."""
    began, go = threading.Event(), threading.Event()
    readings: list[int] = []
    stored = versions.stored

    def slow(of: Pin) -> versions.Version:
        found = stored(of)
        readings.append(found.number)
        if len(readings) == 1:
            began.set()
            go.wait(5)
        return found

    def read() -> int:
        try:
            return versions.current(pin, 1).number
        finally:
            db.release()

    monkeypatch.setattr(versions, "stored", slow)
    with ThreadPoolExecutor(6) as executor:
        first = executor.submit(read)
        began.wait(5)
        number = move(pin)[0].number
        later = [executor.submit(read) for _ in range(5)]
        eventually(lambda: pin in versions._coming)
        go.set()
        assert first.result() < number
        assert {one.result() for one in later} == {number}
    assert len(readings) <= 3


def test_the_floor_rises_only_when_asked(redis, pin):
    first = move(pin)[0]
    second = move(pin, floor=True)[0]
    third = move(pin)[0]
    assert (first.floor, second.floor, third.floor) == (0, second.number, second.number)


def test_pins_are_locked_in_one_order():
    pins = [Pin(1, "run", "a"), Pin(1, "user", "b"), Pin(1, "agent", "c"), Pin(1, "user", "a")]
    assert [(pin.kind, pin.id) for pin in versions.in_lock_order(pins)] == [
        ("user", "a"),
        ("user", "b"),
        ("agent", "c"),
        ("run", "a"),
    ]


def test_ids_with_braces_and_colons_make_no_foreign_key():
    names = {keys.version(Pin(1, "user", name), 1) for name in ("a", "a}", "{a}", "a:v", "a.b", "Nguyễn", "a/b")}
    assert len(names) == 7
    assert all(name.count("{") == name.count("}") == 1 for name in names)
