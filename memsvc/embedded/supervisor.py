"""`python -m memsvc.embedded up`: everything that memsvc is, on one machine, until it is told to stop.

Servers first, then `manage.py setup`, then web, workers and beat; whatever ends by itself is started again. All of it
is known from MEMSVC_HOME/run alone, so stopping needs nothing that a killed supervisor would have taken with it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

import psycopg2

from memsvc import env, settings
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.process import Process, StartError
from memsvc.embedded.services import Services
from memsvc.embedded.valkey import Valkey

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_SECONDS = 0.1
READY_EVERY_SECONDS = 0.2
SETUP_SECONDS = 600
# A process that ends is started again after 1, 2, 4 … seconds; one that lived this long begins at 1 again.
BACKOFF_MAX_SECONDS = 30.0
STEADY_SECONDS = 60.0
LOG_EVERY_SECONDS = 30.0
LOG_MAX_BYTES = 20 << 20


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception: nothing on the way may swallow it."""


@dataclass(slots=True)
class Kept:
    """Something kept running, and when it may be started again."""

    unit: Process | Postgres | Valkey
    started_at: float
    retry_at: float = 0.0
    failures: int = 0

    @property
    def process(self) -> Process | None:
        return self.unit if isinstance(self.unit, Process) else self.unit.process

    def back_off(self, now: float) -> float:
        """Put off the next start, each time for longer; the seconds until then."""
        pause = min(BACKOFF_MAX_SECONDS, 2.0**self.failures)
        self.failures, self.retry_at = self.failures + 1, now + pause
        return pause


class Supervisor:
    """One `make up`."""

    def __init__(self) -> None:
        self._home = Home(settings.MEMSVC_HOME)
        self._services = Services(self._home, cache_mb=settings.EMBEDDED_CACHE_MB)
        self._kept: list[Kept] = []
        self._began = time.monotonic()
        self._ready = False
        self._next_look = self._next_rotation = 0.0

    def run(self) -> None:
        """Start everything and keep it running until a signal says stop. StartError when it cannot be started."""
        if env.problems:
            raise StartError("the environment cannot be used:\n  " + "\n  ".join(env.problems))
        for number in ENDINGS:
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # nohup
                signal.signal(number, _stop)
        self._home.acquire()
        try:
            self._start()
            while True:
                self._look()
                time.sleep(LOOK_SECONDS)
        except Stopped:
            say("stopping")
        finally:
            for number in ENDINGS:
                signal.signal(number, signal.SIG_IGN)
            self._home.stop_leftovers()
            self._home.remove_runtime()
            say("stopped")

    def manage(self, words: Sequence[str]) -> int:
        """A command of manage.py beside the running service, in its environment; its exit status. StartError."""
        if self._home.try_acquire():
            raise StartError(f"memsvc does not run in {self._home.root}. Start it with: make up")
        variables = {name: server.url for name, server in self._services.missing().items()} | self._environment()
        argv = [sys.executable, "manage.py", *words]
        return subprocess.run(argv, cwd=settings.BASE_DIR, env=variables, check=False).returncode

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if left := self._home.stop_leftovers():
            say(f"stopped what an earlier run had left: {', '.join(left)}")
        _check_port()
        ours = self._services.missing()
        for name, server in ours.items():
            server.start()
            self._kept.append(Kept(server, time.monotonic()))
            os.environ[name] = server.url
        say(f"{', '.join(server.name for server in ours.values()) or 'no server'} started in {self._home.root}")
        variables = self._environment()
        self._set_up(variables)
        for process in self._processes(variables):
            process.start()
            self._kept.append(Kept(process, time.monotonic()))
        say("starting web, workers and beat")

    def _environment(self) -> dict[str, str]:
        # `setup` runs Django's checks once for all; in every worker they would cost a third of its start.
        variables = {"CELERY_SKIP_CHECKS": "1", **self._home.environment(), **os.environ}
        if not variables.get("SECRET_KEY") and not variables.get("SECRET_KEY_FILE"):
            variables["SECRET_KEY_FILE"] = str(_secret(self._home.root / "secret-key"))
        return variables

    def _set_up(self, variables: Mapping[str, str]) -> None:
        """Migrations may take longer than any statement of the running service."""
        variables = {**variables, "DATABASE_STATEMENT_TIMEOUT_SECONDS": "0"}
        argv = [sys.executable, "manage.py", "setup"]
        setup = Process(self._home.root, "setup", argv, env=variables, cwd=settings.BASE_DIR)
        setup.log.unlink(missing_ok=True)
        setup.start()
        said = time.monotonic()
        while (status := setup.exited()) is None:
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say("still setting up the database")
            time.sleep(0.02)
        setup.stop()
        if status:
            raise StartError(f"setup ended with status {status}:\n{setup.tail(100)}")
        for line in setup.tail(100).splitlines():
            if line.startswith("The first key"):
                say(line)

    def _processes(self, variables: Mapping[str, str]) -> list[Process]:
        def python(name: str, *words: str, nice: int = 0) -> Process:
            argv = [sys.executable, "-m", *words]
            return Process(self._home.root, name, argv, env=variables, cwd=settings.BASE_DIR, nice=nice)

        def worker(queue: str, threads: int, nice: int = 0) -> Process:
            quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
            pool = ["--pool", "threads", "--concurrency", str(threads)]
            name = ["--queues", queue, "--hostname", f"{queue}-{settings.PORT}@%h"]
            return python(f"worker-{queue}", "celery", "-A", "memsvc.celery", "worker", *name, *pool, *quiet, nice=nice)

        listen = ["--host", settings.BIND_ADDRESS, "--port", str(settings.PORT)]
        size = ["--workers", str(settings.WEB_PROCESSES), "--blocking-threads", str(settings.WEB_THREADS)]
        static = ["--static-path-route", "/static", "--static-path-mount", str(settings.STATIC_ROOT)]
        # SIGHUP replaces one after another: each new one has so long to load before the old one stops, and that one so
        # long to end what it has accepted, the longest of which waits for 55 s.
        care = ["--respawn-failed-workers", "--respawn-interval", "15", "--workers-kill-timeout", "60"]
        web = ["--interface", "wsgi", "--no-ws", "--log-level", "warning", *listen, *size, *static, *care]
        return [
            python("web", "granian", *web, "memsvc.wsgi:application"),
            worker("deliver", settings.DELIVER_THREADS),
            worker("warm", settings.WARM_THREADS),
            worker("rebuild", settings.REBUILD_THREADS, nice=19),
            # Nobody waits for beat, not even a start.
            python("beat", "celery", "-A", "memsvc.celery", "beat", "--pidfile", "", "--loglevel", "WARNING", nice=15),
        ]

    # -- keeping it running -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        for kept in self._kept:
            if kept.retry_at:
                self._start_again(kept, now)
            elif (process := kept.process) and (status := process.exited()) is not None:
                self._put_off(kept, process, status, now)
        if now >= self._next_rotation:
            self._next_rotation = now + LOG_EVERY_SECONDS
            _rotate(self._home.root / "logs")
        if not self._ready and now >= self._next_look:
            self._next_look = now + READY_EVERY_SECONDS
            self._ready = _answers_ready()
            if self._ready:
                self._tell()

    def _put_off(self, kept: Kept, process: Process, status: int, now: float) -> None:
        kept.failures = 0 if now - kept.started_at > STEADY_SECONDS else kept.failures
        pause = kept.back_off(now)
        say(f"{process.name} ended (status {status}), starting it again in {pause:g} s; the end of {process.log}:")
        _print(process.tail())
        process.stop()  # what its leader has left behind

    def _start_again(self, kept: Kept, now: float) -> None:
        if now < kept.retry_at:
            return
        kept.retry_at, kept.started_at = 0.0, now
        try:
            kept.unit.start()
        except (StartError, psycopg2.Error, OSError, subprocess.SubprocessError) as error:
            say(str(error))
            if kept.process is None or kept.process.exited() is not None:
                say(f"{kept.unit.name} is started again in {kept.back_off(now):g} s")

    def _tell(self) -> None:
        url = f"http://localhost:{settings.PORT}"
        key_file, password_file = self._home.root / "first-key", self._home.root / "admin-password"
        if sys.stdout.isatty():
            key = bearer = _read(key_file)
            password = _read(password_file)
        else:  # a file or a journal keeps what it is told
            key, bearer = f"in {key_file}", f"$(cat {shlex.quote(str(key_file))})"
            password = f"in {password_file}"
        say(f"ready after {time.monotonic() - self._began:.1f} s")
        _print(f"""
  API      {url}/api/v1/
  docs     {url}/api/docs/
  admin    {url}/admin/   user admin, password {password}
  key      {key}
  logs     {self._home.root / "logs"}

  curl -s {url}/api/v1/memory/add -H "Authorization: Bearer {bearer}" -H 'Content-Type: application/json' \\
    -d '{{"user_id": "ann", "memories": ["Ann is allergic to shrimp."], "wait": "warm"}}'
  curl -s {url}/api/v1/memory/search -H "Authorization: Bearer {bearer}" -H 'Content-Type: application/json' \\
    -d '{{"user_id": "ann", "query": "What can Ann not eat?"}}'
""")


def say(what: str) -> None:
    """One line for the person at the terminal."""
    _print(f"memsvc: {what}")


def _print(text: str) -> None:
    with suppress(OSError):  # a full disk, or a terminal that is gone
        print(text, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def _check_port() -> None:
    family = socket.AF_INET6 if ":" in settings.BIND_ADDRESS else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.BIND_ADDRESS, settings.PORT))
        except OSError as error:
            where = f"{settings.BIND_ADDRESS}:{settings.PORT}"
            raise StartError(f"cannot listen on {where}: {error.strerror}. Set PORT to a free one.") from error


def _answers_ready() -> bool:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # compared, not listened on  # noqa: S104  # nosec B104
    connection = HTTPConnection(everywhere.get(settings.BIND_ADDRESS, settings.BIND_ADDRESS), settings.PORT, timeout=5)
    try:
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _secret(path: Path) -> Path:
    """A file with a secret that only its owner reads, made at the first start."""
    if not path.exists():
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
        new.rename(path)
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "(made elsewhere)"


def _rotate(logs: Path) -> None:
    """Logs are bounded: one older part of each is kept. Its writer appends, so truncating it is safe."""
    for log in logs.glob("*.log"):
        with suppress(OSError):
            if log.stat().st_size > LOG_MAX_BYTES:
                _keep_older(log)
                os.truncate(log, 0)


def _keep_older(log: Path) -> None:
    """On a full disk there is no older part: losing it is better than growing on."""
    older = log.with_suffix(".log.1")
    try:
        shutil.copyfile(log, older)
    except OSError:
        older.unlink(missing_ok=True)
