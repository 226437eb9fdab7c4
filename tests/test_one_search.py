"""G7 from outside: two hundred callers, two web processes, one search of Mem0."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import requests
from django.db import connection

from memory.models import Project
from memory.tenancy import keys
from tests.fake_mem0 import FakeMem0
from tests.live import ROOT, eventually, free_port

pytestmark = pytest.mark.django_db(transaction=True)

CALLERS = 200


@pytest.fixture
def web(mem0_server: FakeMem0, redis: object) -> Iterator[str]:
    """Two web processes over REST, on the test's own database; threads enough that every caller may wait."""
    port = free_port()
    params = connection.get_connection_params()
    variables = {
        **os.environ,
        "DATABASE_URL": os.environ["DATABASE_URL"].replace("/memsvc?", f"/{params['dbname']}?"),
        "MEM0_USE_REST_API": "true",
        "MEM0_REST_API_URL": mem0_server.url,
        "MEM0_REST_API_KEY": mem0_server.key,
        "WEB_THREADS": str(2 * CALLERS),
        "PROACTIVE_CACHE_ENABLED": "false",
        "REDIS_TIMEOUT_SECONDS": "10",  # a process that has given CACHE up has a flight of its own
    }
    size = ["--workers", "2", "--blocking-threads", str(2 * CALLERS), "--port", str(port), "--log-level", "error"]
    argv = [sys.executable, "-m", "granian", "--interface", "wsgi", "--no-ws", *size, "memsvc.wsgi:application"]
    server = subprocess.Popen(argv, cwd=ROOT, env=variables)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _answers(url))
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.timeout(120)
def test_g7_two_hundred_identical_misses_over_two_processes_are_one_search(web, mem0_server):
    project = Project.objects.create(name="One", slug="one")
    _, secret = keys.create(project, name="test", scopes=keys.SCOPES)
    stall = {"how": "stall", "kinds": ["search"], "seconds": 30}
    mem0_server.control(faults=[stall], version="current", forget_counts=True)
    start = threading.Barrier(CALLERS)
    answers: list[requests.Response] = []

    def ask() -> None:
        body = {"user_id": "ann", "query": "what does Ann drink?", "timeout_ms": 40_000}
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {secret}"
            start.wait()
            answers.append(session.post(f"{web}/api/v1/memory/search", json=body, timeout=60))

    def joined() -> int:
        counted = requests.get(f"{web}/api/v1/stats", headers={"Authorization": f"Bearer {secret}"}, timeout=10).json()
        return int(counted["loads_joined"])

    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    # Each that does not lead its process joins there, and one of the two leaders joins the other.
    eventually(lambda: joined() >= CALLERS - 1, 60)
    mem0_server.control(faults=[])
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * CALLERS
    assert len({answer.headers["X-Memsvc-Process"] for answer in answers}) == 2
    assert mem0_server.control()["calls"]["search"] == 1
    assert sum(answer.json()["meta"]["upstream_calls"] for answer in answers) == 1
