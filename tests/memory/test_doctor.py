"""`manage.py doctor` while all is well, and while parts are not: a line with a mend, and no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis as redis_client
from django.core.management import call_command

from memory import doctor, upkeep
from memory.doctor import Finding
from memory.status import QUEUES

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def words(redis, settings):
    settings.EMBEDDER = "none"
    settings.MEM0_USE_REST_API = True
    settings.MEM0_REST_API_URL = "http://127.0.0.1:1"


def states(found: list[Finding]) -> dict[str, str]:
    return {one.part: one.state for one in found}


def test_when_all_is_well_it_says_so_of_every_part(mem0, settings):
    for queue in QUEUES:
        upkeep.seen(queue)
    upkeep.sweep()
    said = io.StringIO()
    call_command("doctor", stdout=said)
    lines = said.getvalue().splitlines()
    told = {line[6:].split(":")[0] for line in lines if line.startswith("ok")}
    assert told >= {"versions", "PostgreSQL", "migrations", "pgvector", "CACHE", "Mem0", "embedder", "clocks", "work"}
    assert not [line for line in lines if line.startswith("FAIL")]


def test_a_broker_that_evicts_fails_with_its_mend(mem0, settings):
    path = settings.BROKER_URL.partition("://")[2].partition("?")[0]
    broker = redis_client.Redis(unix_socket_path=path)
    broker.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = list(doctor.examine())
    finally:
        broker.config_set("maxmemory-policy", "noeviction")
        broker.close()
    (roles,) = [one for one in found if one.part == "roles" and one.state == "fail"]
    assert "BROKER evicts (allkeys-lru)" in roles.said
    assert "noeviction" in roles.mend


def test_pickle_anywhere_fails(mem0, settings):
    settings.CELERY = {**settings.CELERY, "accept_content": ["json", "pickle"]}
    (found,) = [one for one in doctor.examine() if one.part == "settings" and one.state == "fail"]
    assert "pickle" in found.said


def test_without_redis_the_others_are_still_told(mem0, dead_redis):
    found = states(list(doctor.examine()))
    assert (found["CACHE"], found["roles"], found["clocks"]) == ("fail", "fail", "fail")
    assert (found["PostgreSQL"], found["Mem0"]) == ("ok", "ok")


def test_a_mem0_that_is_away_fails_with_where_to_look(mem0):
    mem0.check = lambda deadline: mem0.list(None, deadline)
    mem0.down = True
    (found,) = [one for one in doctor.examine() if one.part == "Mem0"]
    assert (found.state, "MEM0_REST_API_URL" in found.mend) == ("fail", True)


def test_what_hangs_is_given_up(mem0, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(mem0, "check", lambda deadline: {"waited": hangs.wait(10)})
    found = [one for one in doctor.examine(patience=1.0) if one.part == "Mem0"]
    hangs.set()
    assert [(one.state, one.said) for one in found] == [("fail", "does not answer within 1 s")]


def test_clocks_that_differ_are_told_by_how_much(mem0, monkeypatch):
    from datetime import timedelta

    from memory import clock

    ahead = clock.wall
    monkeypatch.setattr(clock, "wall", lambda: ahead() + timedelta(minutes=5))
    (found,) = [one for one in doctor.examine() if one.part == "clocks"]
    assert found.state == "fail"
    assert "PostgreSQL -300." in found.said or "PostgreSQL -299." in found.said
    assert "NTP" in found.mend


def test_migrations_that_were_not_applied_are_told(mem0, monkeypatch):
    from django.db.migrations.executor import MigrationExecutor

    monkeypatch.setattr(MigrationExecutor, "migration_plan", lambda self, targets: [1, 2])
    (found,) = [one for one in doctor.examine() if one.part == "migrations"]
    assert (found.state, found.said) == ("fail", "2 are not applied")


def test_with_everything_down_it_ends_by_its_exit_code_and_shows_no_traceback():
    nowhere = {
        "DATABASE_URL": "postgres://u:very-secret@127.0.0.1:1/x",
        "REDIS_URL": "redis://:very-secret@127.0.0.1:1/0",
        "BROKER_URL": "redis://:very-secret@127.0.0.1:2/0",
        "MEM0_USE_REST_API": "true",
        "MEM0_REST_API_URL": "http://127.0.0.1:3",
        "EMBEDDER": "none",
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor"],
        cwd=ROOT,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "very-secret" not in done.stdout + done.stderr
    failed = {line[6:].split(":")[0] for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert failed >= {"PostgreSQL", "CACHE", "roles", "Mem0", "clocks", "work"}
    assert done.stdout.count("→") >= len(failed)
