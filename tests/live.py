"""The whole service as `make up` runs it, for tests from outside: real supervisor, web, workers, beat and servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import psycopg2
import requests

from memsvc.embedded import process
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.process import Record
from memsvc.embedded.services import Services
from memsvc.embedded.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent
UP = (sys.executable, "-m", "memsvc.embedded", "up")
READY_SECONDS = 240
# Of the test run itself, and not for the service under test.
OWN = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "SECRET_KEY", "MEM0_DIR", "DJANGO_SETTINGS_MODULE")
T = TypeVar("T")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(found: Callable[[], T], seconds: float = 60) -> T:
    """The first truthy value of `found`, asked again and again; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.05)
    return value


class Live:
    """One running service. Its servers belong to the supervisor, or to the test when `servers` is given."""

    def __init__(
        self, folder: Path, *, servers: Services | None = None, user: str | None = None, **env: object
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = int(str(env.get("PORT") or free_port()))
        self.servers = servers
        self.supervisor: subprocess.Popen[bytes] | None = None
        self._user = user
        self._env = {name: str(value) for name, value in env.items()}
        self._output = folder / "up.log"

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self, words: Sequence[str] = UP) -> Live:
        """Begin to start, without waiting for it."""
        for server in self.servers.every.values() if self.servers else ():
            if not server.process or server.process.exited() is not None:
                server.start()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._output.open("wb") as output:
            self.supervisor = subprocess.Popen(
                words,
                cwd=ROOT,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                extra_groups=[] if self._user else None,
            )
        return self

    def up(self) -> Live:
        """Start, and wait until it is ready and has said so."""
        self.start()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait for the line that says ready."""
        supervisor = self.supervisor
        assert supervisor
        process.wait_until(lambda: supervisor.poll() is not None or "ready after" in self.said(), READY_SECONDS)
        assert "ready after" in self.said(), self.said() + self.logs()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, or another signal; waits for the exit status."""
        assert self.supervisor
        self.supervisor.send_signal(number)
        return self.supervisor.wait(60)

    def kill_supervisor(self) -> None:
        """kill -9 of the supervisor alone."""
        assert self.supervisor
        self.supervisor.kill()
        self.supervisor.wait()

    def kill_tree(self, *, servers: bool = True) -> None:
        """kill -9 of the supervisor and of all that it started; with `servers`, of the test's own servers too."""
        self.kill_supervisor()
        own = [server.process for server in self.servers.every.values()] if self.servers and servers else []
        for record in [*self.records().values(), *(one.record for one in own if one and one.record)]:
            for pid in record.session(self.home):
                process_kill(pid)
        for one in own:
            if one:
                eventually(lambda one=one: one.exited() is not None)
        eventually(lambda: not self.records())

    def mend(self) -> None:
        """Bring back whatever a test has stopped, paused or killed."""
        for server in self.servers.every.values() if self.servers else ():
            if server.process and server.process.exited() is not None:
                server.start()
        for name in self.records():
            self.resume(name)
        if not self.supervisor or self.supervisor.poll() is not None:
            self.up()
        eventually(self.ready, READY_SECONDS)

    def remove(self) -> None:
        """Stop everything, whatever state it is in."""
        if self.supervisor and self.supervisor.poll() is None:
            self.end()
        Home(self.home).stop_leftovers()
        Home(self.home).remove()

    def _variables(self) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if name not in OWN}
        variables |= {name: server.url for name, server in self.servers.every.items()} if self.servers else {}
        return {**variables, "MEMSVC_HOME": str(self.home), "PORT": str(self.port), **self._env}

    # -- its parts ----------------------------------------------------------------------------------------------------

    @property
    def cache(self) -> Valkey:
        """CACHE, where it belongs to the test: stop() and start() it."""
        assert self.servers
        return self.servers.cache

    @property
    def broker(self) -> Valkey:
        """BROKER, likewise."""
        assert self.servers
        return self.servers.broker

    @property
    def postgres(self) -> Postgres:
        """PostgreSQL, likewise."""
        assert self.servers
        return self.servers.postgres

    def records(self) -> dict[str, Record]:
        """What the supervisor started and still runs: web, worker-deliver, worker-warm, worker-rebuild, beat, …"""
        return {record.name: record for record in process.records(self.home / "run") if record.alive}

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal a part and all of its processes."""
        for pid in self.records()[name].session(self.home):
            process_kill(pid, number)

    def kill(self, name: str) -> None:
        """kill -9 of a part; the supervisor starts it again."""
        self.signal(name, signal.SIGKILL)

    def pause(self, name: str) -> None:
        """Stop a part's clock: it holds what it holds and does nothing."""
        self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused part go on."""
        self.signal(name, signal.SIGCONT)

    # -- what it says -------------------------------------------------------------------------------------------------

    def said(self) -> str:
        """What the supervisor printed since its last start."""
        return self._output.read_text(errors="replace")

    def logs(self) -> str:
        """The end of every log, for a failed assertion."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self.home.glob("logs/*")
        )

    @property
    def key(self) -> str:
        """The first project's key, with all scopes."""
        return (self.home / "first-key").read_text().strip()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def manage(self, *words: str) -> str:
        """A command of manage.py beside it; what it prints."""
        argv = [*UP[:-1], "manage", *words]
        done = subprocess.run(argv, cwd=ROOT, env=self._variables(), check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def ready(self) -> bool:
        """Whether /readyz answers 200."""
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> requests.Response:
        """One request with the first key, or another ("" for none). Header names have _ for -."""
        key = self.key if key is None else key
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        return requests.request(method, urljoin(self.url, path), json=body, headers=sent, timeout=60)

    def patiently(self, path: str, body: dict[str, Any]) -> requests.Response:
        """A write that is waited for, however busy the machine is: where time was up it is asked about again."""
        name = uuid.uuid4().hex
        for _ in range(4):
            answer = self.call("POST", path, {"timeout_ms": 55_000} | body, Idempotency_Key=name)
            if answer.status_code != 202:
                break
        return answer

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows straight from its PostgreSQL."""
        url = self.postgres.url if self.servers else Postgres(Home(self.home)).url
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


def process_kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
