"""Messages are kept in one order, once, and for one user."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from memory import pending
from memory.errors import DatabaseUnavailable
from memory.models import Message, Project, Session
from memory.stm import lifecycle, store, versions
from memory.stm.store import AnotherUser, Said, UserNeeded
from memory.tenancy.projects import Policy, policy
from tests.live import eventually

pytestmark = pytest.mark.django_db(transaction=True)


def contents() -> list[str]:
    return list(Message.objects.order_by("turn").values_list("content", flat=True))


def test_messages_are_numbered_in_the_order_they_came(say):
    assert [say("one").turns, say("two", "three").turns] == [(1,), (2, 3)]
    assert contents() == ["one", "two", "three"]


def test_the_same_message_again_is_the_same_turn(say):
    say("one", ids=("a",))
    say("two", "three", ids=("b",))
    assert say("one", "four", "two", ids=("a", "d", "b")).turns == (1, 4, 2)
    assert say("five", "five", ids=("e", "e")).turns == (5, 5)
    assert contents() == ["one", "two", "three", "four", "five"]


def test_a_session_begins_with_a_user_and_stays_theirs(ann, say):
    rules = policy(ann.project)
    with pytest.raises(UserNeeded):
        store.add("s", None, [Said("user", "tea", {})], rules)
    say("one")
    assert store.add("s", None, [Said("user", "two", {})], rules).turns == (2,)
    with pytest.raises(AnotherUser):
        store.add("s", "ben", [Said("user", "three", {})], rules)
    assert contents() == ["one", "two"]


def kept(said: Said, rules: Policy) -> bool:
    try:
        return bool(store.add("s", "ann", [said], rules).turns)
    except DatabaseUnavailable:  # more writers than connections, and a slow machine
        return False


def test_many_writers_lose_nothing_double_nothing_and_keep_their_own_order(ann):
    rules = policy(ann.project)

    def write(writer: int) -> None:
        for n in range(20):
            said = Said("user", f"{writer} {n}", {}, f"{writer}-{n}")
            for _ in range(2):  # as a client does that has lost the answer
                eventually(lambda said=said: kept(said, rules))
        connection.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(Message.objects.order_by("turn").values_list("turn", flat=True)) == list(range(1, 161))
    for writer in range(8):
        assert [text for text in contents() if text.startswith(f"{writer} ")] == [f"{writer} {n}" for n in range(20)]


def test_without_redis_messages_are_kept_all_the_same(say, dead_redis):
    say("one")
    assert contents() == ["one"]


def test_every_message_moves_the_sessions_version(say):
    seen = [say(text).session.version for text in ("one", "two", "three")]
    assert seen == sorted(set(seen))
    assert Session.objects.get().version == seen[-1]


def test_b5_a_writer_that_knows_a_former_generation_tells_the_readers_of_the_latest(ann, project, say, extract_on):
    extract_on("end")
    rules = policy(ann.project)
    latest = rules.generation + 2
    Project.objects.update(generation=latest)

    def known() -> tuple[versions.State | None, list[str]]:
        copy, _ = versions.take(ann.pin, "s", latest)
        return copy, [item.text for item in pending.current(ann.pin, latest).items]

    _, token = versions.take(ann.pin, "s", latest)
    versions.keep(ann.pin, "s", latest, versions.NONE, token)
    assert known() == (versions.NONE, [])
    session = store.add("s", "ann", [Said("user", "tea", {})], rules).session
    assert known() == (versions.State(session.pk, session.version), ["tea"])
    lifecycle.end(session.pk)
    copy, told = known()
    assert (copy.row, told) == (0, ["tea"])
    assert [item.kind for item in pending.current(ann.pin, latest).items if item.job] == ["extract"]
