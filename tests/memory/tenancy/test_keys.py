"""API keys: shown once, known for a second, good for a while without PostgreSQL."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from memory import clock
from memory.errors import DatabaseUnavailable
from memory.models import ApiKey, Project
from memory.tenancy import keys

pytestmark = pytest.mark.django_db


@pytest.fixture
def time(monkeypatch):
    """A clock that goes on when told."""

    class Time:
        now = 1000.0

    monkeypatch.setattr(clock, "now", lambda: Time.now)
    return Time


@pytest.fixture
def away(monkeypatch):
    """PostgreSQL, gone from the next question on."""

    def go() -> None:
        def fail(digest: bytes) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr(keys, "_select", fail)

    return go


def make(project: Project, **more) -> str:
    return keys.create(project, name="test", scopes=["read", "write"], **more)[1]


def test_only_a_hash_of_the_secret_is_kept(project):
    key, secret = keys.create(project, name="test", scopes=["write", "read"])
    assert secret.startswith(key.prefix)
    kept = " ".join(str(value) for value in ApiKey.objects.values().get().values())
    assert secret.removeprefix(key.prefix) not in kept
    assert key.scopes == "read,write"


def test_a_secret_finds_its_caller(project):
    caller = keys.authenticate(make(project, user_id="ann"))
    assert caller is not None
    assert (caller.project, caller.user_id, caller.scopes) == (project.pk, "ann", {"read", "write"})


@pytest.mark.parametrize("change", [{"revoked_at": timezone.now()}, {"expires_at": timezone.now() - timedelta(1)}])
def test_a_revoked_or_expired_key_is_refused_within_a_second(project, time, change):
    secret = make(project)
    assert keys.authenticate(secret)
    ApiKey.objects.update(**change)
    time.now += keys.FRESH_SECONDS
    assert keys.authenticate(secret) is None


def test_a_key_is_read_once_a_second(project, time, django_assert_num_queries):
    secret = make(project)
    with django_assert_num_queries(1):
        for _ in range(10):
            keys.authenticate(secret)
    time.now += keys.FRESH_SECONDS
    with django_assert_num_queries(1):
        keys.authenticate(secret)


def test_what_cannot_be_a_key_is_refused_without_a_question(project, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert [keys.authenticate(secret) for secret in ("", "msk_", "x" * 55, "msk_" + "é" * 10)] == [None] * 4


def test_unknown_keys_fill_no_memory(project, monkeypatch):
    monkeypatch.setattr(keys, "MAX_UNKNOWN", 3)
    secret = make(project)
    for n in range(10):
        assert keys.authenticate(secret[:-2] + f"{n:02}") is None
    assert len(keys._unknown) <= 3


def test_while_postgresql_is_away_a_key_seen_lately_stays_good(project, time, away):
    secret, unseen = make(project), make(project)
    assert keys.authenticate(secret)
    away()
    time.now += keys.GRACE_SECONDS - 1
    assert keys.authenticate(secret)
    with pytest.raises(DatabaseUnavailable):
        keys.authenticate(unseen)
    time.now += 2
    with pytest.raises(DatabaseUnavailable):
        keys.authenticate(secret)


def test_last_use_is_written_off_the_request_and_once_a_minute(project, time, django_assert_num_queries):
    secret = make(project)
    keys.authenticate(secret)
    assert ApiKey.objects.get().last_used_at is None
    keys.save_last_used()
    assert ApiKey.objects.get().last_used_at is not None
    time.now += keys.USED_EVERY_SECONDS - 1
    keys.authenticate(secret)
    with django_assert_num_queries(0):
        keys.save_last_used()


def test_a_key_has_at_least_one_known_scope(project):
    for scopes in ([], ["root"], ["read", "root"]):
        with pytest.raises(ValueError, match="scopes"):
            keys.create(project, name="test", scopes=scopes)


def test_create_key_prints_a_secret_that_works(project):
    out = io.StringIO()
    call_command("create_key", "--project", "test", "--scopes", "read", "--user", "ann", "--days", "1", stdout=out)
    caller = keys.authenticate(out.getvalue().strip())
    assert caller is not None
    assert (caller.scopes, caller.user_id) == ({"read"}, "ann")


@pytest.mark.parametrize("words", [["--project", "none"], ["--scopes", "root"], ["--user", "a b"]])
def test_create_key_says_what_is_wrong(project, words):
    with pytest.raises(CommandError):
        call_command("create_key", "--project", "test", *words)
