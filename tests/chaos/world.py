"""The service under test: real processes, its servers behind proxies, the stand-in for Mem0 with a database of its own.

Everything lives on from run to run, unless its death is the fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
import requests

from memory.backends.namespaced import RESERVED
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.services import Services
from tests.chaos.history import Person
from tests.chaos.proxy import Proxy
from tests.fake_mem0 import FakeMem0
from tests.live import ROOT, Live, eventually

SCALE = 20
# Leases and time-outs at a twentieth of their defaults. Waiting for a server keeps a little more: two cores carry the
# service, its clients and everything behind it.
SMALL = {
    "VERSION_LEASE_SECONDS": 30 / SCALE,
    "LANE_LEASE_SECONDS": 150 / SCALE,
    "MEM0_LOOK_TIMEOUT_SECONDS": 20 / SCALE,
    "WARM_LEASE_SECONDS": 300 / SCALE,
    "MEM0_REST_API_TIMEOUT": 3,
    "MEM0_EXTRACT_TIMEOUT_SECONDS": 100 / SCALE,
    "MEM0_ADD_SETTLE_SECONDS": 30 / SCALE,
    "MEM0_EXTRACT_SETTLE_SECONDS": 120 / SCALE,
    "BREAKER_WINDOW_SECONDS": 10 / SCALE,
    "BREAKER_OPEN_SECONDS": 1 / SCALE,
    "BREAKER_OPEN_MAX_SECONDS": 10 / SCALE,
    "SWEEP_SECONDS": 0.5,
    "RESEND_SECONDS": 10 / SCALE,
    "RETRY_SECONDS": 1 / SCALE,
    "RETRY_MAX_SECONDS": 60 / SCALE,
    "EVENTUAL_MAX_STALE_SECONDS": 60 / SCALE,
    "CELERY_TASK_TIME_LIMIT_SECONDS": 900 // SCALE,
    "DATABASE_TIMEOUT_SECONDS": 1,
    "DATABASE_STATEMENT_TIMEOUT_SECONDS": 30 / SCALE,
    "REDIS_TIMEOUT_SECONDS": 0.1,
    "WARM_DEBOUNCE_SECONDS": 0.1,
    "WARM_MAX_WAIT_SECONDS": 1,
    "REBUILD_PERIOD_SECONDS": 60,
}
_KEY = """
from memory.models import Project
from memory.tenancy import keys, projects
project = Project(name="Second", slug="second")
projects.save(project)
print(keys.create(project, name="chaos", scopes=keys.SCOPES)[1])
"""


class World:
    """Started by `with`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()

    def __enter__(self) -> World:
        with ExitStack() as opening:
            self._start(opening)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _start(self, opening: ExitStack) -> None:
        self.servers = Services(Home(self._folder / "servers"), cache_mb=64, durable=False)
        for server in self.servers.every.values():
            opening.callback(server.stop)
            server.start()
        behind = Postgres(Home(self._folder / "upstream"), durable=False)
        opening.callback(behind.stop)
        behind.start()
        self.mem0 = FakeMem0(behind.url, self._folder / "mem0", "--by-words")
        opening.callback(self.mem0.stop)
        self.mem0.start()
        sockets = Home(self._folder / "servers").sockets
        self.proxies = {
            "postgres": Proxy(str(sockets / ".s.PGSQL.5432")),
            "cache": Proxy(str(sockets / "cache.sock")),
            "broker": Proxy(str(sockets / "broker.sock")),
            "mem0": Proxy(int(self.mem0.url.rpartition(":")[2])),
        }
        at = {name: f"127.0.0.1:{proxy.port}" for name, proxy in self.proxies.items()}
        self.live = Live(
            self._folder / "service",
            servers=self.servers,
            DATABASE_URL=f"postgresql://memsvc@{at['postgres']}/memsvc",
            REDIS_URL=f"redis://{at['cache']}/0",
            BROKER_URL=f"redis://{at['broker']}/0",
            MEM0_USE_REST_API="true",
            MEM0_REST_API_URL=f"http://{at['mem0']}",
            MEM0_REST_API_KEY=self.mem0.key,
            **SMALL,
        )
        opening.callback(self.live.remove)
        self.live.up()
        self.keys = {1: self.live.key, 2: self._second_key()}
        self.in_mem0(Person(1, "nobody"))  # its first call makes its table

    def _second_key(self) -> str:
        variables = {**os.environ, **self.live._env, "MEMSVC_HOME": str(self.live.home)}
        variables["SECRET_KEY"] = (self.live.home / "secret-key").read_text().strip()
        made = subprocess.run(
            [sys.executable, "manage.py", "shell", "-v0", "-c", _KEY],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.split()[-1]

    # -- what is in it -------------------------------------------------------------------------------------------------

    def redis(self, name: str) -> redis.Redis:
        """A direct connection to CACHE or BROKER."""
        socket = Home(self._folder / "servers").sockets / f"{name}.sock"
        return redis.Redis(unix_socket_path=str(socket))

    def open_jobs(self) -> int:
        """Writes that have not ended."""
        return int(self.live.rows("SELECT count(*) FROM memory_job WHERE state NOT IN ('completed', 'failed')")[0][0])

    def failed_jobs(self) -> dict[str, str]:
        """Ids of jobs that ended failed and kept their payload, and why they did."""
        sql = "SELECT job_id, reason FROM memory_job WHERE state = 'failed' AND payload IS NOT NULL"
        return {str(job): reason for job, reason in self.live.rows(sql)}

    def in_mem0(self, person: Person) -> list[str]:
        """What Mem0 holds of a person, asked without memsvc."""
        name = person.user if person.project == 1 else f"{RESERVED}{self._namespace()}~{person.user}"
        asked = {"user_id": name, "top_k": "1000", "show_expired": "true"}
        reply = requests.get(f"{self.mem0.url}/memories", asked, headers={"X-API-Key": self.mem0.key}, timeout=60)
        reply.raise_for_status()
        return [row["memory"] for row in reply.json()["results"]]

    def _namespace(self) -> str:
        return str(self.live.rows("SELECT namespace FROM memory_project WHERE slug = 'second'")[0][0])

    def search(self, person: Person, body: dict[str, Any]) -> requests.Response:
        """A strict search, at rest."""
        return self.live.call("POST", "/api/v1/memory/search", body, key=self.keys[person.project])

    def healthy(self) -> None:
        """Wait until everything runs and answers."""
        self.live.mend()
        eventually(lambda: requests.get(f"{self.mem0.url}/openapi.json", timeout=5).ok)
